"""Interventions as data.

A person writes `Edit`s; `compile_edits` checks them and turns them into the `edits` collection: for each site a
tuple of `EditRows`, fixed-shape arrays. Only shapes are compiled, so another layer, position, dim, operation or value
is the same program with other numbers, and a sweep is a `vmap` over the arrays (`stack_edits`).
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from massive_jax.arguments import is_index, seed_number, several, shown
from massive_jax.dtypes import wide
from massive_jax.probe.coordinates import SLOTS, UNPADDED, Coordinates
from massive_jax.probe.operations import OPERATIONS, OPS, Selection
from massive_jax.probe.sites import ALL_SITES, AXIS_NAMES, WIDE_SITES, Site, check_layers, find_site

NO_LAYER = -1  # the layer of a padding row: matches none
ALL_LAYERS = -2  # matches every layer
_MIN_ROWS = 4

PositionRule: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Works out a position for every sequence: int tokens [B, T] -> int [B], -1 for none.

Where a batch is padded, it is asked for one sequence at a time, [1, T] of its own tokens.
"""

RULES: Mapping[str, PositionRule] = {
    "first": lambda tokens: np.zeros(len(tokens), np.int32),
    "last": lambda tokens: np.full(len(tokens), tokens.shape[1] - 1, np.int32),
}


@dataclasses.dataclass(frozen=True)
class Edit:
    r"""Describes one intervention, as data.

    Edits apply in the order given; what a site captures is what is left after its edits.

    Attributes:
      site: where (see `massive_jax.probe.sites.ALL_SITES`).
      layer: 1-based, or "all"; None (or 0) for the sites that are not in a block: embed, final_norm, logits.
      position: token position(s) to edit, in a sequence's own tokens: None for all, an int (negative from the end), an
        int array [B] (one a sequence, -1 for none), a rule's name ("first", "last"; language models also know
        "first_delimiter") or a function tokens [B, T] -> [B].
      dim: index along the last axis (width, head width, MLP width or vocabulary); None for all.
      op: "set" (x ← value), "scale" (x ← value·x), "add" (x ← x + value), "noise" (x ← x + value·N(0, 1), the same
        numbers at the same position of every sequence), "shuffle" (x ← the same dims at another position, by a random
        cyclic permutation of the positions), "quantize" (x ← the nearest of 2^value - 1 evenly spaced numbers from
        -max|x| to max|x|, with one max for what is edited of a sequence: absmax quantisation with a scale per tensor)
        or "move" (position `value` takes the largest of the other positions' x, which become 0; for one dim, without a
        position).
      value: a number, or with dim=None an array with one value a dim. Noise: the standard deviation. Quantize: the
        number of bits, from 2 to 16. Move: the position that it moves to (negative from the end). Unused by shuffle.
      head: head index for the sites that have heads; None for all.
      key: key position for attn_logits and attn_probs (negative from the end); None for all. After a sequence's tokens
        come the slots of an attention bias.
      seed: seed of noise and shuffle.

    Examples:
      >>> tokens = model.tokenize("Summer is warm. Winter is cold.\n")
      >>> zero = mj.Edit("block_out", layer=12, position=0, dim=507, op="set", value=0.0)
      >>> out = model(tokens, edits=zero, capture=mj.Capture("block_out", layers=12, max=True))
      >>> round(float(out.intermediates["block_out"].max[0, 0]))  # 23147 without the edit
      1693
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
    """Holds K edits of one site that index the same axes, as arrays; padding rows have layer -1.

    Attributes:
      layer: int32 [K], 1-based, 0 for a site outside the blocks, -2 for all layers.
      index: axis letter -> int32 indices: [K, B] for position and key (-1 for none; a slot's key counts from
        `massive_jax.probe.coordinates.SLOTS`), [K] for the others. An axis that is absent is edited whole.
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
    mask: np.ndarray | None = None,
    new_tokens: int = 0,
) -> dict[str, tuple[EditRows, ...]]:
    """Checks `edits` and packs them into the `edits` collection.

    Args:
      edits: in the order they are to apply.
      sizes: a size for every axis letter ("B", "T", "S", "D", …) and "L", the number of layers.
      tokens: int [B, T] on the host, needed by position rules only.
      rules: named position rules.
      absent: sites that the model does not have.
      dtype: of the model's activations, which a value that is set has to fit.
      mask: bool [B, T], False for padding; None for none.
      new_tokens: how many of the T positions in `sizes` are generated after those of `tokens`, one at a time.

    Raises:
      ValueError: something else than an `Edit` among them; unknown or absent site, unknown op or rule; layer, position,
        head, key or dim out of range; an index the site has no axis for; a value of the wrong shape, or too large; a
        seed out of range; while generating, what needs the whole sequence. Everything wrong with every
        edit is in the one message.
    """
    sequences = _Sequences(tokens, mask, new_tokens)
    problems, packed = [], []
    for number, edit in enumerate(as_edits(edits)):
        try:
            if find_site(edit.site).name in absent:
                raise ValueError(f"this model has no site {edit.site}")
            packed.append(_pack(edit, sizes, sequences, rules, dtype))
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
    rows: EditRows,
    site: Site,
    layer: jax.Array | int,
    coordinates: Coordinates = UNPADDED,
) -> jax.Array:
    """Applies to `x`, the tensor of `site` at `layer`, those of the K edits in `rows` that are meant for it.

    A row is a gather of the elements it names and a scatter back, so its cost does not grow with the tensor. Rows of
    other layers, positions that are not there and padding rows are dropped by the scatter. What an edit of all
    positions writes to padding is for the caller to hide.
    """
    B = x.shape[0]

    def one(x: jax.Array, numbered: tuple[jax.Array, EditRows]) -> tuple[jax.Array, None]:
        number, row = numbered
        index: list[Any] = [jnp.arange(B)]
        active = jnp.broadcast_to((row.layer == layer) | (row.layer == ALL_LAYERS), (B,))
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
        old = at.get(mode="fill", fill_value=0).astype(wide(x.dtype))
        value = jnp.broadcast_to(row.value, old.shape).astype(old.dtype)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(row.seed), layer), number)
        found = Selection(x, tuple(index), positions, whole, old, value, key, site, coordinates)
        new = lax.switch(
            jnp.where(jnp.any(active), row.op, 0),
            [functools.partial(operation.apply, found) for operation in OPERATIONS.values()],
        )
        return at.set(new.astype(x.dtype), mode="drop"), None

    numbers = jnp.arange(rows.layer.shape[0])
    return lax.scan(one, x, (numbers, rows))[0]


