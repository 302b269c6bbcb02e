"""Reductions of one tensor [B, ...] to a few numbers a sequence, exact and in float32.

They run inside the block, so capturing every layer costs O(L·k) memory. "Magnitude" is the absolute value; the
paper's criterion compares the largest magnitudes of a hidden state with its median magnitude (section 2).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from massive_jax.cards import Card
from massive_jax.parallel import activation_spec, current_mesh
from massive_jax.probe.coordinates import UNPADDED, Coordinates
from massive_jax.probe.order_statistics import Shards, median_magnitude, top_k_magnitude
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


def moments(
    x: jax.Array, valid: jax.Array | None = None, shards: Shards | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes mean, population variance and kurtosis over all axes but the first, each [B] float32.

    Args:
      x: [B, ...].
      valid: bool that broadcasts to x: which elements count; None for all.
      shards: what x is one of; None where it is all there is. As many elements count in each.
    """
    flat = x.astype(jnp.float32).reshape(x.shape[0], -1)
    counted = None if valid is None else jnp.broadcast_to(valid, x.shape).reshape(flat.shape)

    def average(y: jax.Array) -> jax.Array:
        found = jnp.mean(y, axis=-1, where=counted)
        return found if shards is None else lax.pmean(found, shards.name)

    mean = average(flat)
    square = jnp.square(flat - mean[:, None])
    variance = average(square)
    return mean, variance, average(jnp.square(square)) / jnp.square(variance)


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
        """Reduces `x` (shaped as `site` says, whatever it holds at padding) to `Stats` with a leading [B].

        On a mesh each device reduces its own part, of the sequences and along an axis that is split; what they found is
        put together, and a tensor never is.
        """
        mesh = current_mesh()
        spec = PartitionSpec() if mesh is None else activation_spec(site.axes, x.shape, mesh)
        if not any(spec):
            return self._of(site, x, coordinates)
        dim = next((i for i, axis in enumerate(spec) if i and axis), None)
        shards = None if dim is None else Shards(spec[dim], mesh.shape[spec[dim]], dim, mesh.axis_names)
        batch = PartitionSpec(spec[0])
        specs: dict[str, Any] = dict.fromkeys(self._fields(), batch)
        if self.mass:  # [B, H, S]
            specs["mass"] = PartitionSpec(spec[0], spec[site.axes.index("H")])
        reduce = jax.shard_map(
            lambda x, coordinates: self._of(site, x, coordinates, shards),
            in_specs=(spec, batch),
            out_specs=Stats(**specs),
            check_vma=False,
        )
        found: Stats = reduce(x, coordinates)
        return found

    def _fields(self) -> list[str]:
        """The fields of `Stats` that are there."""
        top = ["top_values", "top_indices"] if self.top_k else []
        return top + [name for name, asked in dataclasses.asdict(self).items() if asked and name != "top_k"]

    def _of(self, site: Site, x: jax.Array, coordinates: Coordinates, shards: Shards | None = None) -> Stats:
        """The reductions of `x`, and of the others that it is one of the `shards` with: the same in each."""
        found: dict[str, Any] = {}
        valid = coordinates.valid(site.axes)
        if self.top_k:
            shape = x.shape if shards is None else shards.whole(x.shape)
            found["top_values"], flat = top_k_magnitude(x, self.top_k, valid, shards)
            index = jnp.unravel_index(flat, shape[1:])
            found["top_indices"] = {
                AXIS_NAMES[axis]: _positions(coordinates, axis, size, i.astype(jnp.int32), flat)
                for axis, size, i in zip(site.axes[1:], shape[1:], index, strict=True)
            }
        if self.median:
            found["median"] = median_magnitude(x, valid, shards=shards)
        if self.max:
            # Not `jnp.max`, which compiled for a CPU loses NaNs of many numbers (jaxlib 0.10).
            largest = found["top_values"] if self.top_k else top_k_magnitude(x, 1, valid, shards)[0]
            found["max"] = jnp.abs(largest[:, 0])
        if self.mean or self.variance or self.kurtosis:
            for name, value in zip(("mean", "variance", "kurtosis"), moments(x, valid, shards), strict=True):
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
