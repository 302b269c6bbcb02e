"""In which dtype a model works, and what of it in a wider one.

With float64 tables of positions (rotary, ALiBi), values of edits and statistics stay float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16", "float16", "float64")


def check_dtype(dtype: str) -> None:
    """Checks the dtype of a model's activations.

    Raises:
      ValueError: it is none of `DTYPES`; or float64 where jax has not been told of it, and would make float32 of it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}.")
    if dtype == "float64" and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            'dtype float64 is off in jax: call jax.config.update("jax_enable_x64", True) first or set JAX_ENABLE_X64=1.'
        )


def wide(dtype: Any) -> Any:
    """Gives the dtype that norms, softmax, logits and their sums are worked in: float32; float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def product_precision(dtype: Any) -> Any:
    """Gives a context in which float32 means float32: GPUs and TPUs would otherwise multiply in TF32 or bfloat16."""
    return jax.default_matmul_precision("default" if jnp.dtype(dtype).itemsize < 4 else "highest")