@dataclasses.dataclass(frozen=True)
class _Sequences:
    """What is known of the sequences on the host: see `compile_edits`."""

    tokens: np.ndarray | None
    mask: np.ndarray | None
    new_tokens: int

    @property
    def known(self) -> bool:
        """Whether their lengths are: not under a jax transform of the mask."""
        return not isinstance(self.mask, jax.core.Tracer)

    def lengths(self, B: int, T: int) -> np.ndarray:
        """Tokens of each sequence, those to be generated too: int [B], for T positions of a batch without padding."""
        if self.mask is None or not self.known:
            return np.full(B, T)
        return np.asarray(self.mask).sum(axis=1) + self.new_tokens

    def ask(self, rule: PositionRule, name: object) -> np.ndarray:
        """A rule's positions, int [B], each of a sequence's own tokens."""
        if self.tokens is None:
            raise ValueError(f"position rule {name!r} needs the tokens; it cannot be worked out under a jax transform.")
        tokens = np.asarray(self.tokens)
        if self.mask is None or np.all(self.mask):
            return np.asarray(rule(tokens))
        found = [np.asarray(rule(row[own][None])) for row, own in zip(tokens, self.mask, strict=True)]
        if any(f.shape != (1,) for f in found):
            raise ValueError(f"position rule {name!r} gives {found[0].shape} for one sequence; expected int [1].")
        return np.concatenate(found)


