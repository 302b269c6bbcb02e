"""Interventions as data.

A person writes `Edit`s; `compile_edits` checks them and turns them into the `edits` collection: for each site a
tuple of `EditRows`, fixed-shape arrays. Only shapes are compiled, so another layer, position, dim, operation or value
is the same program with other numbers, and a sweep is a `vmap` over the arrays (`stack_edits`).
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from massive_jax.arguments import is_index, seed_number, several, shown
from massive_jax.dtypes import wide
from massive_jax.probe.sites import ALL_SITES, AXIS_NAMES, WIDE_SITES, Site, check_layers, find_site

OPS = ("set", "scale", "add", "noise", "shuffle", "quantize", "move")
NO_LAYER = -1  # the layer of a padding row: matches none
ALL_LAYERS = -2  # matches every layer
_MIN_ROWS = 4

PositionRule: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Works out a position for every sequence: int tokens [B, T] -> int [B], -1 for none."""

RULES: Mapping[str, PositionRule] = {
    "first": lambda tokens: np.zeros(len(tokens), np.int32),
    "last": lambda tokens: np.full(len(tokens), tokens.shape[1] - 1, np.int32),
}


@dataclasses.dataclass(frozen=True)
class Edit:
    """One intervention. Edits apply in the order given; what a site captures is what is left after its edits.

    Attributes:
      site: where (see `massive_jax.probe.sites.ALL_SITES`).
      layer: 1-based, or "all"; None (or 0) for the sites that are not in a block: embed, final_norm, logits.
      position: token position(s) to edit: None for all, an int, an int array [B] (one a sequence, -1 for none), a
        rule's name ("first", "last"; language models also know "first_delimiter") or a function tokens [B, T] -> [B].
      dim: index along the last axis (width, head width, MLP width or vocabulary); None for all.
      op: "set" (x ← value), "scale" (x ← value·x), "add" (x ← x + value), "noise" (x ← x + value·N(0, 1)), "shuffle"
        (x ← the same dims at another position, by a random cyclic permutation of the positions), "quantize" (x ← the
        nearest of 2^value - 1 evenly spaced numbers from -max|x| to max|x|, with one max for what is edited of a
        sequence: absmax quantisation with a scale per tensor) or "move" (position `value` takes the largest of the
        other positions' x, which become 0; for one dim, without a position).
      value: a number, or with dim=None an array with one value a dim. Noise: the standard deviation. Quantize: the
        number of bits, from 2 to 16. Move: the position that it moves to. Unused by shuffle.
      head: head index for the sites that have heads; None for all.
      key: key position for attn_logits and attn_probs; None for all.
      seed: seed of noise and shuffle.
    """

    site: str
    layer: int | str | None = None
    position: int | str | Sequence[int] | np.ndarray | PositionRule | None = None
    dim: int | None = None
    op: str = "set"
    value: float | np.ndarray | Sequence[float] = 0.0
    head: int | None = None
    key: int | None = None
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EditRows:
    """K edits of one site that index the same axes, as arrays; padding rows have layer -1.

    Attributes:
      layer: int32 [K], 1-based, 0 for a site outside the blocks, -2 for all layers.
      index: axis letter -> int32 indices: [K, B] for the position (-1 for none), [K] for the others. An axis that
        is absent is edited whole.
      op: int32 [K], an index into `OPS`.
      value: float32 [K], or [K, size of the last axis] where that axis is edited whole.
      seed: uint32 [K].
    """

    layer: Any
    index: dict[str, Any]
    op: Any
    value: Any
    seed: Any


EditCollection: TypeAlias = Mapping[str, tuple[EditRows, ...]]


