"""Several processes that do one thing together: one a host of a TPU pod, or wherever they are told to meet."""

from __future__ import annotations

import re
from typing import Any

import jax
from absl import flags

from massive_jax.parallel import is_first

DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes that find each other: a TPU pod, Slurm, Open MPI."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where processes meet that do not find each other."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many meet at --coordinator.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)

_SHUTDOWN = 60  # seconds that a process which ends waits for the others, before all are told that it failed


def start() -> None:
    """Joins the other processes where the flags say that there are any; before anything asks jax for a device.

    Raises:
      ValueError: flags that do not say who the others are.
    """
    meeting: dict[str, Any] = {
        "coordinator": _COORDINATOR.value,
        "num_processes": _NUM_PROCESSES.value,
        "process_id": _PROCESS_ID.value,
    }
    missing = [f"--{name}" for name, value in meeting.items() if value is None]
    if DISTRIBUTED.value and len(missing) < len(meeting):
        raise ValueError("give --distributed where the processes find each other, or say where they meet: not both.")
    if not DISTRIBUTED.value:
        if len(missing) == len(meeting):
            return
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} missing: processes that meet each need --coordinator=HOST:PORT, "
                "--num_processes and --process_id; on a TPU pod --distributed is enough."
            )
        if not re.fullmatch(r".+:\d+", meeting["coordinator"]):
            raise ValueError(f"--coordinator={meeting['coordinator']}: give HOST:PORT of process 0, as 10.0.0.1:1234.")
        if meeting["process_id"] >= meeting["num_processes"]:
            raise ValueError(
                f"--process_id={meeting['process_id']} of --num_processes={meeting['num_processes']}: they are counted "
                "from 0."
            )
    # jax's own answer to SIGTERM takes the signal away from Python, and so from the training loop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            meeting["coordinator"],
            meeting["num_processes"],
            meeting["process_id"],
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed: jax finds no cluster here ({error}); on one host leave it out, elsewhere give "
            "--coordinator, --num_processes and --process_id."
        ) from None


def say(line: str) -> None:
    """Prints a line, of several processes in process 0 only."""
    if is_first():
        print(line, flush=True)
