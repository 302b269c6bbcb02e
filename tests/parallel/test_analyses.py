"""Every analysis on eight devices is that on one, and gathers nothing large: see `tests.fixtures.on_meshes`."""

import os
import subprocess
import sys

import pytest

from tests.fixtures.on_meshes import KINDS


def run(*arguments):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "tests.fixtures.on_meshes", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_on_eight_devices_as_on_one(kind, tmp_path):
    done = run(kind, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith("analyses, 0 differences"), done.stdout
