"""What a caller's numbers must be: one line that names the argument, before anything is compiled or allocated."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

_Number = TypeVar("_Number", int, float)

SEEDS = 1 << 32  # a random key takes 32 bits: a larger seed would be another one's


def is_index(value: object) -> bool:
    """Tells whether `value` is a plain, numpy or jax integer: not a bool, and not an array with axes."""
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Gives `value` as an int.

    Args:
      name: of the argument, for the message.
      value: what was given.
      least: the smallest that will do; None for any.
      most: the largest that will do; None for any.

    Raises:
      ValueError: no whole number (a bool or a float is none), or out of range.
    """
    return _bounded(name, value, operator.index(value) if is_index(value) else None, "whole number", least, most)


def number(name: str, value: Any, least: float | None = None, most: float | None = None) -> float:
    """Gives `value` as a float; arguments and errors as for `whole_number`. A bool is no number, nor is NaN."""
    return _bounded(name, value, _finite(value), "finite number", least, most)


def seed_number(value: Any, name: str = "seed") -> int:
    """Gives the seed of random draws, 32 bits: below 2³², a negative one counted from there; ValueError otherwise."""
    return whole_number(name, value, -SEEDS // 2, SEEDS - 1) % SEEDS


def yes_or_no(name: str, value: Any) -> bool:
    """Gives `value` as a bool; ValueError where it is neither True nor False, such as "no", which would be true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {shown(value)}; give True or False.")
    return bool(value)


def several(value: Any) -> tuple[Any, ...] | None:
    """Gives the items of a list, a tuple or whatever else holds several; None for a text, a mapping, a single thing."""
    if isinstance(value, str | bytes | Mapping) or not np.iterable(value):
        return None
    return tuple(value)


def shown(value: object, limit: int = 80) -> str:
    """Gives `value` as Python writes it, on one line of at most `limit` letters."""
    text = " ".join((str(value.tolist()) if isinstance(value, np.ndarray) else repr(value)).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _bounded(
    name: str, given: Any, found: _Number | None, kind: str, least: float | None, most: float | None
) -> _Number:
    """`found`, the number that was given; ValueError where it is none of its kind, or out of range."""
    if found is not None and (least is None or found >= least) and (most is None or found <= most):
        return found
    raise ValueError(f"{name} is {shown(given)}; give a {kind}{_range(least, most)}.")


def _range(least: float | None, most: float | None) -> str:
    if most is None:
        return "" if least is None else f", {least} or more"
    return f" up to {most:,}" if least is None else f" from {least} to {most:,}"


def _finite(value: Any) -> float | None:
    """`value` as a float; None where it is no finite number, as a bool is none."""
    array = None if isinstance(value, bool | str | bytes | type(None)) else _as_array(value)
    if array is None or array.ndim != 0 or array.dtype.kind not in "iufV":
        return None
    try:
        found = float(array)
    except (TypeError, ValueError):  # a structured scalar, say
        return None
    return found if math.isfinite(found) else None


def _as_array(value: Any) -> np.ndarray | None:
    try:
        return np.asarray(value)
    except Exception:  # rows of different lengths, or an object of a kind that refuses in a way of its own
        return None
