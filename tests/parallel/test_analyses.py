"""Analyses on eight devices are those on one, and gather nothing large: see `tests.fixtures.on_meshes`.

Each analysis is of one kind here, statistics of all. All of all kinds take a quarter of an hour of a core:

  for kind in dense grouped experts vision slots; do python -m tests.fixtures.on_meshes $kind $(mktemp -d); done

with eight devices, XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import os
import subprocess
import sys

import pytest

OTHERS = {
    "dense": ("ties", "census", "perplexity"),
    "grouped": ("gradient", "absorbed"),
    "experts": ("padded", "sweep", "continuations"),
    "vision": ("edits",),
    "slots": ("padded", "generate"),
}


def run(*arguments):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "tests.fixtures.on_meshes", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_on_eight_devices_as_on_one(kind, tmp_path):
    done = run(kind, tmp_path, "statistics", "gathers", *OTHERS[kind])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith("analyses, 0 differences"), done.stdout
