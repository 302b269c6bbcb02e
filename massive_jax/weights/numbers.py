"""Which numbers are weights: floating-point types, and values that are finite in the dtype a model works in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (numpy knows bfloat16 and the types of eight bits by it)
import numpy as np

from massive_jax import files

_SHOWN = 12  # offenders spelled out in an error
_DAMAGED = "The file is damaged, or was saved after training diverged; allow_nonfinite loads it all the same."


def holds_weights(dtype: str) -> bool:
    """Tells whether a stored tensor's type (see `TensorInfo`) is one of weights, or a quantisation of them.

    Integers, booleans and floats of eight bits are codes, which mean nothing without their scales.
    """
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        return True
    return bool(jnp.issubdtype(kind, jnp.floating)) and kind.itemsize > 1


def extremes(x: np.ndarray) -> tuple[float, float]:
    """Finds elements farthest from 0 of each sign, (negative, positive), 0 where there is none; NaN if one is."""
    if not x.size:
        return 0.0, 0.0
    if x.dtype.itemsize > 2:
        return float(x.min()), float(x.max())  # both pass NaN on; no copy
    # As integers, sixteen bits of either sign are in the order of their magnitude, NaN above infinity; no copy either.
    positive, negative = x.view(np.int16).max(), x.view(np.uint16).max()
    bits = np.array([negative if negative >= 0x8000 else 0, max(0, positive)], np.uint16)
    lowest, highest = bits.view(x.dtype).astype(np.float64)
    return float(lowest), float(highest)


def extremes_of_all(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Gives the `extremes` of an array from those of its parts, at least one."""
    lows, highs = zip(*found, strict=True)
    return float(np.min(lows)), float(np.max(highs))  # both pass NaN on


def finite_in(found: Sequence[float], dtype: Any) -> bool:
    """Tells whether numbers between these `extremes` are finite once they are cast to `dtype`."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.array(found, np.float64).astype(dtype).astype(np.float64)).all())


def not_finite(location: str, names: Sequence[str]) -> ValueError:
    """Gives the error for tensors that hold NaN or infinite values."""
    return ValueError(
        f"{location}: {len(names)} tensors hold NaN or infinite values: {files.listed(names, _SHOWN)}. {_DAMAGED}"
    )


def out_of_range(location: str, names: Sequence[str], dtype: Any) -> ValueError:
    """Gives the error for tensors whose values `dtype` does not reach."""
    kind = jnp.dtype(dtype)
    return ValueError(
        f"{location}: {len(names)} tensors have values beyond {kind.name}, which ends at {jnp.finfo(kind).max:.6g}: "
        f"{files.listed(names, _SHOWN)}. Load it in {'bfloat16 or ' if kind.name == 'float16' else ''}"
        f"{'float64' if kind.name == 'float32' else 'float32'}; allow_nonfinite takes infinity for them."
    )
