"""Several processes, as on a TPU pod: who does what, and how they stay together. In one process nothing here costs.

Every function that says so must be called by all processes, in the same order. They wait for each other at jax's
coordination service, which allows for hours, before they exchange anything over the devices: a CPU's collectives give
up after 30 seconds.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from massive_jax.files import Path

PATIENCE = 6 * 3600  # seconds that the others wait for one; a process that has ended is noticed long before
_barriers = itertools.count()

_T = TypeVar("_T")


def is_first() -> bool:
    """Tells whether this is process 0, which writes files and talks; it is where there is only one."""
    return jax.process_index() == 0


def process_part(mesh: Mesh | None) -> tuple[int, int]:
    """Gives (number, count): the part of a batch, split over "data" and "fsdp", that this process feeds, of how many.

    Processes whose devices lie along "tensor" and "expert" only hold, and feed, the same part.

    Raises:
      ValueError: a process holds a piece of another's part: the mesh cuts across the processes' devices.
    """
    if mesh is None:
        return 0, 1
    shape = mesh.devices.shape
    split = mesh.devices.reshape(math.prod(shape[: len(shape) // 2]), -1)  # the axes of the batch come first
    rows: dict[int, set[int]] = {}
    for (row, _), device in np.ndenumerate(split):
        rows.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(held)) for held in rows.values()})
    if jax.process_index() not in rows or len({len(part) for part in parts}) > 1 or sum(map(len, parts)) > len(split):
        raise ValueError(
            f"a mesh of {' × '.join(map(str, shape))} gives {jax.process_count()} processes of "
            f"{jax.local_device_count()} devices parts of a batch that overlap; make tensor × expert a divisor or a "
            "multiple of a process's devices, and use all."
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def on_mesh(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Places an array that every process has whole on devices of all of them."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def whole(tree: Any) -> Any:
    """Gathers a tree: what is split over processes as numpy arrays, whole in each; the rest as it is. Called by all."""
    if jax.process_count() == 1:
        return tree

    def gathered(x: Any) -> Any:
        split = isinstance(x, jax.Array) and not x.is_fully_addressable
        return multihost_utils.process_allgather(x, tiled=True) if split else x

    return jax.tree.map(gathered, tree)


def in_any(mine: bool, mesh: Mesh) -> jax.Array:
    """Tells whether `mine` is true in any process: bool [], the same in all. Called by all; waits for none."""
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return _any(jax.make_array_from_callback((mesh.size,), everywhere, lambda _: np.full(1, mine)))


_any = jax.jit(jnp.any)


def from_first(value: int) -> int:
    """Gives the `value` of process 0. Called by all."""
    if jax.process_count() == 1:
        return value
    _wait()
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def once(work: Callable[[], _T], what: str) -> _T | None:
    """Runs `work` in process 0 while the others wait. Called by all.

    Args:
      work: what to do; it calls nothing that all have to call.
      what: in words: "write the figures".

    Returns:
      What `work` gave; None in the other processes.

    Raises:
      ValueError: in the others, where `work` failed in process 0, which raises what it raised.
    """
    if jax.process_count() == 1:
        return work()
    if not is_first():
        if not from_first(0):
            raise ValueError(f"process 0 could not {what}: see what it says.")
        return None
    try:
        done = work()
    except BaseException:
        from_first(0)
        raise
    from_first(1)
    return done


def check_shared(directory: Path) -> None:
    """Makes `directory`; ValueError unless every process sees the same one. Called by all."""
    if jax.process_count() == 1:
        return
    probe = directory / f".shared-{from_first(secrets.randbits(31)):08x}"

    def make() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()

    once(make, f"write to {directory}")
    missing = np.flatnonzero(~multihost_utils.process_allgather(np.bool_(probe.exists())))
    once(probe.unlink, f"write to {directory}")
    if missing.size:
        raise ValueError(
            f"{directory} of process 0 is not seen by process {', '.join(map(str, missing))}: all processes need one "
            "directory, on a file system that they share."
        )


def _wait() -> None:
    """Waits until every process is here."""
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=f"massive_jax.{next(_barriers)}", timeout_ms=1000 * PATIENCE)
