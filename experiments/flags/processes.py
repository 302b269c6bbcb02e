"""Several processes that do one thing together: one a host of a TPU pod, or wherever they are told to meet."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

import massive_jax as mj
from massive_jax.files import discarding
from massive_jax.parallel import check_same, is_first

DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes that find each other: a TPU pod, Slurm, Open MPI."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where processes meet that do not find each other."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many meet at --coordinator.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
_MEETING = {"coordinator": _COORDINATOR, "num_processes": _NUM_PROCESSES, "process_id": _PROCESS_ID}
NAMES = ("distributed", *_MEETING)
_OWN = ("coordinator", "process_id")  # of those flags that may differ between processes

_SHUTDOWN = 60  # seconds that a process which ends waits for the others, before all are told that it failed
_HEARTBEAT = 60  # seconds without a sign of life, after which a process counts as dead; all end then
# What can run on several processes: each does the same steps on its part of one mesh, process 0 writes and prints.
TOGETHER = frozenset(
    {
        *("attention", "attention_map", "census", "collect", "compare_bias", "convert", "explicit_bias", "feature_map"),
        *("intervene", "layerwise", "observe", "register_neurons", "super_weights", "sweep", "train_gpt2", "train_vit"),
        *("verify", "vit_registers"),
    }
)
PASSED_ON = frozenset({"batch"})  # what joins nobody itself, and gives the flags to experiments that do


def several() -> bool:
    """Whether the flags ask for several processes."""
    return DISTRIBUTED.value or any(flag.value is not None for flag in _MEETING.values())


def start(program: str = "") -> None:
    """Joins the other processes where the flags say that there are any; before anything asks jax for a device.

    Args:
      program: the experiment's name.

    Raises:
      ValueError: flags that do not say who the others are; an experiment that runs in one process; processes with other
        flags, other code or other packages.
    """
    if not several() or program in PASSED_ON:
        return
    if program in known_alone():
        raise ValueError(
            f"{program} runs in one process; leave out --distributed, --coordinator, --num_processes and --process_id, "
            "and start it once."
        )
    meeting: dict[str, Any] = {name: flag.value for name, flag in _MEETING.items()}
    missing = [f"--{name}" for name, value in meeting.items() if value is None]
    if DISTRIBUTED.value and len(missing) < len(meeting):
        raise ValueError("give --distributed where the processes find each other, or say where they meet: not both.")
    if not DISTRIBUTED.value:
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
    if not jax.distributed.is_initialized():
        _meet(meeting)
    check_same(_facts(program))


def _meet(meeting: dict[str, Any]) -> None:
    # jax's own answer to SIGTERM takes the signal away from Python, and so from the training loop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            meeting["coordinator"],
            meeting["num_processes"],
            meeting["process_id"],
            shutdown_timeout_seconds=_SHUTDOWN,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed: jax finds no cluster here ({error}); on one host leave it out, elsewhere give "
            "--coordinator, --num_processes and --process_id."
        ) from None


def known_alone() -> set[str]:
    """The experiments that run in one process."""
    here = {path.stem for folder in _folders()[:2] for path in folder.glob("*.py")}
    return here - TOGETHER - PASSED_ON


@contextlib.contextmanager
def silent_but_first() -> Iterator[None]:
    """Of several processes, all but process 0 print nothing and keep nothing of what they write in the block."""
    if not jax.distributed.is_initialized() or is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), discarding():
        yield


def say(line: str) -> None:
    """Prints a line, of several processes in process 0 only."""
    if is_first():
        print(line, flush=True)


def _facts(program: str) -> dict[str, str]:
    """What has to be the same in all processes."""
    given = {name: flags.FLAGS[name] for name in flags.FLAGS if name not in _OWN}
    return {
        "the experiment": program,
        **{f"--{name}": str(flag.value) for name, flag in sorted(given.items()) if flag.present},
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
        "massive_jax": f"{mj.__version__} with code {_code()}",
    }


@functools.cache
def _code() -> str:
    """A digest of the source code that runs."""
    found = hashlib.sha256()
    for folder in _folders():
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _folders() -> tuple[pathlib.Path, ...]:
    here = pathlib.Path(__file__).parents[1]
    return here, here.parent / "checkpoints", pathlib.Path(mj.__file__).parent


def program() -> str:
    """The experiment's name, as it was started."""
    return pathlib.PurePath(sys.argv[0]).stem
