"""`massive_jax.memory`: page faults of a compiled function, counted in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource
import sys
from massive_jax.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import jax, jax.numpy as jnp

run = jax.jit(lambda x: x + 1)
x = jnp.ones((16384, 1024))  # 64 MiB
for _ in range(60):  # until the blocks have found their places
    run(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    run(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


def _faults(mode: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"}
    out = subprocess.run(
        [sys.executable, "-c", _COUNT, mode],
        env={**clean, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(out.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another C library")
def test_what_is_freed_serves_the_next_call():
    """Unless the user has set the allocator. (16,384 faults without; where the kernel's pages are huge, fewer.)"""
    without = _faults("leave")
    assert without > 0
    assert _faults("keep") < without / 10
    assert _faults("keep", MALLOC_MMAP_THRESHOLD_="65536") > without / 2