def _pack(
    edit: Edit, sizes: Mapping[str, int], sequences: _Sequences, rules: Mapping[str, PositionRule], dtype: Any
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
            index[axis] = _positions(given, sizes["B"], sequences.lengths(sizes["B"], sizes[axis]), sequences, rules)
        elif name == "key":
            tokens = sequences.lengths(sizes["B"], sizes["T"])
            keys = tokens + sizes[axis] - sizes["T"]
            found = _from_the_end(given, sequences, keys, "key", f"{site.name} has key")
            # Where a sequence grows, its slots stay what they are; where its length is not known, so is which is one.
            is_slot = (found >= tokens) & sequences.known
            index[axis] = np.where(is_slot, SLOTS + found - tokens, found).astype(np.int32)
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
        lengths = sequences.lengths(sizes["B"], sizes[positions])
        if lengths.min() < 2:
            raise ValueError(f"move in a sequence of {lengths.min()} token: there is no other position.")
        _from_the_end(edit.value, sequences, lengths, "move to position")
    if sequences.new_tokens and OPERATIONS[edit.op].whole_sequence:
        raise ValueError(
            f"{edit.op} looks at all tokens of a sequence, which are not there while generating; edit with it in "
            "model(…), or take set, scale, add or noise."
        )
    if sequences.new_tokens and site.name == "attn_probs" and edit.op in ("set", "add", "noise") and value.any():
        # The softmax gives 0 to what a query does not see yet, which these make a number: of keys that are not there.
        prompt = sequences.lengths(sizes["B"], sizes["T"]) - sequences.new_tokens
        key, query = index.get("S"), index.get("T", -1)
        if key is None or ((key >= prompt) & (key < SLOTS) & (key > query)).any():
            raise ValueError(
                f"{edit.op} of attention probabilities at keys after the query, which are not there while generating; "
                "give one key of the prompt, or edit attn_logits."
            )
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


def _positions(
    given: Any, B: int, lengths: np.ndarray, sequences: _Sequences, rules: Mapping[str, PositionRule]
) -> np.ndarray:
    """Positions for every sequence, int32 [B], from any of the forms `Edit.position` takes."""
    if isinstance(given, str) and given not in rules:
        raise ValueError(f"unknown position rule {given!r}; the rules are {', '.join(rules)}.")
    if is_index(given):
        return _from_the_end(given, sequences, lengths, "position")
    if isinstance(given, str) or callable(given):
        given = sequences.ask(rules[given] if isinstance(given, str) else given, given)
    array = np.asarray(given)
    if array.shape != (B,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"position is {array.dtype}{list(array.shape)}; give an int, or int[{B}] with one position a sequence."
        )
    _check_range(array, np.full(B, -1), lengths, "position", "there are positions", " (-1 for none)")
    return array.astype(np.int32)


def _from_the_end(
    given: Any, sequences: _Sequences, lengths: np.ndarray, what: str, there: str = "there are positions"
) -> np.ndarray:
    """One index for all sequences, negative ones from the end of each: int32 [B]."""
    if not is_index(given):
        raise ValueError(f"{what} {given!r} is not an integer.")
    if given < 0 and not sequences.known:
        raise ValueError(f"{what} {given} is from the end of sequences whose lengths a jax transform does not show.")
    array = np.full(len(lengths), operator.index(given))
    _check_range(array, -lengths, lengths, what, there)
    return np.where(array < 0, array + lengths, array).astype(np.int32)


def _check_range(
    array: np.ndarray, lowest: np.ndarray, lengths: np.ndarray, what: str, there: str, note: str = ""
) -> None:
    """Nothing where `lowest` <= array < `lengths`; ValueError that names the first sequence where not."""
    bad = np.flatnonzero((array < lowest) | (array >= lengths))
    if bad.size:
        row = bad[0]
        of = f" in sequence {row}" if (lengths != lengths[0]).any() else ""
        raise ValueError(f"{what} {array[row]} is out of range; {there} 0 to {lengths[row] - 1}{of}{note}.")


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
