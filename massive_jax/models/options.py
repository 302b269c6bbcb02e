"""What an option may be, its annotation says; one check reads it. What an option is for stands below it."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

import numpy as np

from massive_jax.arguments import shown
from massive_jax.dtypes import DTYPES


@dataclasses.dataclass(frozen=True)
class _Range:
    """Numbers from `least`, itself only if `closed`, to `most`."""

    words: str
    least: int
    closed: bool = True
    most: float = math.inf

    def __contains__(self, value: Any) -> bool:
        return self.least <= value <= self.most and (self.closed or value != self.least)


_LARGEST = 2**31 - 1  # that indexes a jax array

Size: TypeAlias = Annotated[int, _Range("a positive integer (of 31 bits)", 1, most=_LARGEST)]
"""How many of something that there is in every model."""

Count: TypeAlias = Annotated[int, _Range("an integer (of 31 bits), which must not be negative", 0, most=_LARGEST)]
"""How many of something that there may be."""

NonNegative: TypeAlias = Annotated[float, _Range("a finite number of at least 0", 0)]

Positive: TypeAlias = Annotated[float, _Range("a finite number above 0", 0, closed=False)]

DType: TypeAlias = Annotated[str, DTYPES]


def check_options(config: Any, what: str, inconsistencies: Iterable[str] = ()) -> None:
    """Checks the fields of a dataclass by their annotations, and makes numpy's numbers in them Python's, as JSON wants.

    Args:
      config: the dataclass.
      what: it is called in the message.
      inconsistencies: lines on fields that are fine each by itself and not together; looked at where each is.

    Raises:
      ValueError: with all that is wrong, in one line.
    """
    kind: Any = type(config)
    for name in _hints(kind):
        object.__setattr__(config, name, _plain(getattr(config, name)))  # of one that is being made
    wrong = [(name, hint) for name, hint in _hints(kind).items() if not _fits(getattr(config, name), hint)]
    problems = [_problem(name, getattr(config, name), hint) for name, hint in wrong] or list(inconsistencies)
    if problems:
        raise ValueError(f"{what}: {'; '.join(problems)}.")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain(value: Any) -> Any:
    """`value` without scalars of numpy."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is what the annotation `hint` says."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Annotated:
        return _fits(value, inside[0]) and all(value in allowed for allowed in inside[1:])
    if origin is typing.Literal:
        return isinstance(value, str | None) and value in inside
    if origin is tuple:
        each = inside[:1] * len(value) if inside[-1] is ... and isinstance(value, tuple) else inside
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    if hint in (int, float):  # a bool is neither
        kind = int if hint is int else int | float
        return isinstance(value, kind) and not isinstance(value, bool) and _is_finite(value)
    return isinstance(value, hint)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return False


def _problem(name: str, value: Any, hint: Any) -> str:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    words = inside if origin is typing.Literal else inside[-1] if origin is Annotated else None
    if isinstance(words, tuple):
        return f"{name} {shown(value)} is not one of {', '.join(map(str, words))}"
    return f"{name} is {shown(value)}, expected {_words(hint)}"


def _words(hint: Any) -> str:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, inside))
    if origin is Annotated:
        return inside[1].words
    if origin is tuple:
        return f"a tuple of {'any number of ' if inside[-1] is ... else f'{len(inside)} times '}{_words(inside[0])}"
    known = {int: "an integer", float: "a finite number", bool: "True or False", str: "a text", type(None): "None"}
    return known.get(hint) or f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"
