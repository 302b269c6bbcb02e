"""The header of a GGUF file: its metadata, and where its tensors lie.

It is read here rather than with `gguf.GGUFReader`, which makes a numpy view of every string in the vocabulary (2 s for
49 k tokens; this takes a twentieth of that) and trusts what it finds.

Layout (ggml's `docs/gguf.md`), little endian: magic "GGUF", uint32 version, uint64 tensor count, uint64
metadata count; the metadata as key, type, value; a record a tensor: name, dimensions (fastest first), type,
offset; then the tensor data, aligned.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from massive_jax import files

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MIN_PAIR = 8 + 4 + 1  # bytes of the shortest possible metadata pair and tensor record: bounds for the counts
_MIN_RECORD = 8 + 4 + 8 + 4 + 8
_MAX_ITEMS = 1 << 24  # of an array, and bytes of a string: many times the largest vocabulary, and little memory
_MAX_STRING = 1 << 28
_MAX_NAME = 1 << 16  # bytes of a key (the specification's limit) or of a tensor's name
_ALIGNMENT = 32  # where general.alignment does not say
_SHOWN = 300  # letters of a message that may quote what a damaged file holds

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
# GGML types that are plain arrays of floats; others that hold weights are blocks that `gguf` unpacks.
PLAIN: Mapping[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
}
_REST = 1 << 20  # bytes after the last tensor that are looked at: zeros, as padding is
_INTEGERS = ("I8", "I16", "I32", "I64")


class Record(NamedTuple):
    """Says where a tensor lies.

    Attributes:
      shape: row-major, as numpy has it.
      kind: the GGML type's name, such as "Q4_1".
      offset: in bytes from the start of the tensor data.
      size: bytes it takes in the file.
    """

    shape: tuple[int, ...]
    kind: str
    offset: int
    size: int


class Header(NamedTuple):
    """Holds what stands before the tensor data.

    Attributes:
      metadata: keys as in the file, arrays as lists.
      records: a tensor's name -> where it lies.
      start: byte of the file at which the tensor data starts.
    """

    metadata: dict[str, Any]
    records: dict[str, Record]
    start: int


def bad(location: str, reason: str) -> ValueError:
    """Gives the error for a damaged file; `reason` may quote it."""
    reason = files.printable(reason)
    shown = reason if len(reason) <= _SHOWN else reason[: _SHOWN // 2] + " … " + reason[-_SHOWN // 2 :]
    return ValueError(f"{location} is not a usable GGUF file: {shown}. Fetch or convert it again.")


def read_header(data: mmap.mmap, location: str) -> Header:
    """Reads the header of a mapped file, and checks that its tensors can lie where it says.

    Args:
      data: the whole file.
      location: its name, for messages.

    Raises:
      ValueError: not GGUF, big endian, of another version, cut short; or a tensor's record that no writer makes: of
        a type that is neither float nor a known quantisation, empty, twice, past the file's end, or not right after
        the tensor before it, which is llama.cpp's rule (`ggml/src/gguf.cpp`).
    """
    cursor = _Cursor(data, location)
    if (magic := data[:4]) != _MAGIC:
        raise bad(location, f"it starts with {magic!r} where a GGUF file has {_MAGIC!r} – it is another format")
    cursor.need(4, "the magic")
    version = cursor.scalar(4, "the version")
    if version not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise ValueError(f"{location} is a big-endian GGUF file; only little-endian ones can be read.")
        raise ValueError(f"{location} is GGUF version {version}; this reads versions 2 and 3. Convert the model again.")
    tensor_count = cursor.count(_MIN_RECORD, "the number of tensors")
    pair_count = cursor.count(_MIN_PAIR, "the number of metadata pairs")

    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.string("a metadata key", _MAX_NAME)
        if key in metadata:
            raise bad(location, f"the metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(key)

    records: dict[str, Record] = {}
    repeated = []
    for _ in range(tensor_count):
        name = cursor.string("a tensor's name", _MAX_NAME)
        if files.printable(name) != name:
            raise bad(location, f"a tensor's name holds control characters: {name}")
        if name in records:
            repeated.append(name)
        records[name] = _record(cursor, name)
    if repeated:
        raise bad(location, f"these tensor names occur more than once: {files.listed(repeated)}")

    alignment = metadata.get("general.alignment", _ALIGNMENT)
    sound = isinstance(alignment, int) and not isinstance(alignment, bool) and 8 <= alignment <= 1 << 20
    if not sound or alignment & (alignment - 1):
        raise bad(location, f"general.alignment is {alignment!r}; expected a power of two from 8 to {1 << 20}")
    header = Header(metadata, records, _round_up(cursor.at, alignment))
    _check_places(header, alignment, data, location)
    return header


def _record(cursor: _Cursor, name: str) -> Record:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    location = cursor.location
    dims = cursor.scalar(4, f"the number of dimensions of {name}")
    if not 1 <= dims <= _MAX_DIMS:
        raise bad(location, f"tensor {name} has {dims} dimensions; expected 1 to {_MAX_DIMS}")
    shape = tuple(cursor.scalar(10, f"a dimension of {name}") for _ in range(dims))[::-1]
    number = cursor.scalar(4, f"the type of {name}")
    offset = cursor.scalar(10, f"the offset of {name}")
    if number not in GGML_QUANT_SIZES:
        raise ValueError(
            f"{location}: tensor {files.printable(name)} has the type {number}, which the gguf package does not know."
            " Update gguf, or use another quantisation of this model."
        )
    kind = GGMLQuantizationType(number)
    if kind.name not in PLAIN and not _can_unpack(number):
        what = "integers are no weights" if kind.name in _INTEGERS else "the gguf package cannot dequantise it"
        raise ValueError(
            f"{location}: tensor {files.printable(name)} is stored as {kind.name}: {what}; expected floats or a"
            " quantisation. Use another quantisation of this model, such as Q8_0 or F16."
        )
    if min(shape) < 1:
        raise bad(location, f"tensor {name} has the empty shape {shape}")
    block, size = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise bad(
            location, f"tensor {name} of type {kind.name} has rows of {shape[-1]}; expected a multiple of {block}"
        )
    return Record(shape, kind.name, offset, math.prod(shape) // block * size)


@functools.cache
def _can_unpack(number: int) -> bool:
    """Whether the `gguf` package makes floats of this type, which it says when asked to."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    kind = GGMLQuantizationType(number)
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _check_places(header: Header, alignment: int, data: mmap.mmap, location: str) -> None:
    """Refuses tensors past the file's end, tensors that are not one after the other, and data that belongs to none."""
    size, end = len(data), 0
    past = [name for name, record in header.records.items() if header.start + record.offset + record.size > size]
    if past:
        raise bad(
            location,
            f"the data of {len(past)} of {len(header.records)} tensors lies past its end ({size} bytes):"
            f" {files.listed(past, 5)} – the file is cut short",
        )
    expected = 0
    for name, record in header.records.items():
        if record.offset != expected:
            raise bad(
                location,
                f"the data of tensor {name} starts at byte {record.offset} of the tensor data; expected {expected},"
                f" where the tensors before it end (aligned to {alignment}) – its offset, or the type or shape of the"
                " one before, is damaged",
            )
        end = record.offset + record.size
        expected = _round_up(end, alignment)
    rest = data[header.start + end : header.start + end + _REST].lstrip(b"\0")
    if header.records and rest:
        raise bad(
            location,
            f"there is data after the last tensor, {name}: its type or shape, or general.alignment, is damaged",
        )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class _Cursor:
    """A place in the mapped file, which checks every size against what is left of it.

    Sizes come from the file, so each is compared with the bytes that remain before anything is allocated.
    """

    def __init__(self, data: mmap.mmap, location: str):
        self.data, self.at, self.location = data, 0, location

    def need(self, size: int, what: str) -> int:
        """Moves past `size` bytes and returns where they begin."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise bad(
                self.location,
                f"{what} at byte {start} would end at byte {self.at}, past the file's end ({len(self.data)})"
                " – it is cut short or damaged",
            )
        return start

    def scalar(self, kind: int, what: str) -> Any:
        dtype = _SCALARS[kind]
        start = self.need(dtype.itemsize, what)
        return np.frombuffer(self.data, dtype, 1, start)[0].item()

    def count(self, smallest: int, what: str, most: int | None = None) -> int:
        """A uint64 count of things that take at least `smallest` bytes each, `most` of them at most."""
        number = self.scalar(10, what)
        if number * smallest > len(self.data) - self.at:
            raise bad(self.location, f"{what} is {number}, more than the file can hold ({len(self.data)} bytes)")
        if most is not None and number > most:
            raise bad(self.location, f"{what} is {number}; expected at most {most}")
        return number

    def string(self, what: str, most: int = _MAX_STRING) -> str:
        size = self.count(1, f"the length of {what}", most)
        start = self.need(size, what)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise bad(self.location, f"{what} is not UTF-8: {error}") from None

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
            raise bad(self.location, f"{what} holds a string that is not UTF-8: {error}") from None

    def value(self, key: str) -> Any:
        kind = self.scalar(4, f"the type of {key}")
        if kind == _STRING:
            return self.string(key)
        if kind in _SCALARS:
            return self.scalar(kind, key)
        if kind != _ARRAY:
            raise bad(self.location, f"metadata {key} has the unknown type {kind}")
        item = self.scalar(4, f"the item type of {key}")
        if item == _STRING:
            return self.strings(self.count(8, f"the length of {key}", _MAX_ITEMS), key)
        if item not in _SCALARS:
            raise bad(self.location, f"metadata {key} is an array of the unsupported type {item}")
        count = self.count(_SCALARS[item].itemsize, f"the length of {key}", _MAX_ITEMS)
        start = self.need(count * _SCALARS[item].itemsize, key)
        return np.frombuffer(self.data, _SCALARS[item], count, start).tolist()
