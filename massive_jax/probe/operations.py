"""The operations of an `Edit`: one table of what each does, takes, and is called.

What an operation draws by chance is drawn by position: by the seed, the layer, the number of the edit, and the position
of a token (and key) in its own sequence. So a sequence is changed in a batch as it is by itself.
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from massive_jax.probe.coordinates import Coordinates
from massive_jax.probe.sites import Site


@dataclasses.dataclass(frozen=True)
class Selection:
    """Holds what an operation finds.

    Attributes:
      x: the whole tensor of the site.
      index: where in it the edited elements are, an index for `x.at`.
      positions: axis letter -> int32 [B], the position in each sequence, for the position and key axes that the edit
        indexes.
      axes: letters of the axes that are edited whole, the batch first.
      old: the edited elements [B, ...], float32 (float64), zeros at padding.
      value: broadcast to `old`.
      key: a random key for this edit in this layer.
      site: of x.
      coordinates: of x.
    """

    x: jax.Array
    index: tuple[Any, ...]
    positions: Mapping[str, jax.Array]
    axes: str
    old: jax.Array
    value: jax.Array
    key: jax.Array
    site: Site
    coordinates: Coordinates

    def size(self, axis: str) -> int:
        """Counts the columns of `x` along an axis."""
        return self.x.shape[self.site.axes.index(axis)]


@dataclasses.dataclass(frozen=True)
class Operation:
    """Describes one operation.

    Attributes:
      apply: gives the new elements, shaped as `Selection.old`.
      words: what it does to x.
      number: what its value is, in words; None for an operation that has none.
      whole_sequence: whether what it does to one token depends on the others of the sequence.
      done: what has been done to a single number, in words, with {} for the value; None for an operation that needs
        more than one number to do anything.
      drawn: whether chance, that is the seed of the edit, has a part in it.
    """

    apply: Callable[[Selection], jax.Array]
    words: str
    number: str | None = None
    whole_sequence: bool = False
    done: str | None = None
    drawn: bool = False


def _noise(found: Selection) -> jax.Array:
    """`old` and value times a standard normal number of each element's own."""
    keys, drawn_by = found.key[None], ""
    for name in ("position", "key"):
        axis = found.site.axis_of(name)
        if axis is None:
            continue
        if axis in found.positions:
            positions = found.positions[axis]
        else:
            positions, drawn_by = found.coordinates.lasting(axis, found.size(axis)), drawn_by + axis
            keys = keys[..., None]
        # Keys [b, …] of the axes before, and positions [b] or [b, size] -> [b, …] or [b, …, size].
        positions = positions.reshape(len(positions), *(1,) * (keys.ndim - positions.ndim), *positions.shape[1:])
        shape = jnp.broadcast_shapes(keys.shape, positions.shape)
        keys, positions = (jnp.broadcast_to(a, shape).reshape(-1) for a in (keys, positions))
        keys = jax.vmap(jax.random.fold_in)(keys, positions).reshape(shape)
    others = "".join(axis for axis in found.axes[1:] if axis not in drawn_by)
    shape = tuple(found.size(axis) for axis in others)
    drawn = jax.vmap(lambda key: jax.random.normal(key, shape, found.old.dtype))(keys.reshape(-1))
    drawn = drawn.reshape(*keys.shape, *shape)
    order = [0, *(1 + (drawn_by + others).index(axis) for axis in found.axes[1:])]
    return found.old + found.value * jnp.transpose(drawn, order)


def _shuffle(found: Selection) -> jax.Array:
    """The elements at another position of the sequence: one random cycle through all its positions."""
    time = found.site.axis_of("position") or ""
    t, size, B = found.site.axes.index(time), found.size(time), len(found.x)
    positions = found.coordinates.along(time, size)
    scores = jax.vmap(lambda p: jax.random.bits(jax.random.fold_in(found.key, p)))(positions.reshape(-1))
    # Positions in the order of their scores, padding last: the cycle, which leaves no token its own values.
    order = jnp.lexsort((scores.reshape(positions.shape), positions < 0), axis=-1)
    after = (jnp.arange(size) + 1) % jnp.maximum(found.coordinates.count(time, size), 1)[:, None]
    following = jnp.take_along_axis(order, after, axis=1)
    rows = jnp.arange(len(order))[:, None]
    source = jnp.broadcast_to(jnp.zeros_like(order).at[rows, order].set(following), (B, size))
    moved, other = list(found.index), found.x
    if time in found.positions:
        moved[t] = jnp.take_along_axis(source, jnp.clip(found.index[t], 0, size - 1)[:, None], axis=1)[:, 0]
    else:
        shape = [B, *(size if i == t else 1 for i in range(1, other.ndim))]
        other = jnp.take_along_axis(other, source.reshape(shape), axis=t)
    return other.at[tuple(moved)].get(mode="fill", fill_value=0).astype(found.old.dtype)


def nearest(x: jax.Array, largest: jax.Array, bits: Any) -> jax.Array:
    """Gives the nearest of 2^bits - 1 evenly spaced numbers from -largest to largest."""
    step = jnp.maximum(largest / (2.0 ** (bits - 1) - 1), jnp.finfo(jnp.float32).tiny)
    return jnp.round(x / step) * step


def _quantize(found: Selection) -> jax.Array:
    """The nearest of 2^value - 1 evenly spaced numbers, symmetric around 0, up to the largest magnitude there is."""
    largest = jnp.max(jnp.abs(found.old), axis=tuple(range(1, found.old.ndim)), keepdims=True)
    return nearest(found.old, largest, found.value)


def _move(found: Selection) -> jax.Array:
    """The largest of the other positions at position `value`, zeros there."""
    time = found.site.axis_of("position") or ""
    if found.axes[1:] != time:  # an edit of something else, of which `compile_edits` made no move
        return found.old
    size = found.size(time)
    positions = found.coordinates.along(time, size)
    value = jnp.where(found.value < 0, found.value + found.coordinates.count(time, size)[:, None], found.value)
    target = positions == value
    largest = jnp.max(jnp.where(target | (positions < 0), -jnp.inf, found.old), axis=-1, keepdims=True)
    return jnp.where(target, largest, 0.0)


OPERATIONS: Mapping[str, Operation] = {
    "set": Operation(lambda found: found.value, "x ← value", "the new value", done="set to {}"),
    "scale": Operation(lambda found: found.value * found.old, "x ← value·x", "the factor", done="times {}"),
    "add": Operation(lambda found: found.old + found.value, "x ← x + value", "the summand", done="plus {}"),
    "noise": Operation(_noise, "x ← x + value·N(0, 1)", "the standard deviation", done="plus noise of {}", drawn=True),
    "shuffle": Operation(
        _shuffle, "x ← the same dims at another position", whole_sequence=True, done="shuffled", drawn=True
    ),
    "quantize": Operation(_quantize, "x ← the nearest of 2^value - 1 numbers", "bits, 2 to 16", whole_sequence=True),
    "move": Operation(_move, "x ← the largest of the other positions, at one", "that position", whole_sequence=True),
}
OPS = tuple(OPERATIONS)

VALUES: Mapping[str, str] = {"zero": "set to zero", "mean": "set to mean"}
"""What a number is often set to: more names of "set", and what has been done, in words."""


def in_words(name: str) -> str | None:
    """Says what an operation on a single number has done: "set=5" -> "set to 5"; None where it is no such operation."""
    op, _, value = name.partition("=")
    how = OPERATIONS.get(op)
    if how is None or how.done is None:
        return VALUES.get(name)
    return how.done.format(value) if (how.number is not None) == bool(value) else None
