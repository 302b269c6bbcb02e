"""Tokens on disk, and batches of them in an order that a seed fixes. B sequences, T tokens of each.

A token file is raw little-endian uint16 or uint32, one number a token, as nanoGPT's; beside it a JSON sidecar
(`train.bin.json`) says how many there are, of which vocabulary, and their checksum. It is read through a memory map.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from massive_jax.arguments import is_index
from massive_jax.files import Path, local, read_json, size_of, user_path, write_json

FORMAT = 1
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
_PIECE = 1 << 24  # tokens that are checked at one time


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """Describes a file of tokens, as its sidecar does.

    Attributes:
      path: of the tokens.
      dtype: "uint16" or "uint32".
      count: number of tokens.
      vocab_size: of the tokenizer; every token is below it.
      sha256: of the file.
      text: what it was made from.
      tokenizer_name: which tokenizer made it.
      tokenizer: as `Tokenizer.to_json` gives it; None where it is not known.
      fingerprint: of text and tokenizer, so that the same work is not done twice; None for adopted files.
    """

    path: Path
    dtype: str
    count: int
    vocab_size: int
    sha256: str
    text: str
    tokenizer_name: str
    tokenizer: Mapping[str, Any] | None = None
    fingerprint: str | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> TokenFile:
        """Opens the token file at `path`.

        Args:
          path: of the tokens; the sidecar is beside it.
          verify: reads it whole, to compare the checksum.

        Raises:
          ValueError: no file or no sidecar there; another size or checksum than the sidecar says.
        """
        path = user_path(path)
        if not path.is_file() or not sidecar(path).is_file():
            raise ValueError(
                f"no token file {str(path)!r} with {sidecar(path).name} beside it; make one with "
                "python -m experiments.prepare_data."
            )
        found = _described(path)
        size, expected = size_of(path), found.count * np.dtype(DTYPES[found.dtype]).itemsize
        if size != expected:
            raise ValueError(f"{path} has {size} bytes, its sidecar says {expected}; prepare the data again.")
        if verify and (digest := _scan(local(path), found.dtype)[0]) != found.sha256:
            raise ValueError(
                f"{path} has the checksum {digest[:12]}…, its sidecar says {found.sha256[:12]}…: it is damaged, or "
                "belongs to another sidecar; prepare the data again."
            )
        return found

    def write_sidecar(self) -> None:
        """Writes the sidecar."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "path"}
        write_json(sidecar(self.path), {"format": FORMAT, **fields})

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """Gives the tokens as a read-only memory map [count]; those in a store are fetched."""
        return np.memmap(local(self.path), DTYPES[self.dtype], mode="r")

    def split(self, validation: float, context: int) -> tuple[range, range]:
        """Says where training and validation tokens are: the last `validation` of the file are held out.

        Raises:
          ValueError: either part is too short for one window of `context` tokens and the token after it.
        """
        return split_tokens(self.count, validation, context, self.path)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises a ValueError unless a model with `vocab_size` tokens can take every token of the file."""
        if self.vocab_size > vocab_size:
            raise ValueError(
                f"{self.path} has tokens of a vocabulary of {self.vocab_size} ({self.tokenizer_name}), more than the "
                f"model's {vocab_size}; give the model at least that many."
            )

    def unigram_entropy(self, part: range) -> float:
        """Computes the entropy of the token frequencies of `part`, in nats: a loss that knows nothing else."""
        counts = np.zeros(self.vocab_size, np.int64)
        for start in range(part.start, part.stop, _PIECE):
            piece = self.tokens[start : min(start + _PIECE, part.stop)]
            counts += np.bincount(piece, minlength=self.vocab_size)
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())


def split_tokens(count: int, validation: float, context: int, name: object) -> tuple[range, range]:
    """Says where training and validation tokens are among `count`, those of `name`; see `TokenFile.split`."""
    cut = round(count * (1 - validation))
    parts = range(0, cut), range(cut, count)
    for part, what in zip(parts, ("training", "validation"), strict=True):
        if len(part) < context + 1:
            raise ValueError(
                f"{name} has {len(part)} tokens for {what}, and a window needs {context + 1}; give a longer text or a "
                "shorter context."
            )
    return parts


def sidecar(path: Path) -> Path:
    """Says where the description of the token file `path` is."""
    return path.with_name(path.name + ".json")


def _described(path: Path) -> TokenFile:
    """What the sidecar of `path` says; ValueError where it is none."""
    stored = read_json(sidecar(path))
    if isinstance(stored, dict) and stored.pop("format", None) == FORMAT:
        with contextlib.suppress(TypeError):  # a field too many, or too few
            found = TokenFile(path=path, **stored)
            if found.dtype in DTYPES and is_index(found.count) and is_index(found.vocab_size):
                return found
    raise ValueError(f"{sidecar(path)} is damaged, or not of format {FORMAT}; prepare the data again.")


def adopt(
    path: str | os.PathLike[str], *, vocab_size: int, dtype: str = "uint16", tokenizer_name: str = "unknown"
) -> TokenFile:
    """Writes the sidecar of a token file that something else made, such as nanoGPT's train.bin.

    Raises:
      ValueError: no such file, one that is not a whole number of tokens, a token that is not below `vocab_size`.
    """
    path = user_path(path)
    if not path.is_file():
        raise ValueError(f"no token file {str(path)!r}.")
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    size = size_of(path)
    if not size or size % itemsize:
        raise ValueError(f"{path} has {size} bytes, which is no whole number of {dtype} tokens.")
    digest, largest = _scan(local(path), dtype)
    if largest >= vocab_size:
        raise ValueError(f"{path} has the token {largest}, above a vocabulary of {vocab_size} (0 to {vocab_size - 1}).")
    found = TokenFile(path, dtype, size // itemsize, vocab_size, digest, path.name, tokenizer_name)
    found.write_sidecar()
    return found


@dataclasses.dataclass(frozen=True)
class RandomWindows:
    """Picks random windows of a part of a token file, by number: the seed and the number fix the window.

    Attributes:
      file, part, context, bos: see `batches_of`.
      seed: of the windows.
    """

    file: TokenFile
    part: range
    context: int
    seed: int
    bos: int | None

    def __len__(self) -> int:
        return 1 << 48  # more than anyone trains on

    def __getitem__(self, index: Any) -> np.ndarray:
        """Window `index`: int32 [T + 1], the inputs and the token after them."""
        last = len(self.part) - self.context - 1
        start = self.part.start + int(np.random.default_rng((self.seed, int(index))).integers(0, last + 1))
        return _window(self.file, start, self.context, self.bos)


def batches_of(
    file: TokenFile,
    part: range,
    *,
    context: int,
    batch: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    bos: int | None = None,
) -> Any:
    """Makes endless batches of random windows, int32 [B, T + 1], as an iterator of grain.

    Its `get_state` and `set_state` (plain JSON) put it back exactly where it was: batch n holds the windows n·B to
    n·B + B - 1, whatever was read before.

    Args:
      file: the tokens.
      part: which of them, as `TokenFile.split` gives it.
      context: T.
      batch: B, of this process.
      seed: of the windows.
      shard: (number, count) of this process: it takes every count-th window.
      bos: a token that every window begins with, before T of the file's; None for T + 1 of the file's.
    """
    import grain

    number, count = shard
    windows = grain.MapDataset.source(RandomWindows(file, part, context, seed, bos))[number::count].batch(batch)
    return iter(windows.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def even_windows(file: TokenFile, part: range, *, context: int, count: int, bos: int | None = None) -> np.ndarray:
    """Cuts `count` windows spread evenly over `part`, always the same: int32 [count, T + 1]; they may overlap.

    With `bos` each begins with that token, before T of the file's.
    """
    starts = np.linspace(part.start, part.stop - context - 1, count).astype(np.int64)
    return np.stack([_window(file, int(start), context, bos) for start in starts])


def _window(file: TokenFile, start: int, context: int, bos: int | None) -> np.ndarray:
    """int32 [T + 1] from the file's token `start` on."""
    if bos is None:
        return np.asarray(file.tokens[start : start + context + 1], np.int32)
    return np.concatenate([np.asarray([bos], np.int32), np.asarray(file.tokens[start : start + context], np.int32)])


def _scan(path: pathlib.Path, dtype: str) -> tuple[str, int]:
    """Checksum and largest token of a file, a piece at a time."""
    digest, largest = hashlib.sha256(), 0
    for piece in _pieces(path, dtype):
        digest.update(piece.data)
        largest = max(largest, int(piece.max()))
    return digest.hexdigest(), largest


def _pieces(path: pathlib.Path, dtype: str) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while (piece := np.fromfile(file, DTYPES[dtype], _PIECE)).size:
            yield piece
