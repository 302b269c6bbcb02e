"""Experiments in processes of their own: run one, and hear what it would refuse of its flags without running it.

A process gives its memory and its devices back, and one that crashes takes no other with it. It ends with the process
that started it, also where that was killed.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from massive_jax.files import one_line

# What a process that was told to stop ends with, and what we then end with.
_STOPPED = {143: 143, -signal.SIGTERM: 143, 130: 130, -signal.SIGINT: 130}


class Rehearsed(NamedTuple):
    """What an experiment says of its flags: a line where it refuses them, and what they come to, defaults left out."""

    problem: str | None
    meaning: str


def names() -> list[str]:
    """The experiments that there are."""
    files = sorted(pathlib.Path(__file__).parents[1].glob("*.py"))
    return [path.stem for path in files if "common.run_experiment(main)" in path.read_text(encoding="utf-8")]


def run(experiment: str, arguments: Sequence[str], log: pathlib.Path | None = None) -> int:
    """Runs an experiment and gives its exit status, or minus the signal that ended it.

    Args:
      experiment: its name.
      arguments: its flags.
      log: a file to which what it prints is added; None: it prints where we do.

    Raises:
      SystemExit: it was told to stop, by SIGTERM or Ctrl-C, which are not for it alone; or we were, and then it is.
    """
    with contextlib.ExitStack() as stack:
        out = None if log is None else stack.enter_context(log.open("ab"))
        # Nothing is ever written to its standard input, which is closed with this process: then it ends, too.
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.apart", "run", experiment, *arguments],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=None if out is None else subprocess.STDOUT,
        )
        try:
            status = process.wait()
        except BaseException:  # SIGTERM, Ctrl-C
            process.terminate()  # a training writes a checkpoint before it ends
            process.wait()
            raise
        finally:
            assert process.stdin is not None
            process.stdin.close()
    if status in _STOPPED:
        sys.exit(_STOPPED[status])
    return status


def reason(status: int, said: str) -> str:
    """Says in one line why a run failed, from its exit status and what it printed."""
    lines = [line for line in said.splitlines() if line.strip()]
    if status < 0:
        name = next((one.name for one in signal.Signals if one == -status), f"signal {-status}")
        last = one_line(lines[-1]) if lines else "it printed nothing"
        memory = ", as where memory runs out" if name == "SIGKILL" else ""
        return f"ended by {name}{memory}; its last line: {last}"
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if errors:  # a list of offenders has a line for each
        return one_line("; ".join(lines[errors[-1] :]).removeprefix("error: "))
    return one_line(f"exit status {status}" + (f": {lines[-1]}" if lines else ""))


def rehearse(experiment: str, runs: Sequence[Sequence[str]]) -> list[Rehearsed]:
    """Says what an experiment refuses of the flags of each run, so far as it shows before a model is loaded.

    One process looks at all of them.

    Raises:
      ValueError: the experiment does not even start.
    """
    command = [sys.executable, "-m", "experiments.apart", "rehearse", experiment]
    done = subprocess.run(command, input=json.dumps(runs), capture_output=True, text=True, encoding="utf-8")
    with contextlib.suppress(ValueError):
        return [Rehearsed(*found) for found in json.loads(done.stdout)]
    raise ValueError(f"{experiment} does not start: {reason(done.returncode, done.stderr)}.")
