"""Everything that is worth measuring on an accelerator, in some minutes, each section failing alone.

  python -m benchmarks.device --minutes=8 --out=results/device
  python -m benchmarks.device --out=results/device --sections=environment,train,train_torch
  python -m benchmarks.device --minutes=10 --out=results/device --sections=emergence --data=data/book.bin
  python -m benchmarks.device --small --out=/tmp/device        # toy sizes: a test that all of it runs, on CPU too

Every section runs in a process of its own with a time limit; one that fails, hangs or lacks a package is written down,
and the next runs. `OUT/records.jsonl` has a line for each measurement as soon as it is made, `OUT/device.json` all of
them, `OUT/device.md` tables with versions, `OUT/roofline.png` the picture. It needs no network. Compiled programs are
kept in --cache, if given; compile times are then those of the first run only.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import app, flags

from benchmarks.device.record import RECORDS, Context
from benchmarks.device.section import SECTIONS
from benchmarks.device.table import write_tables

_OUT = flags.DEFINE_string("out", None, "Directory of the results; made if need be.", required=True)
_MINUTES = flags.DEFINE_float("minutes", 8.0, "Time for all sections together.", lower_bound=0.1)
_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "Which to run, in this order.")
_SMALL = flags.DEFINE_bool("small", False, "Toy sizes.")
_CACHE = flags.DEFINE_string("cache", None, "Directory for compiled programs; none are kept without it.")
_DATA = flags.DEFINE_string(
    "data", None, "A token file (experiments.prepare_data) for the section emergence; None for a made-up language."
)


@flags.multi_flags_validator(["sections"], message=f"known sections: {', '.join(SECTIONS)}.")
def _known(values: dict) -> bool:
    return bool(values["sections"]) and set(values["sections"]) <= set(SECTIONS)


def main(argv: list[str]) -> None:
    """Runs the sections."""
    del argv
    out = pathlib.Path(_OUT.value).expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORDS).unlink(missing_ok=True)
    deadline = time.monotonic() + 60 * _MINUTES.value
    for name in _SECTIONS.value:
        _, _, limit, needed = SECTIONS[name]
        missing = [package for package in needed if not _is_there(package)]
        left = deadline - time.monotonic()
        context = Context(name, out, _SMALL.value, deadline)
        if missing:
            context.add("status", status=f"left out: {', '.join(missing)} is not there")
        elif left < 5:
            context.add("status", status="left out: no time left")
        else:
            context.add("status", status=_run(name, out, min(left, 4 * limit if _SMALL.value else limit)))
        write_tables(out)
    print((out / "device.md").read_text(encoding="utf-8"))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _run(name: str, out: pathlib.Path, seconds: float) -> str:
    """How a section ended."""
    words = [name, str(out), str(seconds), *(["small"] if _SMALL.value else [])]
    words += [] if _DATA.value is None else [f"data={_DATA.value}"]
    # Each process takes what memory it needs: PyTorch and jax share the device.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    if _CACHE.value:
        environment |= {"JAX_COMPILATION_CACHE_DIR": _CACHE.value, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    with (out / f"{name}.log").open("w+", encoding="utf-8") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.device.section", *words],
            stderr=log,
            env=environment,
            start_new_session=True,  # its own children (compilers) end with it
        )
        try:
            code = child.wait(timeout=seconds + 2)
        except subprocess.TimeoutExpired:
            _end(child)
            return f"stopped after {seconds:.0f} s"
        except BaseException:
            _end(child)
            raise
        log.seek(0)
        said = [line for line in log.read().splitlines() if line.strip()]
    return "done" if code == 0 else f"failed: {said[-1][:300] if said else f'exit status {code}'}"


def _end(child: subprocess.Popen) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    app.run(main)
