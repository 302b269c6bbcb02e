"""Weights from a GGUF file.

The header is read here rather than with `gguf.GGUFReader`, which makes a numpy view of every string in the
vocabulary (2 s for 49 k tokens; this takes a twentieth of that) and trusts the sizes it finds. What the
quantised blocks mean is left to the `gguf` package.

Layout (ggml's `docs/gguf.md`), little endian: magic "GGUF", uint32 version, uint64 tensor count, uint64
metadata count; the metadata as key, type, value; a record a tensor: name, dimensions (fastest first), type,
offset; then the tensor data, aligned.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from massive_jax import files
from massive_jax.weights import source

if TYPE_CHECKING:
    from massive_jax.inputs.tokenizer import Tokenizer
    from massive_jax.weights.layout import Memory

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MIN_PAIR = 8 + 4 + 1  # bytes of the shortest possible metadata pair and tensor record: bounds for the counts
_MIN_RECORD = 8 + 4 + 8 + 4 + 8

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
# GGML types that are plain arrays; every other one is blocks that `gguf` unpacks.
_PLAIN: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


class _Record(NamedTuple):
    """Where a tensor lies: `offset` is from the start of the tensor data."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class _Header:
    """A cursor over the mapped file that checks every size against what is left of it.

    Sizes come from the file, so each is compared with the bytes that remain before anything is allocated.
    """

    def __init__(self, data: mmap.mmap, location: str):
        self.data, self.at, self.location = data, 0, location

    def need(self, size: int, what: str) -> int:
        """Moves past `size` bytes and returns where they begin."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise _bad(
                self.location,
                f"{what} at byte {start} would end at byte {self.at}, past the file's end ({len(self.data)})"
                " – it is cut short or damaged",
            )
        return start

    def scalar(self, kind: int, what: str) -> Any:
        dtype = _SCALARS[kind]
        start = self.need(dtype.itemsize, what)
        return np.frombuffer(self.data, dtype, 1, start)[0].item()

    def count(self, smallest: int, what: str) -> int:
        """A uint64 count of things that take at least `smallest` bytes each."""
        number = self.scalar(10, what)
        if number * smallest > len(self.data) - self.at:
            raise _bad(self.location, f"{what} is {number}, more than the file can hold ({len(self.data)} bytes)")
        return number

    def string(self, what: str) -> str:
        size = self.count(1, f"the length of {what}")
        start = self.need(size, what)
        return self._decode(start, self.at, what)

    def strings(self, count: int, what: str) -> list[str]:
        # The one hot loop: vocabularies hold hundreds of thousands of strings.
        data, at, end, unpack = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        found: list[bytes] = []
        for _ in range(count):
            start = at + 8
            if start > end or (at := start + unpack(data, start - 8)[0]) > end:
                self.at = end
                self.need(1, f"string {len(found)} of {count} in {what}")
            found.append(data[start:at])
        self.at = at
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError as error:
            raise _bad(self.location, f"{what} holds a string that is not UTF-8: {error}") from None

    def value(self, key: str) -> Any:
        kind = self.scalar(4, f"the type of {key}")
        if kind == _STRING:
            return self.string(key)
        if kind in _SCALARS:
            return self.scalar(kind, key)
        if kind != _ARRAY:
            raise _bad(self.location, f"metadata {key} has the unknown type {kind}")
        item = self.scalar(4, f"the item type of {key}")
        if item == _STRING:
            return self.strings(self.count(8, f"the length of {key}"), key)
        if item not in _SCALARS:
            raise _bad(self.location, f"metadata {key} is an array of the unsupported type {item}")
        count = self.count(_SCALARS[item].itemsize, f"the length of {key}")
        start = self.need(count * _SCALARS[item].itemsize, key)
        return np.frombuffer(self.data, _SCALARS[item], count, start).tolist()

    def _decode(self, start: int, end: int, what: str) -> str:
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError as error:
            raise _bad(self.location, f"{what} is not UTF-8: {error}") from None


class GGUFSource(source.Source):
    """A GGUF file, version 2 or 3; see `Source`.

    `config` is the raw metadata, keys as in the file ("llama.block_count"), arrays as lists.

    Args:
      path: the .gguf file.

    Raises:
      ValueError: missing, cut short, not GGUF, big endian, or of a version this cannot read.
    """

    format = "gguf"

    def __init__(self, path: str | os.PathLike[str]):
        self._path = files.existing_path(path, "GGUF file")
        self.location = str(self._path)
        if self._path.is_dir():
            raise ValueError(
                f"{self.location} is a directory; expected a .gguf file. Name the file in it, or load the"
                " directory as a Hugging Face checkpoint."
            )
        try:
            self._file = open(self._path, "rb")  # noqa: SIM115  (held until close())
        except OSError as error:
            raise ValueError(f"GGUF file {self.location} cannot be opened: {error.strerror}.") from None
        self._lock = threading.Lock()
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            if self._size == 0:  # mmap refuses it with a message about mmap
                raise _bad(self.location, "it is empty")
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.config, self._records, self._start = _read_header(data, self.location)
            self.tensors = self._describe()
            self.files = [self._path]
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str, memory: Memory | None = None) -> np.ndarray:
        """One tensor; a quantised one as float32. See `Source.read`."""
        if name not in self._records:
            raise source.no_such_tensor(name, self)
        del memory  # the file is mapped
        record, info = self._records[name], self.tensors[name]
        raw = self._bytes(name, record)
        if (plain := _PLAIN.get(_type_name(record.kind))) is not None:
            return raw.view(plain).reshape(info.shape)
        from gguf import GGMLQuantizationType, quants

        rows = raw.reshape(*info.shape[:-1], -1)
        try:
            values = quants.dequantize(rows, GGMLQuantizationType(record.kind))
        except NotImplementedError:
            raise ValueError(
                f"{self.location}: tensor {name} is stored as {info.dtype}, which the gguf package cannot"
                " dequantise. Use another quantisation of this model, such as Q8_0 or F16."
            ) from None
        return values.reshape(info.shape).astype(np.float32, copy=False)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the metadata; None where the file has no vocabulary."""
        if self.config.get("tokenizer.ggml.model", "none") in ("none", "no_vocab"):
            return None
        from massive_jax.inputs.tokenizer import Tokenizer

        try:
            return Tokenizer.from_gguf(self.config)
        except ValueError as error:
            raise ValueError(f"{self.location}: {error}") from None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _bytes(self, name: str, record: _Record) -> np.ndarray:
        """The stored bytes of a tensor, read rather than mapped so that they count once in memory."""
        raw = np.empty(_stored_size(record), np.uint8)
        with self._lock:
            try:
                self._file.seek(self._start + record.offset)
                got = self._file.readinto(raw.data)
            except (OSError, ValueError) as error:  # ValueError: the file was closed
                raise ValueError(f"{self.location}: tensor {name} cannot be read: {error}.") from None
        if got != raw.size:
            raise _bad(self.location, f"tensor {name} ends early; the file has shrunk since it was opened")
        return raw

    def _describe(self) -> Mapping[str, source.TensorInfo]:
        """`tensors`, once every record is known to be sound and to lie inside the file."""
        found, past = {}, []
        for name, record in self._records.items():
            _check_rows(self.location, name, record)
            if self._start + record.offset + _stored_size(record) > self._size:
                past.append(name)
            kind = _type_name(record.kind)
            dtype = _PLAIN[kind].name if kind in _PLAIN else kind
            found[name] = source.TensorInfo(record.shape, dtype)
        if past:
            raise _bad(
                self.location,
                f"the data of {len(past)} of {len(found)} tensors lies past its end ({self._size} bytes):"
                f" {files.listed(past, 5)} – the file is cut short",
            )
        return MappingProxyType(found)