def compile_edits(
    edits: Edit | Sequence[Edit] | None,
    sizes: Mapping[str, int],
    tokens: np.ndarray | None = None,
    rules: Mapping[str, PositionRule] = RULES,
    absent: Collection[str] = (),
    dtype: Any = np.float32,
) -> dict[str, tuple[EditRows, ...]]:
    """Checks `edits` and packs them into the `edits` collection.

    Args:
      edits: in the order they are to apply.
      sizes: a size for every axis letter ("B", "T", "S", "D", …) and "L", the number of layers.
      tokens: int [B, T] on the host, needed by position rules only.
      rules: named position rules.
      absent: sites that the model does not have.
      dtype: of the model's activations, which a value that is set has to fit.

    Raises:
      ValueError: something else than an `Edit` among them; unknown or absent site, unknown op or rule; layer, position,
        head, key or dim out of range; an index the site has no axis for; a value of the wrong shape, or too large; a
        seed out of range. Everything wrong with every edit is in the one message.
    """
    problems, packed = [], []
    for number, edit in enumerate(as_edits(edits)):
        try:
            if find_site(edit.site).name in absent:
                raise ValueError(f"this model has no site {edit.site}")
            packed.append(_pack(edit, sizes, tokens, rules, dtype))
        except ValueError as error:
            problems.append(f"edit {number} ({_describe(edit)}): {error}")
    if problems:
        raise ValueError("\n".join(problems))
    collection: dict[str, tuple[EditRows, ...]] = {}
    for name in ALL_SITES:
        rows = [row for site, row in packed if site.name == name]
        # Runs of edits with the same axes share one array, so that edits keep their order.
        runs = [list(run) for _, run in itertools.groupby(rows, key=lambda row: tuple(row.index))]
        if runs:
            collection[name] = tuple(_stack_rows(run, sizes["B"]) for run in runs)
    return collection


def as_edits(edits: Any) -> tuple[Edit, ...]:
    """Gives `edits`, None, one or several, as a tuple; ValueError where one of them is something else."""
    found = () if edits is None else (edits,) if isinstance(edits, Edit) else several(edits)
    if found is None or not all(isinstance(edit, Edit) for edit in found):
        raise ValueError(f"edits is {shown(edits)}; give an Edit, several in a list, or None.")
    return found


def stack_edits(collections: Sequence[EditCollection]) -> EditCollection:
    """Stacks compiled edits along a new first axis, for `jax.vmap` over interventions.

    Raises:
      ValueError: the collections edit different sites or different axes, or differ in their number of rows.
    """
    structures = {jax.tree.structure(c) for c in collections}
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(c)) for c in collections}
    if not collections or len(structures) > 1 or len(shapes) > 1:
        raise ValueError(
            f"cannot stack {len(collections)} edit collections with {len(structures)} structures and {len(shapes)} "
            "sets of shapes; give every member of a sweep the same sites, the same axes and a similar number of edits."
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *collections)


