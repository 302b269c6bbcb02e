"""What the value of an edit may be: a number, or an array that fits what is edited; and its form for the program.

A value has the axes of what is edited, as numpy broadcasts: those of the site but for the ones that a single number
names. Or it has all axes of the site, whatever is named: then what is edited is taken from it. Along positions it is
given by column, as a capture gives it and as the tokens are, and compiled by position.
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import shown
from massive_jax.probe.coordinates import SLOTS
from massive_jax.probe.places import Place, Sequences
from massive_jax.probe.sites import AXIS_NAMES, Site


def numpy_of(*arrays: Any) -> Any:
    """Gives numpy, or jax's where one of the arrays is traced: so that nothing is compiled for those that are not."""
    return jnp if any(isinstance(array, jax.core.Tracer) for array in arrays) else np


def number_or_array(given: Any, op: str, dtype: Any) -> Any:
    """Gives the value of an edit in float32: finite where what was given is, and in `dtype` too where it is set.

    Raises:
      ValueError: no number or array of numbers; too large.
    """
    if isinstance(given, jax.core.Tracer):
        if not (jnp.issubdtype(given.dtype, jnp.floating) or given.dtype.kind in "biu"):
            raise ValueError(f"value is {given.dtype}{list(given.shape)}; give a number or an array of numbers.")
        return given.astype(np.float32)
    try:
        array = np.asarray(given)
    except (
        TypeError,
        ValueError,
    ):  # rows of different lengths, or a tensor of another library that numpy has no type of
        array = np.asarray(None)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "biu"):  # None would become nan
        raise ValueError(f"value is {shown(given)}; give a number or an array of numbers.")
    with np.errstate(over="ignore"):
        value = array.astype(np.float32, copy=False)
        for name, cast in (("float32", value), (jnp.dtype(dtype).name, value.astype(dtype))):
            if (op == "set" or name == "float32") and (np.isfinite(array) & ~np.isfinite(cast)).any():
                raise ValueError(f"value is {shown(given)}, which {name} does not hold: it would be infinite.")
    return value


