"""Where the columns of a tensor stand in their sequences: padding, and tokens that come one at a time.

Positions, wherever a person reads or writes them, count a sequence's own tokens from 0. A tensor's columns are those
positions unless a batch is padded or a cache holds what came before; `Coordinates` tells the one from the other.
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

SLOTS = 1 << 30  # more than any position: the first slot of an attention bias, the last keys of every query


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Holds the positions of the columns of the axes that may have padding.

    Attributes:
      positions: axis letter ("T", "S") -> int32 [B, size]: the position of each column, ascending; -1 for padding. An
        axis that is absent has no padding, and its columns are the positions.
      slots: how many of the last keys are slots of an attention bias.
      growing: whether more tokens are to come, in front of the slots.
    """

    positions: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    slots: int = dataclasses.field(default=0, metadata={"static": True})
    growing: bool = dataclasses.field(default=False, metadata={"static": True})

    def along(self, axis: str, size: int) -> jax.Array:
        """Gives the position of every column: int32 [B, size], or [1, size] where all sequences have the same."""
        given = self.positions.get(axis)
        return jnp.arange(size, dtype=jnp.int32)[None] if given is None else given

    def lasting(self, axis: str, size: int) -> jax.Array:
        """Gives what `along` gives, but for slots: numbers from `SLOTS` on, the same while a sequence grows."""
        positions = self.along(axis, size)
        if axis != "S" or not self.slots:
            return positions
        slots = jnp.broadcast_to(SLOTS + jnp.arange(self.slots, dtype=jnp.int32), (len(positions), self.slots))
        return jnp.concatenate([positions[:, : size - self.slots], slots], axis=1)

    def count(self, axis: str, size: int) -> jax.Array:
        """Says how many columns are no padding: int32 [B] or [1]."""
        return jnp.sum(self.along(axis, size) >= 0, axis=1, dtype=jnp.int32)

    def columns(self, axis: str, size: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gives the column that holds a position of each sequence, int32 [B], and whether there is one, bool [B].

        A slot may also be asked for by its number in `lasting`.
        """
        given = self.positions.get(axis)
        if given is None:
            if axis == "S" and self.slots:
                positions = jnp.where(positions >= SLOTS, positions - SLOTS + size - self.slots, positions)
            return positions, (positions >= 0) & (positions < size)
        here = self.lasting(axis, size) == positions[:, None]
        if not self.growing:
            here |= given == positions[:, None]
        here &= given >= 0
        return jnp.argmax(here, axis=1).astype(jnp.int32), jnp.any(here, axis=1)

    def rows(self, start: Any, size: int) -> Coordinates:
        """Gives those of `size` of the tokens, from `start` on; keys stay."""
        if (given := self.positions.get("T")) is None:
            return self
        return dataclasses.replace(
            self, positions={**self.positions, "T": jax.lax.dynamic_slice_in_dim(given, start, size, axis=1)}
        )

    def spread(self, axis: str, size: int, given: jax.Array, dim: int) -> jax.Array:
        """Gives what is given by position along an axis, slots last, by column.

        Args:
          axis: its letter.
          size: its number of columns.
          given: [B or 1, …].
          dim: which of the axes of `given` it is.

        Returns:
          [B or 1, …], with `size` along `dim`; anything at padding.
        """
        if axis not in self.positions:
            return given
        positions, last = self.lasting(axis, size), given.shape[dim] - 1
        slots = positions - SLOTS + last + 1 - self.slots
        positions = jnp.where(positions >= SLOTS, slots, jnp.clip(positions, 0, last))
        given = jnp.broadcast_to(given, (len(positions), *given.shape[1:]))
        shape = [size if i == dim else 1 for i in range(given.ndim)]
        shape[0] = len(positions)
        return jnp.take_along_axis(given, positions.reshape(shape), axis=dim)

    def valid(self, axes: str) -> jax.Array | None:
        """Says which elements of a tensor with these axes are no padding: a bool that broadcasts; None for all."""
        found = None
        for i, axis in enumerate(axes):
            if (given := self.positions.get(axis)) is not None:
                shape = [len(given), *(given.shape[1] if i == j else 1 for j in range(1, len(axes)))]
                own = (given >= 0).reshape(shape)
                found = own if found is None else found & own
        return found

    def hide(self, axes: str, x: jax.Array) -> jax.Array:
        """Gives `x` with zeros at padding."""
        valid = self.valid(axes)
        return x if valid is None else jnp.where(valid, x, jnp.zeros((), x.dtype))


UNPADDED = Coordinates()
