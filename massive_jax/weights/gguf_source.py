"""Weights from a GGUF file, or from the several that a model is split into.

`massive_jax.weights.gguf_header` reads what is in front of the tensors. What the quantised blocks mean is left to the
`gguf` package.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pathlib
import re
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax import files
from massive_jax.weights import source
from massive_jax.weights.gguf_header import PLAIN, Record, bad, read_header

if TYPE_CHECKING:
    from massive_jax.inputs.tokenizer import Tokenizer
    from massive_jax.weights.layout import Memory

_SHARD_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MAX_SHARDS = 99999  # what five digits can say


class _Shard:
    """One file, open."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115  (held until close())
        except OSError as error:
            raise ValueError(f"GGUF file {path} cannot be opened: {error.strerror}.") from None
        self._lock = threading.Lock()
        try:
            if os.fstat(self._file.fileno()).st_size == 0:  # mmap refuses it with a message about mmap
                raise bad(str(path), "it is empty")
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.metadata, self.records, self._start = read_header(data, str(path))
        except BaseException:
            self.close()
            raise

    def setting(self, name: str) -> int | None:
        """The count or number under "split.`name`"; None where there is none."""
        value = self.metadata.get(f"split.{name}")
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            raise bad(str(self.path), f"split.{name} is {value!r}; expected a number of the split model, 0 or more")
        return value

    def read(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor, read rather than mapped so that they count once in memory."""
        record = self.records[name]
        raw = np.empty(record.size, np.uint8)
        with self._lock:
            try:
                self._file.seek(self._start + record.offset)
                got = self._file.readinto(raw.data)
            except (OSError, ValueError) as error:  # ValueError: the file was closed
                raise ValueError(f"{self.path}: tensor {files.printable(name)} cannot be read: {error}.") from None
        if got != raw.size:
            raise bad(str(self.path), f"tensor {name} ends early; the file has shrunk since it was opened")
        return raw

    def close(self) -> None:
        self._file.close()


class GGUFSource(source.Source):
    """Reads a GGUF file, version 2 or 3, or all the files of a split model; see `Source`.

    `config` is the raw metadata, keys as in the file ("llama.block_count"), arrays as lists; of a split model the first
    file's.

    Args:
      path: the .gguf file; of a split model any of its files ("name-00002-of-00003.gguf"), the others beside it.

    Raises:
      ValueError: missing, cut short, not GGUF, big endian, or of a version this cannot read; a file of a split model
        that is not there, or does not fit the others.
    """

    format = "gguf"

    def __init__(self, path: str | os.PathLike[str]):
        given = _here(path)
        self.location = str(given)
        if given.is_dir():
            raise ValueError(
                f"{self.location} is a directory; expected a .gguf file. Name the file in it, or load the"
                " directory as a Hugging Face checkpoint."
            )
        self._shards: list[_Shard] = []
        try:
            self._shards.append(_Shard(given))
            if (count := self._shards[0].setting("count") or 1) > 1:
                self._open_others(given, count)
            self._where = self._merge()
        except BaseException:
            self.close()
            raise
        self.config = self._shards[0].metadata
        self.tensors: Mapping[str, source.TensorInfo] = MappingProxyType(
            {name: _info(shard.records[name]) for name, shard in self._where.items()}
        )
        self.files = [shard.path for shard in self._shards]

    def read(self, name: str, memory: Memory | None = None) -> np.ndarray:
        """Reads one tensor; a quantised one as float32. See `Source.read`."""
        if name not in self._where:
            raise source.no_such_tensor(name, self)
        del memory  # the file is mapped
        shard = self._where[name]
        raw, record = shard.read(name), shard.records[name]
        if (plain := PLAIN.get(record.kind)) is not None:
            return raw.view(plain).reshape(record.shape)
        from gguf import GGMLQuantizationType, quants

        values = quants.dequantize(raw.reshape(*record.shape[:-1], -1), GGMLQuantizationType[record.kind])
        return values.reshape(record.shape).astype(np.float32, copy=False)

    def weight_type(self) -> str | None:
        """Gives the quantisation of most weights; of a file that mixes several, the name that it gives the mixture.

        A Q4_K_M may have most of its weights in an embedding of Q8_0.
        """
        kinds = {info.dtype for info in self.tensors.values()} - {plain.name for plain in PLAIN.values()}
        number = self.config.get("general.file_type")
        if len(kinds) > 1 and isinstance(number, int):
            from gguf import LlamaFileType

            with contextlib.suppress(ValueError):  # a number that has no name
                name = LlamaFileType(number).name
                if name.startswith("MOSTLY_"):
                    return name.removeprefix("MOSTLY_")
        return super().weight_type()

    def tokenizer(self) -> Tokenizer | None:
        """Gives the tokenizer in the metadata; None where the file has no vocabulary."""
        if self.config.get("tokenizer.ggml.model", "none") in ("none", "no_vocab"):
            return None
        from massive_jax.inputs.tokenizer import Tokenizer

        try:
            return Tokenizer.from_gguf(self.config)
        except ValueError as error:
            raise ValueError(f"{self.location}: {error}") from None

    def close(self) -> None:
        """Closes the files."""
        for shard in self._shards:
            shard.close()

    def _open_others(self, given: pathlib.Path, count: int) -> None:
        """Opens the other files of a split model, whose names follow from that of the first that was opened."""
        (first,) = self._shards
        number = first.setting("no")
        name = _SHARD_NAME.fullmatch(given.name)
        if count > _MAX_SHARDS or number is None or number >= count:
            raise bad(self.location, f"its split.count is {count} and its split.no {number}: no part of a split model")
        own = f"-{number + 1:05}-of-{count:05}.gguf"
        if name is None or not given.name.endswith(own):
            raise ValueError(
                f"{self.location} is part {number + 1} of {count} of a split model, and its name does not say so:"
                f" expected one that ends in {own}. Rename the parts as llama.cpp names them."
            )
        paths = [given.with_name(f"{name['prefix']}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"{self.location} is part {number + 1} of {count} of a split model, of which these files are missing"
                f" in {given.parent}: {files.listed(missing, 5)}. Put all parts into one directory."
            )
        for path in paths[:number] + paths[number + 1 :]:
            self._shards.append(_Shard(path))
        self._shards.sort(key=lambda shard: paths.index(shard.path))
        for i, shard in enumerate(self._shards):
            if (shard.setting("no"), shard.setting("count")) != (i, count):
                raise bad(
                    str(shard.path),
                    f"by its split.no {shard.setting('no')} and split.count {shard.setting('count')} it is not part"
                    f" {i + 1} of the {count} of a split model, as its name says",
                )

    def _merge(self) -> dict[str, _Shard]:
        """The file that each tensor is in, once the files are known to be those of one model."""
        first, where = self._shards[0], dict[str, _Shard]()
        for shard in self._shards:
            other = [
                key
                for key, value in shard.metadata.items()
                if not key.startswith("split.")
                and key != "general.alignment"
                and (key not in first.metadata or not _same(first.metadata[key], value))
            ]
            if other:
                raise bad(
                    str(shard.path),
                    f"its {files.listed(other, 5)} differs from what {first.path.name} says: they are parts of"
                    " different split models",
                )
            twice = sorted(where.keys() & shard.records.keys())
            if twice:
                raise bad(
                    str(shard.path),
                    f"these tensors are in {where[twice[0]].path.name}, another part of the split model, too:"
                    f" {files.listed(twice, 5)}",
                )
            where |= dict.fromkeys(shard.records, shard)
        for shard in self._shards:
            expected = shard.setting("tensors.count")
            if expected is not None and expected != len(where):
                parts = f"its {len(self._shards)} parts have" if len(self._shards) > 1 else "it has"
                raise bad(
                    str(shard.path),
                    f"its split.tensors.count says that the split model has {expected} tensors, and {parts}"
                    f" {len(where)}",
                )
        return where


def _info(record: Record) -> source.TensorInfo:
    return source.TensorInfo(record.shape, PLAIN[record.kind].name if record.kind in PLAIN else record.kind)


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)  # NaN is the same as NaN


def _here(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file on this machine; of a split model in a store, all of them."""
    found = files.existing(path, "GGUF file")
    name = _SHARD_NAME.fullmatch(found.name)
    if name is None or not files.is_remote(found):
        return files.local(found)
    return files.local(found.parent, (f"{name['prefix']}-*.gguf",)) / found.name
