"""Checks of edits and captures that are compiled already: they may have been made for another model or other inputs.

JAX drops an index that is out of range, and a site that is not there is never asked: without these checks an edit
would vanish silently. What is traced has its shapes checked, not its numbers.
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from massive_jax.arguments import shown
from massive_jax.dtypes import wide
from massive_jax.probe.capture import CapturePlan, SiteSpec
from massive_jax.probe.coordinates import SLOTS
from massive_jax.probe.functions import check_function
from massive_jax.probe.operations import OPS
from massive_jax.probe.packing import check_lookahead
from massive_jax.probe.places import ALL_LAYERS, NO_LAYER, Sequences
from massive_jax.probe.rows import EditCollection, EditRows
from massive_jax.probe.sites import WIDE_SITES, Site, find_site

_AGAIN = "compile the edits again, for this model and these inputs"


def check_edits(
    edits: EditCollection,
    sizes: Mapping[str, int],
    absent: Collection[str] = (),
    mask: np.ndarray | None = None,
    dtype: Any = np.float32,
) -> EditCollection:
    """Gives compiled edits back where they fit.

    Args:
      edits: site -> rows, as `compile_edits` gives.
      sizes: as for `compile_edits`.
      absent: sites that the model does not have.
      mask: bool [B, T], False for padding; None for none.
      dtype: of the model's activations.

    Raises:
      ValueError: a site that the model does not have; something else than rows; rows of other shapes, or with a layer
        or an index out of range; a function that these inputs do not suit. Everything wrong is in the one message, a
        line a row.
    """
    problems = []
    for name, rows in edits.items():
        if not isinstance(rows, tuple | list) or not all(isinstance(row, EditRows) for row in rows):
            problems.append(f"{shown(name)} holds {shown(rows)}, which is no tuple of `EditRows`")
            continue
        site = find_site(name)
        if name in absent or 0 in site.shape(sizes):
            problems.append(f"this model has no site {name}")
            continue
        problems += [f"{name}: {problem}" for row in rows for problem in _problems(site, row, sizes, mask, dtype)]
    if problems:
        raise ValueError("\n".join(f"compiled edits: {problem}; {_AGAIN}." for problem in problems))
    return edits


def check_plan(plan: CapturePlan, num_layers: int, absent: Collection[str] = ()) -> CapturePlan:
    """Gives compiled captures back where they fit a model; ValueError where it lacks a site or has other layers."""
    for name, spec in plan.specs:
        site = find_site(name)
        if name in absent:
            raise ValueError(f"compiled captures: this model has no site {name}; compile them again for it.")
        slots = plan.slots.get(name)
        per_layer = isinstance(spec, SiteSpec) and slots is not None and np.shape(slots) == (num_layers,)
        if site.per_layer and not per_layer:
            found = 0 if slots is None else np.size(slots)
            raise ValueError(
                f"compiled captures: {name} is of a model with {found} layers, this one has {num_layers}; compile them "
                "again for it."
            )
    for name, measure in plan.measures:
        lacking, found = [site for site in measure.sites if site in absent], np.size(plan.slots[name])
        if lacking or found != num_layers:
            raise ValueError(
                f"compiled captures: the measure {name} is of a model with {found} layers"
                f"{' and ' + ', '.join(lacking) if lacking else ''}, which this one with {num_layers} has not; compile "
                "them again for it."
            )
    return plan


def _problems(
    site: Site, rows: EditRows, sizes: Mapping[str, int], mask: np.ndarray | None, dtype: Any
) -> Iterator[str]:
    """What is wrong with the rows of a site, in words."""
    by_sequence = {site.axis_of("position"), site.axis_of("key")}
    K = np.shape(rows.layer)[:1]
    places = {**rows.index, **{axis: chosen for axis, chosen in rows.chosen.items() if axis != "L"}}
    if unknown := [axis for axis in places if axis not in site.axes[1:]]:
        yield f"there is no axis {', '.join(map(shown, unknown))}"
        return
    axes = "".join(axis for axis in site.axes if axis not in rows.index)
    shape = tuple(sizes[axis] for axis in axes)
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "layer": (rows.layer, K),
        "op": (rows.op, K),
        "seed": (rows.seed, K),
        **{f"index {axis}": (i, (*K, sizes["B"]) if axis in by_sequence else K) for axis, i in rows.index.items()},
        **{
            f"chosen {axis}": (i, (*K, sizes["B"], sizes[axis]) if axis in by_sequence else (*K, sizes[axis]))
            for axis, i in rows.chosen.items()
        },
    }
    if rows.fn is None and not _broadcasts(np.shape(rows.value), K, shape):
        expected["value"] = (rows.value, (*K, sizes[site.axes[-1]]) if site.axes[-1] in axes else K)
    wrong = [name for name, (array, its) in expected.items() if not K or np.shape(array) != its]
    if wrong:
        yield "; ".join(f"{name} has shape {np.shape(expected[name][0])}, not {expected[name][1]}" for name in wrong)
        return
    if rows.fn is not None:
        try:
            check_lookahead(rows.fn, axes, Sequences(sizes, None, mask, 0))
            check_function(rows.fn, axes, shape, wide(np.float32 if site.name in WIDE_SITES else dtype), rows.value)
        except ValueError as error:
            yield str(error).rstrip(".")
    layers = [NO_LAYER, ALL_LAYERS, *range(1, sizes["L"] + 1)] if site.per_layer else [NO_LAYER, 0]
    live = None if _traced(rows.layer) else np.asarray(rows.layer) != NO_LAYER
    yield from _outside("layer", rows.layer, live, layers)
    yield from _outside("op", rows.op, live, range(len(OPS)))
    for axis, index in rows.index.items():
        slots = range(SLOTS, SLOTS + sizes[axis] - sizes["T"]) if axis == site.axis_of("key") else ()
        allowed = [*range(-1 if axis in by_sequence else 0, sizes[axis]), *slots]
        yield from _outside(f"index {axis}", index, live, allowed)
        if axis in by_sequence and mask is not None and live is not None and not (_traced(index) or _traced(mask)):
            padding = sizes["T"] - np.asarray(mask).sum(axis=1)
            its = np.asarray(index)[live]
            if ((its >= sizes[axis] - padding) & (its < SLOTS)).any():
                yield f"index {axis} is beyond the end of a sequence"


def _broadcasts(given: tuple[int, ...], K: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a value with every axis of what is edited fits it."""
    if given[:1] != K or len(given) != 1 + len(shape):
        return False
    return all(size in (1, whole) for size, whole in zip(given[1:], shape, strict=True))


def _outside(name: str, array: Any, live: np.ndarray | None, allowed: Collection[int]) -> Iterator[str]:
    """Those numbers of the rows that are `live` which are not allowed; nothing where they are traced."""
    if live is None or _traced(array):
        return
    values = np.asarray(array)[live]
    if values.dtype.kind not in "iu":
        yield f"{name} is {values.dtype}, not of integers"
    elif (bad := values[~np.isin(values, list(allowed))]).size:
        yield f"{name} {int(bad[0])} is out of range"


def _traced(array: Any) -> bool:
    return isinstance(array, jax.core.Tracer)
