"""Writing safetensors, in one file or in shards with an index, one tensor in memory at a time.

The format (github.com/huggingface/safetensors): 8 bytes, the length of the header; the header, JSON, of every tensor's
dtype, shape and place; the tensors, row-major, one after the other.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from massive_jax.weights.safetensors_source import DTYPES, INDEX, SINGLE

SHARD_BYTES = 5 * 10**9  # of one file's tensors, as transformers has it; a larger tensor is a file by itself
_ALIGNMENT = 8


def write_safetensors(
    directory: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Any,
    tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes model.safetensors, or model-00001-of-….safetensors and their index, to a directory.

    Args:
      directory: where; it exists.
      shapes: tensor name -> shape, in the order of `tensors`.
      dtype: of all tensors.
      tensors: names and arrays of that dtype, row-major.
    """
    size = jnp.dtype(dtype).itemsize
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        needed = size * math.prod(shape)
        if needed > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = shape
        room -= needed
    names = [SINGLE]
    if len(shards) > 1:
        stem, suffix = SINGLE.split(".")
        names = [f"{stem}-{i:05}-of-{len(shards):05}.{suffix}" for i in range(1, len(shards) + 1)]
    left = iter(tensors)
    for file_name, shard in zip(names, shards, strict=True):
        with (directory / file_name).open("wb") as file:
            file.write(_header(shard, dtype))
            for wanted in shard:
                name, x = next(left)
                assert (name, x.shape, x.dtype) == (wanted, shard[wanted], jnp.dtype(dtype))
                file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    if len(shards) > 1:
        total = size * sum(math.prod(shape) for shape in shapes.values())
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> bytes:
    """The length and the header of one file."""
    kind = next(name for name, known in DTYPES.items() if known == jnp.dtype(dtype).name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without which transformers refuses the file
    start = 0
    for name, shape in shapes.items():
        stop = start + jnp.dtype(dtype).itemsize * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
