"""Files of a store: shards of rows as safetensors, and what is written down of each. n rows of a shard."""

from __future__ import annotations

import dataclasses
import mmap
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash

from massive_jax.files import Path, atomic_write, local, size_of
from massive_jax.weights.safetensors_source import DTYPES, open_safetensors, tensor_starts

STORED_DTYPES = ("float32", "bfloat16", "float16")
"""Of the rows in a store."""
FORMAT = 1
INDEX, UNFINISHED = "index.json", "collecting.json"
AGAIN = "remove the directory and collect the activations again, or copy it again."
DROPPED = "dropped."  # in front of the names of what is kept of rows that are not
_PIECE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Shard:
    """Describes a file of a store.

    Attributes:
      file: its name.
      rows: how many it has.
      dropped: how many tokens of its windows have none.
      bytes: its size.
      xxh3_64: its checksum, in hexadecimal.
    """

    file: str
    rows: int
    dropped: int
    bytes: int
    xxh3_64: str

    def problem(self, directory: Path, whole: bool = False) -> str | None:
        """Says what is wrong with the file, by its size or its `whole` content; None where nothing is."""
        path = directory / self.file
        if not path.is_file():
            return f"{path} is not there"
        if (size := size_of(path)) != self.bytes:
            return f"{path} has {size:,} bytes in place of {self.bytes:,}"
        if whole and checksum(local(path)) != self.xxh3_64:
            return f"{path} has another checksum than when it was written"
        return None


def write_shard(path: Path, arrays: Mapping[str, np.ndarray], rows: int, dropped: int) -> Shard:
    """Writes a shard, whole or not at all."""
    with atomic_write(path) as temporary:
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        safetensors.numpy.save_file(whole, temporary)
        shard = Shard(path.name, rows, dropped, temporary.stat().st_size, checksum(temporary))
    return shard


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """Gives the arrays of a shard, read-only views of the file; ValueError where it is damaged."""
    file = local(path)
    try:
        handle = open_safetensors(file)
        starts, content = tensor_starts(file), np.memmap(file, np.uint8, mode="r")
        found: dict[str, np.ndarray] = {}
        for name, start in starts.items():
            view = handle.get_slice(name)
            dtype, shape = np.dtype(DTYPES[view.get_dtype()]), tuple(view.get_shape())
            found[name] = np.ndarray(shape, dtype, buffer=content, offset=start)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}); {AGAIN}") from None
    return found


def checksum(path: pathlib.Path) -> str:
    """Gives XXH3 of a file's bytes, 64 bits in hexadecimal."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        if path.stat().st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for start in range(0, len(content), _PIECE):
                    digest.update(content[start : start + _PIECE])
    return digest.hexdigest()


def shard_of(stored: Any) -> Shard:
    """Makes a `Shard` of what JSON has of one; TypeError for other data."""
    shard = Shard(**stored)
    if pathlib.PurePath(shard.file).name != shard.file or not isinstance(shard.rows, int):
        raise TypeError(shard.file)
    return shard
