"""Edits as arrays, and how they are applied to a tensor while it is traced.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from massive_jax.arguments import several, shown
from massive_jax.dtypes import wide
from massive_jax.probe.coordinates import UNPADDED, Coordinates
from massive_jax.probe.functions import Function, PerToken, call
from massive_jax.probe.operations import OPERATIONS, Selection
from massive_jax.probe.places import ALL_LAYERS
from massive_jax.probe.sites import AXIS_NAMES, Site


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EditRows:
    """Holds K edits of one site that index the same axes, as arrays; padding rows have layer -1.

    Attributes:
      layer: int32 [K], 1-based, 0 for a site outside the blocks, -2 for all layers.
      index: axis letter -> int32 indices: [K, B] for position and key (-1 for none; a slot's key counts from
        `massive_jax.probe.coordinates.SLOTS`), [K] for the others. An axis that is absent is edited whole, or where
        `chosen` says.
      op: int32 [K], an index into `OPS`.
      value: float32 [K], or [K, size of the last axis] where that axis is edited whole; or [K, …] with every axis that
        is not indexed, the batch first, of its size or 1. Of a function what it takes, without the K.
      seed: uint32 [K].
      chosen: axis letter -> which of several places are edited: bool [K, B, size] for position and key, [K, size] for
        the others, "L" for the layers. By position, the slots behind all keys.
      fn: the function of one edit, K = 1; None for those of `OPS`.
    """

    layer: Any
    index: dict[str, Any]
    op: Any
    value: Any
    seed: Any
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    fn: Function | PerToken | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Summand:
    """Holds what is added to a site after its edits, a tensor of its own in each layer: a gradient is taken by it.

    Attributes:
      value: float32 [L', B, …], by column; of a site outside the blocks [B, …].
      slots: int32 [L]: which of them is layer l + 1's, L' for none; None outside the blocks.
    """

    value: Any
    slots: Any

    def added_to(self, x: jax.Array, layer: jax.Array | int) -> jax.Array:
        """Gives the sum at a layer, of the dtype of `x`."""
        value = self.value
        if self.slots is not None:
            value = value.at[self.slots[layer - 1]].get(mode="fill", fill_value=0)
        return x + value.astype(x.dtype)


EditCollection: TypeAlias = Mapping[str, tuple[EditRows, ...]]


def stack_edits(collections: Sequence[EditCollection]) -> EditCollection:
    """Stacks compiled edits along a new first axis, for `jax.vmap` over interventions.

    Raises:
      ValueError: something else than compiled edits; the collections edit different sites or different axes, or
        differ in their number of rows.

    Examples:
      >>> from massive_jax.probe import CapturePlan, stack_edits
      >>> tokens = model.tokenize("Summer is warm.")
      >>> at = [mj.Edit("block_out", layer=12, position=0, dim=dim) for dim in (507, 247)]
      >>> stacked = stack_edits([model.compile_edits(edit, tokens) for edit in at])
      >>> def run(edits):
      ...     return model.module.apply({"params": model.params, "edits": edits}, tokens, capture=CapturePlan())[0]
      >>> jax.vmap(run)(stacked).shape  # two interventions at once
      (2, 1, 4, 49152)
    """
    found = several(collections)
    if found is None or not all(isinstance(collection, Mapping) for collection in found):
        raise ValueError(
            f"collections is {shown(collections)}; give a list of edits compiled by `Model.compile_edits`."
        )
    structures = {jax.tree.structure(c) for c in collections}
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(c)) for c in collections}
    if not collections or len(structures) > 1 or len(shapes) > 1:
        raise ValueError(
            f"cannot stack {len(collections)} edit collections with {len(structures)} structures and {len(shapes)} "
            "sets of shapes; give every member of a sweep the same sites, the same axes and a similar number of edits."
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *collections)


def apply_edits(
    x: jax.Array,
    rows: EditRows | Summand,
    site: Site,
    layer: jax.Array | int,
    coordinates: Coordinates = UNPADDED,
) -> jax.Array:
    """Applies to `x`, the tensor of `site` at `layer`, those of the K edits in `rows` that are meant for it.

    A row is a gather of the elements it names and a scatter back, so its cost does not grow with the tensor. Rows of
    other layers, positions that are not there and padding rows are dropped by the scatter. What costs as much as the
    tensor (several places, a value of the tensor's size, a function) is a branch, which other layers do not take. What
    an edit of all positions writes to padding is for the caller to hide.
    """
    if isinstance(rows, Summand):
        return rows.added_to(x, layer)
    branch = bool(rows.chosen) or rows.fn is not None or jnp.ndim(rows.value) > 2
    scanned = dataclasses.replace(rows, value=None) if rows.fn is not None else rows

    def one(x: jax.Array, numbered: tuple[jax.Array, EditRows]) -> tuple[jax.Array, None]:
        number, row = numbered
        if row.fn is not None:
            row = dataclasses.replace(row, value=rows.value)
        active = (row.layer == layer) | (row.layer == ALL_LAYERS)
        if "L" in row.chosen:
            active &= row.chosen["L"][layer - 1]
        if not branch:
            return _edited(x, row, number, active, site, layer, coordinates), None
        edited = functools.partial(
            _edited, row=row, number=number, active=True, site=site, layer=layer, coordinates=coordinates
        )
        return lax.cond(active, edited, lambda x: x, x), None

    numbers = jnp.arange(rows.layer.shape[0])
    return lax.scan(one, x, (numbers, scanned))[0]


def _edited(
    x: jax.Array,
    row: EditRows,
    number: jax.Array,
    active: jax.Array | bool,
    site: Site,
    layer: jax.Array | int,
    coordinates: Coordinates,
) -> jax.Array:
    """`x` after one row, the edit of that number, where it is active."""
    B = x.shape[0]
    index: list[Any] = [jnp.arange(B)]
    active = jnp.broadcast_to(active, (B,))
    positions, whole = {}, site.axes[0]
    for axis, size in zip(site.axes[1:], x.shape[1:], strict=True):
        if axis not in row.index:
            index.append(slice(None))
            whole += axis
            continue
        i = jnp.broadcast_to(row.index[axis], (B,))
        if AXIS_NAMES[axis] in ("position", "key"):
            positions[axis] = i
        i, inside = coordinates.columns(axis, size, i)
        active &= inside
        index.append(i)
    index[0] = jnp.where(active, index[0], B)  # one past the end: dropped
    at = x.at[tuple(index)]
    kept = at.get(mode="fill", fill_value=0).astype(wide(x.dtype))
    chosen = _chosen(row, whole, kept.shape, coordinates)
    if row.fn is not None:
        new = call(row.fn, kept, row.value, whole)
    else:
        old = kept if chosen is None else jnp.where(chosen, kept, 0)
        value = jnp.broadcast_to(_by_column(row.value, whole, kept.shape, coordinates), old.shape).astype(old.dtype)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(row.seed), layer), number)
        found = Selection(x, tuple(index), positions, whole, old, value, key, site, coordinates)
        new = lax.switch(
            jnp.where(jnp.any(active), row.op, 0),
            [functools.partial(operation.apply, found) for operation in OPERATIONS.values()],
        )
    if chosen is not None:
        new = jnp.where(chosen, new, kept)
    return at.set(new.astype(x.dtype), mode="drop")


def _chosen(row: EditRows, axes: str, shape: tuple[int, ...], coordinates: Coordinates) -> jax.Array | None:
    """Which elements of what the row indexes are edited: a bool that broadcasts; None for all."""
    found = None
    for axis, places in row.chosen.items():
        if axis == "L":
            continue
        dim = axes.index(axis)
        given = (dim,) if places.ndim == 1 else (0, dim)
        places = jnp.expand_dims(places, [i for i in range(len(axes)) if i not in given])
        places = coordinates.spread(axis, shape[dim], places, dim)
        found = places if found is None else found & places
    return found


def _by_column(value: jax.Array, axes: str, shape: tuple[int, ...], coordinates: Coordinates) -> jax.Array:
    """A row's value, with its axes of positions as the columns of a tensor [B, …] of that shape are."""
    if value.ndim == 1 and len(axes) > 1 and axes[-1] in coordinates.positions:
        value = value.reshape((1,) * (len(axes) - 1) + value.shape)
    if value.ndim == len(axes):
        for dim, axis in enumerate(axes):
            if value.shape[dim] > 1:
                value = coordinates.spread(axis, shape[dim], value, dim)
    return value
