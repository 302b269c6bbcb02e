"""The C library's allocator, set for arrays that come and go; how much memory the devices have."""

from __future__ import annotations

import contextlib
import ctypes
import os

import jax
from jax.sharding import Mesh

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Has glibc keep the memory that one compiled function gives back for the next; for before the first array.

    On CPU, XLA allocates what a compiled function needs anew at every call. A block of that size glibc gets from the
    kernel and gives back, with a page fault for every 4 KiB. This changes the whole process, so importing the package
    does not do it; the experiments that train do. (One that loads a model and runs it a few times gains nothing.) Where
    the user has set the allocator (`MALLOC_…`, `GLIBC_TUNABLES`), or it is another library's, nothing is changed.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)  # the arenas of other threads give large blocks back, whatever the thresholds
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def total_memory(mesh: Mesh | None = None) -> int:
    """Gives the memory of a mesh's devices, or of the default one, in bytes, whoever uses it; a CPU's is the host's."""
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    processes = 1 if mesh is None else mesh.size // len(devices)  # each has as many devices
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if any(limit is None for limit in limits):
        return processes * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return processes * sum(int(limit or 0) for limit in limits)
