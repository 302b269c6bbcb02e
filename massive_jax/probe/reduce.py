"""Reductions of one tensor [B, ...] to a few numbers a sequence, exact and in float32.

They run inside the block, so capturing every layer costs O(L·k) memory. "Magnitude" is the absolute value; the
paper's criterion compares the largest magnitudes of a hidden state with its median magnitude (section 2).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from massive_jax.cards import Card
from massive_jax.probe.coordinates import UNPADDED, Coordinates
from massive_jax.probe.order_statistics import median_magnitude, top_k_magnitude
from massive_jax.probe.sites import AXIS_NAMES, Site


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Stats(Card):
    """Holds reductions of a site.

    Leading axes: [L', B] for a per-layer site, [B] otherwise; None where not asked for.

    Padding counts in none of them.

    Attributes:
      top_values: [..., k] the k values of largest magnitude, signed, largest first; 0 where a sequence has fewer.
      top_indices: name -> [..., k] int32 indices of those values, e.g. {"position": …, "dim": …}; positions and keys
        are those of a sequence's own tokens. -1 where a sequence has fewer values.
      median: [...] median magnitude (the lower of the two middle ones for an even count, as `torch.median`).
      max: [...] largest magnitude.
      mean: [...] mean of the signed values.
      variance: [...] population variance of the signed values.
      kurtosis: [...] fourth central moment over squared variance (3 for a Gaussian).
      mass: [..., H, S] share of attention that lands on each key, averaged over queries (`attn_probs` only).
      tensor: the whole tensor, zeros at padding, when it was asked for together with reductions.
    """

    top_values: Any = None
    top_indices: dict[str, Any] | None = None
    median: Any = None
    max: Any = None
    mean: Any = None
    variance: Any = None
    kurtosis: Any = None
    mass: Any = None
    tensor: Any = None

    @property
    def top_positions(self) -> Any:
        """Gives the token positions of `top_values`."""
        return None if self.top_indices is None else self.top_indices["position"]

    @property
    def top_dims(self) -> Any:
        """Gives the dims of `top_values`."""
        return None if self.top_indices is None else self.top_indices["dim"]


def moments(x: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes mean, population variance and kurtosis over all axes but the first, each [B] float32.

    Args:
      x: [B, ...].
      valid: bool that broadcasts to x: which elements count; None for all.
    """
    flat = x.astype(jnp.float32).reshape(x.shape[0], -1)
    counted = None if valid is None else jnp.broadcast_to(valid, x.shape).reshape(flat.shape)
    mean = jnp.mean(flat, axis=-1, where=counted)
    square = jnp.square(flat - mean[:, None])
    variance = jnp.mean(square, axis=-1, where=counted)
    fourth = jnp.mean(jnp.square(square), axis=-1, where=counted)
    return mean, variance, fourth / jnp.square(variance)


@dataclasses.dataclass(frozen=True)
class Reductions:
    """Says which reductions of a site to compute (see `Stats`). Static: part of what is compiled."""

    top_k: int = 0
    median: bool = False
    max: bool = False
    mean: bool = False
    variance: bool = False
    kurtosis: bool = False
    mass: bool = False

    def __bool__(self) -> bool:
        return self != Reductions()

    def __call__(self, site: Site, x: jax.Array, coordinates: Coordinates = UNPADDED) -> Stats:
        """Reduces `x` (shaped as `site` says, whatever it holds at padding) to `Stats` with a leading [B]."""
        found: dict[str, Any] = {}
        valid = coordinates.valid(site.axes)
        if self.top_k:
            found["top_values"], flat = top_k_magnitude(x, self.top_k, valid)
            index = jnp.unravel_index(flat, x.shape[1:])
            found["top_indices"] = {
                AXIS_NAMES[axis]: _positions(coordinates, axis, size, i.astype(jnp.int32), flat)
                for axis, size, i in zip(site.axes[1:], x.shape[1:], index, strict=True)
            }
        if self.median:
            found["median"] = median_magnitude(x, valid)
        if self.max:
            own = coordinates.hide(site.axes, x)
            found["max"] = jnp.max(jnp.abs(own.astype(jnp.float32)), axis=tuple(range(1, x.ndim)))
        if self.mean or self.variance or self.kurtosis:
            for name, value in zip(("mean", "variance", "kurtosis"), moments(x, valid), strict=True):
                if getattr(self, name):
                    found[name] = value
        if self.mass:
            time = site.axes.index("T")
            queries = None if valid is None else coordinates.valid("BT")
            where = None if queries is None else queries[:, None, :, None]
            found["mass"] = jnp.mean(x.astype(jnp.float32), axis=time, where=where)
        return Stats(**found)


def _positions(coordinates: Coordinates, axis: str, size: int, columns: jax.Array, flat: jax.Array) -> jax.Array:
    """Columns [B, k] of an axis as positions; -1 where `flat` is."""
    if not coordinates.positions:
        return columns
    positions = jnp.broadcast_to(coordinates.along(axis, size), (len(columns), size))
    return jnp.where(flat < 0, -1, jnp.take_along_axis(positions, columns, axis=1))
