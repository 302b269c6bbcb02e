"""`tap(site, x)` = edit, then record: the one function through which every site is read and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from massive_jax.dtypes import wide
from massive_jax.probe.capture import CapturePlan, SiteSpec
from massive_jax.probe.coordinates import UNPADDED, Coordinates
from massive_jax.probe.edit import EditCollection, apply_edits
from massive_jax.probe.reduce import Stats
from massive_jax.probe.sites import ALL_SITES, WIDE_SITES, Site

# Where padding is made zeros though nobody reads it: what is returned; keys and values, so that what a mask hides is a
# number, as 0 · NaN is none; and the stream, so that it stays one in every layer, and in the gradients.
_HIDDEN = frozenset({"embed", "key", "value", "block_out", "final_norm", "logits"})


class Tap:
    """Edits and records the tensors of one block (or of the model around the blocks) while it is traced.

    `results` is functional state: a scan over layers carries it from block to block. A slot of it belongs to a layer
    that was asked for, so what is kept costs memory for those layers only, and nothing at all when nothing is.
    """

    def __init__(
        self,
        edits: EditCollection,
        plan: CapturePlan,
        layer: jax.Array | int = 0,
        slots: Mapping[str, Any] | None = None,
        results: Mapping[str, Any] | None = None,
        coordinates: Coordinates = UNPADDED,
    ):
        """Taps layer `layer` (1-based; 0 around the blocks).

        `slots` are that layer's slots in `results`. `coordinates` say which columns are padding, and which position of
        its sequence each of the others is.
        """
        self.all_edits = edits
        self.plan = plan
        self._layer = layer
        self.coordinates = coordinates
        self._slots = slots or {}
        self.results: dict[str, Any] = dict(results or {})

    def wants(self, *sites: str) -> bool:
        """Tells whether any of `sites` is read or edited, and so has to be built."""
        return any(self.edits(site) or self.plan.spec(site) for site in sites)

    def edits(self, site: str) -> bool:
        """Tells whether `site` is edited, in this layer or another."""
        return site in self.all_edits

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        """Edits `x`, the tensor of site `name`, records it if it is asked for, and returns it.

        Padding holds zeros wherever it is read, edited, or could reach a token.
        """
        site, edits, spec = ALL_SITES[name], self.all_edits.get(name, ()), self.plan.spec(name)
        if edits or name in _HIDDEN or (spec is not None and spec.tensor):
            x = self.coordinates.hide(site.axes, x)
        for rows in edits:
            x = self.coordinates.hide(site.axes, apply_edits(x, rows, site, self._layer, self.coordinates))
        if spec is None:
            return x
        if not site.per_layer:
            self.results[name] = _record(spec, site, x, self.coordinates)
            return x
        slot = self._slots[name]
        kept = self.results[name]
        if spec.tensor:
            kept = dataclasses.replace(kept, tensor=kept.tensor.at[slot].set(x, mode="drop"))
        if spec.reductions:
            stats = self._reduce(spec, site, x, _without_tensor(kept))
            written = jax.tree.map(lambda a, s: a.at[slot].set(s, mode="drop"), _without_tensor(kept), stats)
            kept = dataclasses.replace(written, tensor=kept.tensor)
        self.results[name] = kept
        return x

    def _reduce(self, spec: SiteSpec, site: Site, x: jax.Array, kept: Stats) -> Stats:
        """The reductions of `x`, to be put beside those in `kept`; any numbers for a layer that was not asked for."""
        num_layers, slot = len(self.plan.slots[site.name]), self._slots[site.name]
        if spec.num_slots is None or spec.num_slots == num_layers:
            return spec.reductions(site, x, self.coordinates)
        # A real branch: layers that were not asked for cost no reduction.
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), kept)
        return lax.cond(slot < spec.num_slots, lambda x: spec.reductions(site, x, self.coordinates), lambda x: zeros, x)


def empty_results(plan: CapturePlan, sizes: Mapping[str, int], dtype: Any) -> dict[str, Stats]:
    """Makes zeros for every per-layer site of `plan`, to be filled slot by slot."""

    def empty(name: str, spec: SiteSpec) -> Stats:
        site = ALL_SITES[name]
        x = jax.ShapeDtypeStruct(site.shape(sizes), wide(dtype) if name in WIDE_SITES else dtype)
        shapes = jax.eval_shape(lambda x: _record(spec, site, x, UNPADDED), x)
        return jax.tree.map(lambda a: jnp.zeros((spec.num_slots, *a.shape), a.dtype), shapes)

    return {name: empty(name, spec) for name, spec in plan.specs if ALL_SITES[name].per_layer}


def present(plan: CapturePlan, results: Mapping[str, Stats]) -> dict[str, Any]:
    """Gives `results` as a person reads them: the bare tensor of a site where no reduction was asked for."""
    return {name: results[name] if spec.reductions else results[name].tensor for name, spec in plan.specs}


def _record(spec: SiteSpec, site: Site, x: jax.Array, coordinates: Coordinates) -> Stats:
    stats = spec.reductions(site, x, coordinates)
    return dataclasses.replace(stats, tensor=x) if spec.tensor else stats


def _without_tensor(stats: Stats) -> Stats:
    return dataclasses.replace(stats, tensor=None)
