"""The C library's allocator, set for arrays that come and go."""

from __future__ import annotations

import contextlib
import ctypes
import os

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