def _read_header(data: mmap.mmap, location: str) -> tuple[dict[str, Any], dict[str, _Record], int]:
    """The metadata, the tensor records, and where the tensor data starts."""
    header = _Header(data, location)
    if (magic := data[:4]) != _MAGIC:
        raise _bad(location, f"it starts with {magic!r} where a GGUF file has {_MAGIC!r} – it is another format")
    header.need(4, "the magic")
    version = header.scalar(4, "the version")
    if version not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise ValueError(f"{location} is a big-endian GGUF file; only little-endian ones can be read.")
        raise ValueError(f"{location} is GGUF version {version}; this reads versions 2 and 3. Convert the model again.")
    tensor_count = header.count(_MIN_RECORD, "the number of tensors")
    pair_count = header.count(_MIN_PAIR, "the number of metadata pairs")

    config: dict[str, Any] = {}
    for _ in range(pair_count):
        key = header.string("a metadata key")
        if key in config:
            raise _bad(location, f"the metadata key {key!r} occurs twice")
        config[key] = header.value(key)

    records: dict[str, _Record] = {}
    repeated = []
    for _ in range(tensor_count):
        name = header.string("a tensor's name")
        dims = header.scalar(4, f"the number of dimensions of {name}")
        if not 1 <= dims <= _MAX_DIMS:
            raise _bad(location, f"tensor {name} has {dims} dimensions; expected 1 to {_MAX_DIMS}")
        shape = tuple(header.scalar(10, f"a dimension of {name}") for _ in range(dims))
        kind = header.scalar(4, f"the type of {name}")
        offset = header.scalar(10, f"the offset of {name}")
        if name in records:
            repeated.append(name)
        records[name] = _Record(shape[::-1], kind, offset)
    if repeated:
        raise _bad(location, f"these tensor names occur more than once: {files.listed(repeated)}")

    alignment = config.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _bad(location, f"general.alignment is {alignment!r}; expected a power of two")
    return config, records, -(-header.at // alignment) * alignment


def _check_rows(location: str, name: str, record: _Record) -> None:
    """Refuses a type or shape that no file can have; the sizes below rely on it."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if record.kind not in GGML_QUANT_SIZES:
        raise ValueError(
            f"{location}: tensor {name} has the type {record.kind}, which the gguf package does not know."
            " Update gguf, or use another quantisation of this model."
        )
    if min(record.shape) < 1:
        raise _bad(location, f"tensor {name} has the empty shape {record.shape}")
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType(record.kind)]
    if record.shape[-1] % block:
        raise _bad(
            location,
            f"tensor {name} of type {_type_name(record.kind)} has rows of {record.shape[-1]};"
            f" expected a multiple of {block}",
        )


def _stored_size(record: _Record) -> int:
    """Bytes the tensor takes in the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(record.kind)]
    return math.prod(record.shape) // block * size


def _type_name(kind: int) -> str:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(kind).name


def _bad(location: str, reason: str) -> ValueError:
    return ValueError(f"{location} is not a usable GGUF file: {reason}. Fetch or convert it again.")