def apply_edits(
    x: jax.Array, rows: EditRows, site: Site, layer: jax.Array | int, shift: jax.Array | int = 0
) -> jax.Array:
    """Applies to `x`, the tensor of `site` at `layer`, those of the K edits in `rows` that are meant for it.

    A row is a gather of the elements it names and a scatter back, so its cost does not grow with the tensor. Rows of
    other layers, padding and out-of-range positions are dropped by the scatter. `shift`, an int or [B], is added to
    positions (see `Tap`).
    """
    B, time = x.shape[0], site.axis_of("position")

    def one(x: jax.Array, numbered: tuple[jax.Array, EditRows]) -> tuple[jax.Array, None]:
        number, row = numbered
        index: list[Any] = [jnp.arange(B)]
        active = jnp.broadcast_to((row.layer == layer) | (row.layer == ALL_LAYERS), (B,))
        for axis, size in zip(site.axes[1:], x.shape[1:], strict=True):
            if axis in row.index:
                i = jnp.broadcast_to(row.index[axis], (B,))
                if axis == time:
                    i = jnp.where(i >= 0, i + shift, -1)
                active &= (i >= 0) & (i < size)  # a negative index would wrap round
                index.append(i)
            else:
                index.append(slice(None))
        index[0] = jnp.where(active, index[0], B)  # one past the end: dropped
        at = x.at[tuple(index)]
        old = at.get(mode="fill", fill_value=0).astype(wide(x.dtype))
        value = jnp.broadcast_to(row.value, old.shape).astype(old.dtype)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(row.seed), layer), number)

        def shuffled() -> jax.Array:
            t = site.axes.index(time or "")
            # One random cycle through all positions: a permutation that leaves no token its own values.
            order = jax.random.permutation(key, x.shape[t])
            source = jnp.zeros_like(order).at[order].set(jnp.roll(order, -1))
            moved, other = list(index), x
            if time in row.index:
                moved[t] = source.at[index[t]].get(mode="clip")
            else:
                other = jnp.take(x, source, axis=t)
            return other.at[tuple(moved)].get(mode="fill", fill_value=0).astype(old.dtype)

        def quantized() -> jax.Array:
            largest = jnp.max(jnp.abs(old), axis=tuple(range(1, old.ndim)), keepdims=True)
            step = jnp.maximum(largest / (2.0 ** (value - 1) - 1), jnp.finfo(jnp.float32).tiny)
            return jnp.round(old / step) * step

        def moved_to_one() -> jax.Array:
            # Only for rows whose positions are the last axis here: `_pack` sees to it.
            target = jnp.arange(old.shape[-1]) == value
            largest = jnp.max(jnp.where(target, -jnp.inf, old), axis=-1, keepdims=True)
            return jnp.where(target, largest, 0.0)

        new = lax.switch(
            jnp.where(jnp.any(active), row.op, 0),
            (
                lambda: value,
                lambda: value * old,
                lambda: old + value,
                lambda: old + value * jax.random.normal(key, old.shape, old.dtype),
                shuffled,
                quantized,
                moved_to_one,
            ),
        )
        return at.set(new.astype(x.dtype), mode="drop"), None

    numbers = jnp.arange(rows.layer.shape[0])
    return lax.scan(one, x, (numbers, rows))[0]


def _pack(
    edit: Edit, sizes: Mapping[str, int], tokens: np.ndarray | None, rules: Mapping[str, PositionRule], dtype: Any
) -> tuple[Site, EditRows]:
    """One checked edit as a row without the K axis."""
    site = find_site(edit.site)
    if 0 in site.shape(sizes):
        raise ValueError(f"this model has no site {site.name}.")
    if site.per_layer:
        if isinstance(edit.layer, str) and edit.layer == "all":
            layer = ALL_LAYERS
        elif edit.layer is None:
            raise ValueError(f"{site.name} is in every block: give layer=1 to {sizes['L']}, or 'all'.")
        else:
            (layer,) = check_layers([edit.layer], sizes["L"], "layer")  # type: ignore[list-item]
    elif edit.layer is not None and not (is_index(edit.layer) and edit.layer == 0):
        raise ValueError(f"{site.name} is outside the blocks: leave layer out (given {shown(edit.layer)}).")
    else:
        layer = 0
    if not isinstance(edit.op, str) or edit.op not in OPS:
        raise ValueError(f"unknown op {shown(edit.op)}; the operations are {', '.join(OPS)}.")

    index: dict[str, Any] = {}
    for name in ("position", "head", "key", "dim"):
        given = getattr(edit, name)
        axis = site.axis_of(name)
        if given is None:
            continue
        if axis is None:
            raise ValueError(f"{site.name} has axes {site.axes} and no {name}: leave it out (given {shown(given)}).")
        if name == "position":
            index[axis] = _positions(given, sizes["B"], sizes[axis], tokens, rules)
        elif not is_index(given) or not 0 <= given < sizes[axis]:
            raise ValueError(f"{name} {shown(given)} is out of range; {site.name} has {name} 0 to {sizes[axis] - 1}.")
        else:
            index[axis] = np.int32(given)
    index = {axis: index[axis] for axis in site.axes if axis in index}

    last = site.axes[-1]
    value = _value(edit, np.float32 if site.name in WIDE_SITES else dtype)
    if last in index:
        if value.ndim:
            raise ValueError(f"value has shape {value.shape}; with a dim given it must be one number.")
    elif value.ndim and value.shape != (sizes[last],):
        raise ValueError(
            f"value has shape {value.shape}; give one number, or one for each of the {sizes[last]} "
            f"{AXIS_NAMES[last]}s: shape ({sizes[last]},)."
        )
    else:
        value = np.broadcast_to(value, (sizes[last],))
    if edit.op == "quantize" and not np.isin(value, range(2, 17)).all():
        raise ValueError(f"value is {shown(edit.value)}; quantize takes a whole number of bits, 2 to 16.")
    if edit.op == "move":
        positions = site.axis_of("position")
        if positions is None or {*index, positions} != set(site.axes[1:]) or positions in index:
            raise ValueError(f"move takes one dim (and head) of all positions of {site.name}, which has {site.axes}.")
        if not is_index(edit.value) or not 0 <= value < sizes[positions] or sizes[positions] < 2:
            raise ValueError(f"move to position {shown(edit.value)}: there are positions 0 to {sizes[positions] - 1}.")
    op = np.int32(OPS.index(edit.op))
    return site, EditRows(np.int32(layer), index, op, value, np.uint32(seed_number(edit.seed)))


