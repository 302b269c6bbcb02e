"""What several processes agree on, tell each other and fail by, over jax's coordination service: before any device.

Every function that says so must be called by all processes, in the same order; in one process nothing here costs.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from massive_jax.parallel.processes import PATIENCE, from_first, is_first, whole

_FAILED = "massive_jax/failed"  # the key under which a process that fails says why
_TELLING = 1.0  # seconds until all have heard it; process 0, where they hear it, stays twice that
_EVERY = 0.5  # seconds between two looks at whether another has failed
_WATCHER = "failures of other processes"
_rounds = itertools.count()
_leaving = threading.Event()  # this process is ending by itself

_T = TypeVar("_T")


def fetch(tree: Any) -> Any:
    """Gives a tree of arrays as numpy arrays, whole in every process, wherever their devices are. Called by all."""
    return jax.device_get(whole(tree))


def bytes_from_first(content: bytes | None) -> bytes | None:
    """Gives what process 0 has, a file's content, say. Called by all; the others' `content` is not looked at."""
    if jax.process_count() == 1:
        return content
    length = from_first(-1 if content is None else len(content))
    if length < 1:
        return None if length < 0 else b""
    mine = np.frombuffer(content, np.uint8) if is_first() and content is not None else np.zeros(length, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8))


def agree(mine: str, judge: Callable[[Sequence[str]], str | None]) -> None:
    """Lets process 0 judge what every process says. Called by all; needs no device.

    Args:
      mine: what this process says.
      judge: called in process 0 with what each said, in their order; gives what is wrong, or None.

    Raises:
      ValueError: in all of them, what is wrong.
    """
    client, number, count = _service()
    if client is None:
        problem = judge([mine])
    else:
        place, patience = f"massive_jax/{next(_rounds)}", 1000 * PATIENCE
        client.key_value_set(f"{place}/{number}", mine)
        if number == 0:
            problem = judge([client.blocking_key_value_get(f"{place}/{i}", patience) for i in range(count)])
            client.key_value_set(f"{place}/verdict", problem or "")
        else:
            problem = client.blocking_key_value_get(f"{place}/verdict", patience)
    if problem:
        raise ValueError(problem)


def check_same(facts: Mapping[str, str | None]) -> None:
    """Checks that `facts`, name -> value, are the same in all processes. Called by all; needs no device.

    Raises:
      ValueError: in all of them, what differs, in which process, and what it is there and in process 0.
    """

    def differences(every: Sequence[str]) -> str | None:
        ours, *others = map(json.loads, every)
        for number, theirs in enumerate(others, 1):
            found = [
                f"{name} is {_said(theirs.get(name))} in process {number}, and {_said(ours.get(name))} in process 0"
                for name in {**ours, **theirs}
                if ours.get(name) != theirs.get(name)
            ]
            if found:
                return f"{'; '.join(found)}: start every process with the same flags, code and packages."
        return None

    agree(json.dumps(dict(facts)), differences)


def everywhere(work: Callable[[], _T]) -> _T:
    """Runs `work` in every process; where it fails in one, all fail. Called by all.

    Args:
      work: what to do; it calls nothing that all have to call.

    Returns:
      What `work` gave here.

    Raises:
      ValueError: in all processes, why it failed, and in which.
    """
    if _service()[0] is None:
        return work()
    done, problem = None, ""
    try:
        done = work()
    except (ValueError, OSError) as error:
        problem = str(error) or type(error).__name__

    def first(problems: Sequence[str]) -> str | None:
        number, found = next(((i, it) for i, it in enumerate(problems) if it), (0, ""))
        return found if len({*problems}) == 1 else f"process {number}: {found}"

    agree(problem, first)
    return done  # type: ignore[return-value]


def watch(tell: Callable[[str], Any]) -> None:
    """Starts a thread that ends this process once another has called `leave`: `tell` is called with its reason.

    What a main thread waits for, a device or another process, may never come then; and what jax says of it is not why.
    """
    client, number, _ = _service()

    def look() -> None:
        while not _leaving.wait(_EVERY):
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # no process has failed
                status, _, reason = client.key_value_try_get(_FAILED).partition(" ")
                if not _leaving.is_set():
                    _leaving.set()
                    tell(reason)
                    time.sleep(2 * _TELLING if number == 0 else 0)
                    os._exit(int(status))
                return

    def stop() -> None:  # a thread that is in jax when the interpreter ends would abort
        _leaving.set()
        thread.join(_TELLING)

    if client is not None and not any(thread.name == _WATCHER for thread in threading.enumerate()):
        thread = threading.Thread(target=look, daemon=True, name=_WATCHER)
        thread.start()
        atexit.register(stop)


def is_leaving() -> bool:
    """Tells whether this process is ending already, because another has: what it meets then is a consequence."""
    return _leaving.is_set()


def leave(reason: str, status: int) -> None:
    """Tells the other processes why this one ends, and ends it as `os._exit` does: they are not waited for.

    Nothing happens where there is only one.
    """
    client, number, _ = _service()
    if client is None:
        return
    if not _leaving.is_set():
        _leaving.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # told by another already; or nobody is there any more
            client.key_value_set(_FAILED, f"{status} process {number}: {reason}")
        time.sleep(2 * _TELLING if number == 0 else _TELLING)
    else:
        time.sleep(3 * _TELLING)  # the thread of `watch` ends this process
    os._exit(status)


def _said(value: str | None) -> str:
    return "not given" if value is None else value


def _service() -> tuple[Any, int, int]:
    """The client of the coordination service, or None in one process; the number of this process; their count."""
    from jax._src import distributed  # jax offers it by way of devices only, which may be what is wrong

    state = distributed.global_state
    return state.client if state.num_processes > 1 else None, state.process_id, state.num_processes
