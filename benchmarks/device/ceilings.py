"""What the device is, and the most that it does: products of matrices and passes over memory."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.device.record import Context, measure, median

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy")


def environment(context: Context) -> None:
    """Writes down versions and device."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    device = jax.devices()[0]
    context.add(
        "versions",
        python=platform.python_version(),
        **versions,
        device=device.device_kind,
        devices=jax.device_count(),
        platform_version=str(getattr(device.client, "platform_version", "")).replace("\n", " ")[:200],
        xla_flags=os.environ.get("XLA_FLAGS", ""),
        cores=os.cpu_count(),
    )
    if (stats := device.memory_stats()) is not None:
        context.add("memory", bytes_limit=stats.get("bytes_limit"))
    if shutil.which("nvidia-smi"):
        query = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
        context.add("nvidia-smi", said=said)


def matmul_seconds(m: int, k: int, n: int, dtype: Any, out: Any, calls: int = 1) -> float:
    """Times a product of [m, k] and [k, n] in `dtype`, written in the dtype `out`; see `measure` for `calls`."""
    a, b = (jnp.ones(shape, dtype) / 64 for shape in ((m, k), (k, n)))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=out))
    return median(measure(lambda: product(a, b), 5, calls=calls, seconds=3))


def ceilings(context: Context) -> None:
    """Measures products of matrices, the shapes of GPT-2's training among them, and memory."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    n, tokens, vocabulary = (256, 256, 512) if context.small else (8192, 16384, 50304)
    shapes: list[tuple[str, int, int, int, Any]] = [
        ("square", n, n, n, dtype),
        ("width to width", tokens, 768, 768, dtype),
        ("width to 4 widths", tokens, 768, 3072, dtype),
        ("4 widths to width", tokens, 3072, 768, dtype),
        ("head", tokens, 768, vocabulary, dtype),
        ("head, float32 out", tokens, 768, vocabulary, jnp.float32),
    ]
    for name, m, k, width, out in shapes:
        seconds = matmul_seconds(m, k, width, dtype, out, calls=1 if context.small else 10)
        context.add(
            f"matmul, {name}", shape=[m, k, width], seconds=seconds, flops_per_second=2 * m * k * width / seconds
        )
    count = 1 << (16 if context.small else 29)
    x = jnp.ones(count, dtype)
    size = count * x.dtype.itemsize
    for name, function, passes in (
        ("copy", jax.jit(lambda x: x + 1), 2),
        ("sum", jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32)), 1),
    ):
        seconds = median(measure(lambda: function(x), 5, calls=1 if context.small else 10, seconds=3))  # noqa: B023
        context.add(f"memory, {name}", bytes=passes * size, seconds=seconds, bytes_per_second=passes * size / seconds)
