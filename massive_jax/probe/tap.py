"""`tap(site, x)` = edit, then record: the one function through which every site is read and written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from massive_jax.dtypes import wide
from massive_jax.parallel import split
from massive_jax.probe.capture import CapturePlan, MeasureSpec, SiteSpec
from massive_jax.probe.coordinates import UNPADDED, Coordinates
from massive_jax.probe.functions import result_shapes
from massive_jax.probe.reduce import Stats
from massive_jax.probe.rows import EditCollection, apply_edits
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
        self._held: dict[str, jax.Array] = {}  # what measures wait for

    def wants(self, *sites: str) -> bool:
        """Tells whether any of `sites` is read or edited, and so has to be built."""
        return any(self.edits(site) or self.plan.spec(site) or site in self.plan.measured for site in sites)

    def edits(self, site: str) -> bool:
        """Tells whether `site` is edited, in this layer or another."""
        return site in self.all_edits

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        """Edits `x`, the tensor of site `name`, records it if it is asked for, and returns it.

        Padding holds zeros wherever it is read, edited, or could reach a token.
        """
        site, edits, spec = ALL_SITES[name], self.all_edits.get(name, ()), self.plan.spec(name)
        x = split(x, site.axes)
        measured = name in self.plan.measured
        if edits or measured or name in _HIDDEN or (spec is not None and spec.tensor):
            x = self.coordinates.hide(site.axes, x)
        for rows in edits:
            x = self.coordinates.hide(site.axes, apply_edits(x, rows, site, self._layer, self.coordinates))
            x = split(x, site.axes)
        if measured:
            self._measure(name, x)
        if spec is None:
            return x
        if not site.per_layer:
            self.results[name] = _record(spec, site, x, self.coordinates)
            return x
        slot = self._slots[name]
        kept = self.results[name]
        if spec.tensor:
            kept = dataclasses.replace(kept, tensor=split(kept.tensor.at[slot].set(x, mode="drop"), f"L{site.axes}"))
        if spec.reductions:
            stats = self._reduce(spec, site, x, _without_tensor(kept))
            written = jax.tree.map(lambda a, s: a.at[slot].set(s, mode="drop"), _without_tensor(kept), stats)
            kept = dataclasses.replace(written, tensor=kept.tensor)
        self.results[name] = kept
        return x

    def _measure(self, site: str, x: jax.Array) -> None:
        """Computes every measure whose last site this is."""
        self._held[site] = x
        for name, spec in self.plan.measures:
            if site not in spec.sites or not self._held.keys() >= set(spec.sites):
                continue
            tensors = {site: self._held[site] for site in spec.sites}
            kept, slot, data = self.results[name], self._slots[name], self.plan.data[name]

            def measure(tensors: Any, spec: MeasureSpec = spec, data: Any = data) -> Any:
                return _measured(spec, tensors, data, self.coordinates)

            if spec.num_slots == len(self.plan.slots[name]):
                found = measure(tensors)
            else:  # as for reductions: other layers cost nothing
                zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), kept)
                found = lax.cond(slot < spec.num_slots, measure, lambda tensors, zeros=zeros: zeros, tensors)
            self.results[name] = jax.tree.map(lambda a, s, slot=slot: a.at[slot].set(s, mode="drop"), kept, found)

    def _reduce(self, spec: SiteSpec, site: Site, x: jax.Array, kept: Stats) -> Stats:
        """The reductions of `x`, to be put beside those in `kept`; any numbers for a layer that was not asked for."""
        num_layers, slot = len(self.plan.slots[site.name]), self._slots[site.name]
        if spec.num_slots is None or spec.num_slots == num_layers:
            return spec.reductions(site, x, self.coordinates)
        # A real branch: layers that were not asked for cost no reduction.
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), kept)
        return lax.cond(slot < spec.num_slots, lambda x: spec.reductions(site, x, self.coordinates), lambda x: zeros, x)


def empty_results(
    plan: CapturePlan, sizes: Mapping[str, int], dtype: Any, coordinates: Coordinates = UNPADDED
) -> dict[str, Any]:
    """Makes zeros for every per-layer site and every measure of `plan`, to be filled slot by slot.

    Raises:
      ValueError: a measure whose function fails, or gives something else than arrays [B, …].
    """

    def tensor(name: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(ALL_SITES[name].shape(sizes), wide(dtype) if name in WIDE_SITES else dtype)

    def empty(num_slots: int | None, shapes: Any) -> Any:
        return jax.tree.map(lambda a: jnp.zeros((num_slots, *a.shape), a.dtype), shapes)

    found = {}
    for name, site_spec in plan.specs:
        if (site := ALL_SITES[name]).per_layer:
            shapes = jax.eval_shape(lambda x, s=site_spec, site=site: _record(s, site, x, UNPADDED), tensor(name))
            found[name] = empty(site_spec.num_slots, shapes)
    for name, spec in plan.measures:
        tensors = {site: tensor(site) for site in spec.sites}
        measure = functools.partial(_measured, spec, coordinates=coordinates)
        try:
            shapes = result_shapes(measure, tensors, plan.data[name])
        except ValueError as error:
            raise ValueError(f"Measure {name}: its function {error}.") from None
        wrong = [a.shape for a in jax.tree.leaves(shapes) if a.shape[:1] != (sizes["B"],)]
        if wrong or not jax.tree.leaves(shapes):
            raise ValueError(
                f"Measure {name}: its function gives {wrong or 'nothing'}; give arrays whose first axis is that of the "
                f"{sizes['B']} sequences."
            )
        found[name] = empty(spec.num_slots, shapes)
    return found


def present(plan: CapturePlan, results: Mapping[str, Any]) -> dict[str, Any]:
    """Gives `results` as a person reads them: the bare tensor of a site where no reduction was asked for."""
    sites = {name: results[name] if spec.reductions else results[name].tensor for name, spec in plan.specs}
    return sites | {name: results[name] for name, _ in plan.measures}


def _measured(spec: MeasureSpec, tensors: Mapping[str, jax.Array], data: Any, coordinates: Coordinates) -> Any:
    """What the function of a measure gives."""
    # Every tensor of a block has B first and, but for attention's, T next; there T comes before the last axis.
    site, x = next(iter(tensors.items()))
    T = x.shape[ALL_SITES[site].axes.index("T")]
    return spec.fn({**tensors, "positions": coordinates.along("T", T)}, data)


def _record(spec: SiteSpec, site: Site, x: jax.Array, coordinates: Coordinates) -> Stats:
    stats = spec.reductions(site, x, coordinates)
    return dataclasses.replace(stats, tensor=x) if spec.tensor else stats


def _without_tensor(stats: Stats) -> Stats:
    return dataclasses.replace(stats, tensor=None)
