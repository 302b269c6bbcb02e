"""Results as JSON, both ways: a frozen dataclass is the schema of a file.

A field is a key of the same name, unless `inline` or `named` says otherwise. Files that lack a key whose field has a
default are read too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from massive_jax.files import shown

_Record = TypeVar("_Record")
_NOWHERE = "a result"


def inline(**options: Any) -> Any:
    """A field, itself a record, whose keys stand among those of the record that has it."""
    return dataclasses.field(metadata={"inline": True}, **options)


def optional(key: str | None = None, **options: Any) -> Any:
    """A field that is no key where it is None (its default)."""
    return dataclasses.field(default=None, metadata={"optional": True, "key": key}, **options)


def named(key: str, **options: Any) -> Any:
    """A field whose key has another name."""
    return dataclasses.field(metadata={"key": key}, **options)


def unwritten(**options: Any) -> Any:
    """A field that a figure needs and a file does not have."""
    return dataclasses.field(metadata={"unwritten": True}, **options)


def as_json(record: Any) -> dict[str, Any]:
    """Gives the record as a JSON object for `massive_jax.files.write_json`; infinities and NaN stay as they are."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value, how = getattr(record, field.name), field.metadata
        if how.get("unwritten") or (how.get("optional") and value is None):
            continue
        if how.get("inline"):
            found |= as_json(value)
        else:
            found[how.get("key") or field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def as_record(cls: type[_Record], given: Any, where: str = _NOWHERE) -> _Record:
    """Reads `given` as a record of class `cls`: it is one already, or what its JSON file holds; a number's null is nan.

    Raises:
      ValueError: something else, a key that is missing, a value of another type; the message says where.
    """
    if isinstance(given, cls):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {type(given).__name__}; give {cls.__name__}, or what its JSON file holds.")
    values: dict[str, Any] = {}
    kinds = _types(typing.cast("Any", cls))
    for field in dataclasses.fields(typing.cast("Any", cls)):
        kind, key = kinds[field.name], field.metadata.get("key") or field.name
        if field.metadata.get("inline"):
            values[field.name] = _alternative(kind, given, where)
        elif key in given:
            values[field.name] = _value(kind, given[key], f"{where}: {key}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(
                f"{where} has no {key!r}, which {cls.__name__} needs; it has {', '.join(map(str, given))}."
            )
    return cls(**values)


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _options(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _alternative(kind: Any, given: Mapping[str, Any], where: str) -> Any:
    """The first of the classes of which `given` has all the keys that are needed; the last says what is missing."""
    *others, last = _options(kind)
    for cls in others:
        needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        if all(name in given for name in needed):
            return as_record(cls, given, where)
    return as_record(last, given, where)


def _value(kind: Any, given: Any, where: str) -> Any:
    """`given` as a field of type `kind` has it."""
    options = _options(kind)
    if given is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None)) if len(options) > 1 else kind
    if len(options) > 1 and isinstance(given, str) and str in options:
        return given
    origin = typing.get_origin(kind) or kind
    if dataclasses.is_dataclass(kind):
        return as_record(typing.cast("type", kind), given, where)
    if origin is tuple and not isinstance(given, str) and (isinstance(given, Sequence) or hasattr(given, "__array__")):
        item = typing.get_args(kind)[0]
        return tuple(_value(item, one, f"{where}[{i}]") for i, one in enumerate(given))
    if origin is Mapping and isinstance(given, Mapping):
        item = typing.get_args(kind)[1]
        return {str(key): _value(item, one, f"{where}: {key}") for key, one in given.items()}
    if kind is float and given is None:
        return math.nan
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if kind in (int, float, bool, str) and given is not None:
            return kind(given)
    if kind is Any:
        return given
    name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    raise ValueError(f"{where} is {shown(given)}; expected {name}.")
