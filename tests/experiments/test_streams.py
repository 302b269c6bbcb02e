"""Printing never ends the work: standard output that is closed, full, or piped to a reader that goes."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CODE = """
import sys
from experiments import streams
streams.secure()
with open(sys.argv[1], "w") as file:  # which must not become standard output
    for i in range(20000):
        print("line", i)
    print("warning", file=sys.stderr)
    sys.stdout.flush()
    file.write("the result")
try:
    streams.flush()
except OSError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(1)
"""


def run(path, command, **options):
    """The shell command with "$@" for a process that prints a lot and writes a file; what came of it."""
    arguments = ["bash", "-c", command, "bash", sys.executable, "-c", CODE, str(path)]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False, **options)


@pytest.mark.parametrize(
    ("command", "status", "err"),
    [
        ('"$@" >&-', 0, "warning\n"),
        ('"$@" >&- 2>&- <&-', 0, ""),
        ('"$@" 2>&-', 0, ""),
        ('set -o pipefail; "$@" | head -1', 0, "warning\n"),
        ('set -o pipefail; "$@" 2>&1 | head -1', 0, ""),
        pytest.param(
            '"$@" >/dev/full',
            1,
            "warning\nerror: [Errno 28] No space left on device: 'standard output'\n",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device"),
        ),
    ],
)
def test_the_work_is_done(tmp_path, command, status, err):
    done = run(tmp_path / "result", command)
    assert (done.returncode, done.stderr) == (status, err)
    assert (tmp_path / "result").read_text() == "the result"
