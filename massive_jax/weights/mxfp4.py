"""MXFP4 (OCP Microscaling Formats 1.0): how gpt-oss's checkpoints hold the kernels of their experts.

In place of a tensor NAME there are two of uint8: NAME_blocks [..., rows, groups, 16], whose bytes are two numbers of
four bits, the lower half first, and NAME_scales [..., rows, groups], a power of two for each 32 of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from massive_jax.weights.source import TensorInfo

_BLOCKS, _SCALES = "_blocks", "_scales"
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_POSITIVE, *(-x for x in _POSITIVE)], np.float32)
_PAIRS = _VALUES[np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=-1)]  # byte -> its two numbers


def unpacked(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Gives `tensors` with every pair of blocks and scales as the one tensor that they stand for.

    It is bfloat16, which holds every value exactly, with the last two axes as in checkpoints that are not quantised:
    [..., 32 · groups, rows].
    """
    found = dict(tensors)
    for name, blocks in tensors.items():
        stem = name.removesuffix(_BLOCKS)
        scales = tensors.get(stem + _SCALES)
        if stem == name or scales is None or blocks.dtype != "uint8" or scales.dtype != "uint8":
            continue
        if len(blocks.shape) < 3 or blocks.shape[-1] != 16 or blocks.shape[:-1] != scales.shape or stem in tensors:
            raise ValueError(
                f"{name} {list(blocks.shape)} and {stem + _SCALES} {list(scales.shape)} are not a tensor in MXFP4."
            )
        *outer, rows, groups, _ = blocks.shape
        found[stem] = TensorInfo((*outer, 32 * groups, rows), "bfloat16")
        del found[name], found[stem + _SCALES]
    return found


def parts(name: str) -> tuple[str, str]:
    """Gives the names under which the file holds the blocks and the scales of `name`."""
    return name + _BLOCKS, name + _SCALES


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Unpacks uint8 [..., rows, groups, 16] and [..., rows, groups] to bfloat16 [..., 32 · groups, rows]."""
    *outer, rows, groups, _ = blocks.shape
    out = np.empty((*outer, 32 * groups, rows), ml_dtypes.bfloat16)
    for index in np.ndindex(*outer):  # one expert at a time: the float32 in between is four times what is stored
        values = np.ldexp(_PAIRS[blocks[index]], scales[index].astype(np.int32)[..., None, None] - 127)
        out[index] = values.reshape(rows, 32 * groups).T
    return out