@dataclasses.dataclass(frozen=True)
class Region:
    """Says what is edited: the site, where along which axes, and the sequences it is of."""

    site: Site
    places: Mapping[str, Place]
    sequences: Sequences

    @property
    def axes(self) -> str:
        """Gives the letters of the axes that are edited whole or at several places, the batch first."""
        return "".join(axis for axis in self.site.axes if self._place(axis).index is None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Gives the sizes of these axes."""
        return tuple(self.sequences.sizes[axis] for axis in self.axes)

    def fit(self, value: Any) -> tuple[Any, np.ndarray | None]:
        """Gives a value as the program wants it.

        Args:
          value: float32, as a person gives it.

        Returns:
          A number []; one a dim of the last axis; or an array with all of `axes`, each of its size, by position, or
          of 1. And where it is, bool [B, T], if not wherever the edit is: a value of the tokens that are given says
          nothing of those that are generated.

        Raises:
          ValueError: a shape that does not fit.
        """
        axes, last, sequences = self._axes_of(value), self.site.axes[-1], self.sequences
        if not axes or (axes == last and sequences.own_columns(last) is None):
            return value, None
        if axes[0] != "B":
            value, axes = value.reshape((1,) * (len(self.axes) - len(axes)) + value.shape), self.axes
        only = None
        for dim, axis in enumerate(axes):
            size, place = value.shape[dim], self._place(axis)
            if place.listed is not None and size not in (1, sequences.columns(axis)):
                value = _take(value, dim, _inverse(place.listed, sequences.sizes[axis]))
            elif size > 1:
                own = sequences.own_columns(axis)
                value = value if own is None else _take(value, dim, own)
                if axis == "T" and sequences.new_tokens:
                    prompt = self._of_prompt(place)
                    only = prompt if place.index is None else None
        for axis in axes[::-1]:
            if axis not in self.axes:
                value, axes = self._at(value, axes.index(axis), self._place(axis).index), axes.replace(axis, "")
        return value, only

    def _place(self, axis: str) -> Place:
        return self.places.get(axis, Place())

    def _axes_of(self, value: Any) -> str:
        """The axes that the value has."""
        shape, whole = np.shape(value), self.site.axes
        full = len(shape) in (len(self.axes), len(whole))
        axes = self.axes[len(self.axes) - len(shape) :] if len(shape) <= len(self.axes) else whole
        fits = len(axes) == len(shape)
        for axis, size in zip(axes, shape, strict=False):
            listed, columns = self._place(axis).listed, self.sequences.columns(axis)
            fits &= size == columns or (full and size == 1) or (listed is not None and size == listed.shape[-1])
            if fits and listed is not None and size == listed.shape[-1] > 1:
                self._check_order(axis, listed, size == columns)
        if not fits:
            raise ValueError(self._misfit(shape))
        return axes

    def _check_order(self, axis: str, listed: np.ndarray, whole: bool) -> None:
        """Raises a ValueError where it is not clear which entry of a value is for which of the places listed."""
        name = AXIS_NAMES[axis]
        if (np.diff(np.sort(listed, axis=-1), axis=-1) == 0).any():
            raise ValueError(f"a value with an entry for each {name}, of which one is named twice.")
        if whole and (np.diff(listed, axis=-1) < 0).any():
            raise ValueError(f"a value with an entry for each {name}: name them in ascending order.")

    def _misfit(self, shape: tuple[int, ...]) -> str:
        def words(axis: str) -> str:
            listed, size = self._place(axis).listed, self.sequences.columns(axis)
            return (
                f"{axis}={size}"
                if listed is None or listed.shape[-1] == size
                else f"{axis}={listed.shape[-1]} or {size}"
            )

        if self.site.per_layer and len(shape) == len(self.site.axes) + 1:
            return f"value has shape {shape}; the first axis of a capture is its layers: take one of them."
        last, fitting = self.site.axes[-1], f"[{', '.join(map(words, self.axes))}]"
        if last not in self.axes:
            return f"value has shape {shape}; with a {AXIS_NAMES[last]} given it must be one number, or fit {fitting}."
        size = self.sequences.columns(last)
        return (
            f"value has shape {shape}; give one number, or one for each of the {size} {AXIS_NAMES[last]}s: shape "
            f"({size},), or what fits {fitting}, 1 for all."
        )

    def _of_prompt(self, place: Place) -> np.ndarray:
        """Where the tokens are that are given, bool [B, T]; ValueError where the edit names others."""
        prompt = self.sequences.prompt()
        named = np.zeros_like(prompt) if place.chosen is None else place.chosen
        if place.index is not None:
            named = np.arange(prompt.shape[1]) == np.asarray(place.index)[:, None]
        if (named & ~prompt).any():
            raise ValueError("a value of the tokens that are given, at a position of one that is generated.")
        return prompt

    def _at(self, value: Any, dim: int, index: Any) -> Any:
        """The value at the one place along an axis, which goes."""
        if value.shape[dim] > 1 and np.ndim(index):
            slot = self.sequences.sizes["T"] + index - SLOTS
            index = np.where(index >= SLOTS, slot, np.maximum(index, 0))[:, None]
        if value.shape[dim] > 1:
            value = _take(value, dim, np.atleast_1d(index))
        return value.reshape(value.shape[:dim] + value.shape[dim + 1 :])


def _take(value: Any, dim: int, index: Any) -> Any:
    """Those of `value` along an axis at `index`: [n], or [B, n], one row a sequence."""
    xp = numpy_of(value, index)
    if np.ndim(index) == 1:
        return xp.take(value, index, axis=dim)
    value = xp.broadcast_to(value, (len(index), *value.shape[1:]))
    shape = [1] * value.ndim
    shape[0], shape[dim] = index.shape
    return xp.take_along_axis(value, index.reshape(shape), axis=dim)


def _inverse(listed: np.ndarray, size: int) -> np.ndarray:
    """Of every place, where among those listed it is: [n] or [B, n] -> int [size] or [B, size]; 0 where it is not."""
    found = np.zeros((*listed.shape[:-1], size), int)
    np.put_along_axis(found, listed, np.arange(listed.shape[-1]).reshape((1,) * (listed.ndim - 1) + (-1,)), axis=-1)
    return found
