"""The process that an experiment has to itself: `run NAME --flag=value …`, or `rehearse NAME` with lists of flags."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _start() -> None:
    what, experiment, *arguments = sys.argv[1:]
    if what == "run":
        threading.Thread(target=_end_with_parent, daemon=True).start()
    else:
        from experiments.apart import rehearsal

        rehearsal.prepare()
    sys.argv[1:] = arguments
    runpy.run_module(f"experiments.{experiment}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _start()