def _value(edit: Edit, dtype: Any) -> np.ndarray:
    """The value of `edit` in float32: finite where what was given is, and in `dtype` too where it is set."""
    try:
        given = np.asarray(edit.value)
    except ValueError:  # rows of different lengths
        given = np.asarray(None)
    if not (jnp.issubdtype(given.dtype, jnp.floating) or given.dtype.kind in "biu"):  # None would become nan
        raise ValueError(f"value is {shown(edit.value)}; give a number or an array of numbers.")
    with np.errstate(over="ignore"):
        value = given.astype(np.float32)
        for name, cast in (("float32", value), (jnp.dtype(dtype).name, value.astype(dtype))):
            if (edit.op == "set" or name == "float32") and (np.isfinite(given) & ~np.isfinite(cast)).any():
                raise ValueError(f"value is {shown(edit.value)}, which {name} does not hold: it would be infinite.")
    return value


def _positions(given: Any, B: int, T: int, tokens: np.ndarray | None, rules: Mapping[str, PositionRule]) -> np.ndarray:
    """Positions for every sequence, int32 [B], from any of the forms `Edit.position` takes."""
    if isinstance(given, str) and given not in rules:
        raise ValueError(f"unknown position rule {given!r}; the rules are {', '.join(rules)}.")
    lowest = -1
    if isinstance(given, str) or callable(given):
        if tokens is None:
            raise ValueError(
                f"position rule {given!r} needs the tokens; it cannot be worked out under a jax transform."
            )
        given = (rules[given] if isinstance(given, str) else given)(np.asarray(tokens))
    elif is_index(given):
        given, lowest = np.full(B, given), 0
    array = np.asarray(given)
    if array.shape != (B,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"position is {array.dtype}{list(array.shape)}; give an int, or int[{B}] with one position a sequence."
        )
    bad = array[(array < lowest) | (array >= T)]
    if bad.size:
        none = "" if lowest == 0 else " (-1 for none)"
        raise ValueError(f"position {bad[0]} is out of range; there are positions 0 to {T - 1}{none}.")
    return array.astype(np.int32)


def _stack_rows(rows: Sequence[EditRows], B: int) -> EditRows:
    """Stacks rows along K and pads K to a power of two, so that a few edits more are no new shape."""
    K = max(_MIN_ROWS, 1 << (len(rows) - 1).bit_length())
    padding = dataclasses.replace(rows[-1], layer=np.int32(NO_LAYER))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows, *[padding] * (K - len(rows)))


def _describe(edit: Edit) -> str:
    """The fields of `edit` that are not at their default, for messages."""
    fields = []
    for field in dataclasses.fields(edit):
        value = getattr(edit, field.name)
        default: Any = field.default
        if field.name == "site" or not np.array_equal(value, default):
            fields.append(f"{field.name}={shown(value)}")
    return ", ".join(fields)
