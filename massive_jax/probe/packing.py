"""Checks `Edit`s and makes data of them: the `edits` collection, for each site a tuple of `EditRows`.

Only shapes are compiled, so another layer, position, dim, operation or value is the same program with other numbers,
and a sweep is a `vmap` over the arrays (`massive_jax.probe.stack_edits`).
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from massive_jax.arguments import seed_number, shown
from massive_jax.dtypes import wide
from massive_jax.probe.coordinates import SLOTS
from massive_jax.probe.edit import Edit, as_edits, describe
from massive_jax.probe.functions import PerToken, check_function
from massive_jax.probe.operations import OPERATIONS, OPS
from massive_jax.probe.places import (
    NO_LAYER,
    RULES,
    Place,
    PositionRule,
    Sequences,
    find_layers,
    find_place,
    from_the_end,
)
from massive_jax.probe.rows import EditRows
from massive_jax.probe.sites import ALL_SITES, WIDE_SITES, Site, find_site
from massive_jax.probe.values import Region, number_or_array, numpy_of

_MIN_ROWS = 4


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
        seed out of range; a function that fails, or gives another shape or dtype; while generating, what needs the
        whole sequence; with padding, what needs to be without. Everything wrong with every edit is in the one message.
    """
    sequences = Sequences(sizes, tokens, mask, new_tokens)
    problems, packed = [], []
    for number, edit in enumerate(as_edits(edits)):
        try:
            if find_site(edit.site).name in absent:
                raise ValueError(f"this model has no site {edit.site}")
            packed.append(_pack(edit, sequences, rules, dtype))
        except ValueError as error:
            problems.append(f"edit {number} ({describe(edit)}): {error}")
    if problems:
        raise ValueError("\n".join(problems))
    collection: dict[str, tuple[EditRows, ...]] = {}
    for name in ALL_SITES:
        rows = [row for site, row in packed if site.name == name]
        # Runs of edits with the same axes share one array, so that edits keep their order.
        runs = [list(run) for _, run in itertools.groupby(rows, key=_form)]
        if runs:
            collection[name] = tuple(map(_stack_rows, runs))
    return collection


def _pack(edit: Edit, sequences: Sequences, rules: Mapping[str, PositionRule], dtype: Any) -> tuple[Site, EditRows]:
    """One checked edit as a row without the K axis."""
    site, sizes, op = find_site(edit.site), sequences.sizes, edit.op
    if 0 in site.shape(sizes):
        raise ValueError(f"this model has no site {site.name}.")
    layer, layers = find_layers(edit.layer, site, sizes["L"])
    if not (callable(op) or isinstance(op, PerToken) or (isinstance(op, str) and op in OPS)):
        raise ValueError(
            f"unknown op {shown(op)}; the operations are {', '.join(OPS)}, and functions fn(x, value) -> x."
        )
    found: dict[str | None, Place] = {
        site.axis_of(name): find_place(name, given, site, sequences, rules)
        for name in ("position", "head", "key", "dim")
        if (given := getattr(edit, name)) is not None
    }
    places = {axis: found[axis] for axis in site.axes if axis in found}
    region = Region(site, places, sequences)
    index = {axis: place.index for axis, place in places.items() if place.index is not None}
    chosen = {axis: place.chosen for axis, place in places.items() if place.index is None}
    if layers is not None:
        chosen["L"] = layers
    dtype = np.float32 if site.name in WIDE_SITES else dtype
    row = EditRows(np.int32(layer), index, np.int32(0), edit.value, np.uint32(seed_number(edit.seed)), chosen)
    if not isinstance(op, str):
        check_lookahead(op, region.axes, sequences)
        check_function(op, region.axes, region.shape, wide(dtype), edit.value)
        return site, dataclasses.replace(row, fn=op)
    value, only = region.fit(number_or_array(edit.value, op, dtype))
    if only is not None:
        chosen["T"] = chosen["T"] & only if "T" in chosen else only
    if not value.ndim and site.axes[-1] not in index:
        value = numpy_of(value).broadcast_to(value, (sizes[site.axes[-1]],))
    _check_operation(op, edit.value, region, value)
    return site, dataclasses.replace(row, value=value, op=np.int32(OPS.index(op)))


def check_lookahead(fn: Any, axes: str, sequences: Sequences) -> None:
    """Checks that a function of a tensor with these axes sees no padding, and nothing that is still to come.

    Raises:
      ValueError: it does.
    """
    if sequences.whole or not set(axes) & {"T", "S"} or ("S" not in axes and isinstance(fn, PerToken)):
        return
    where = "while generating" if sequences.new_tokens else "in a batch with padding"
    if "S" in axes:
        raise ValueError(f"a function of all keys {where}, where some are none; name one key, or edit another site.")
    raise ValueError(
        f"a function of whole tensors {where}, where it does not see a sequence as it is by itself; give "
        "PerToken(fn), with fn of one token, or name one position."
    )


def _check_operation(op: str, given: Any, region: Region, value: Any) -> None:
    """Checks what some operations want of the places, the value, as given and as it is compiled, and the sequences."""
    site, sequences, index = region.site, region.sequences, region.places
    if op == "quantize" and (isinstance(value, jax.core.Tracer) or not np.isin(value, range(2, 17)).all()):
        raise ValueError(f"value is {shown(given)}; quantize takes a whole number of bits, 2 to 16.")
    if op == "move":
        positions = site.axis_of("position")
        others = {axis for axis, place in index.items() if place.index is not None}
        if positions is None or {*index} != others or {*index, positions} != set(site.axes[1:]) or positions in index:
            raise ValueError(f"move takes one dim (and head) of all positions of {site.name}, which has {site.axes}.")
        lengths = sequences.lengths(positions)
        if lengths.min() < 2:
            raise ValueError(f"move in a sequence of {lengths.min()} token: there is no other position.")
        from_the_end(given, sequences, lengths, "move to position")
    if sequences.new_tokens and OPERATIONS[op].whole_sequence:
        raise ValueError(
            f"{op} looks at all tokens of a sequence, which are not there while generating; edit with it in "
            "model(…), or take set, scale, add or noise."
        )
    numbers = site.name == "attn_probs" and op in ("set", "add", "noise") and _any(value)
    # The softmax gives 0 to what a query does not see yet, which these make a number: of keys that are not there.
    if sequences.new_tokens and numbers and _unseen(index.get("S"), index.get("T"), sequences):
        raise ValueError(
            f"{op} of attention probabilities at keys after the query, which are not there while generating; "
            "give one key of the prompt, or edit attn_logits."
        )


def _any(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer) or bool(np.any(value))


def _unseen(key: Place | None, query: Place | None, sequences: Sequences) -> bool:
    """Whether an edit of these keys is also of one that is generated after the query."""
    if key is None:
        return True
    prompt = sequences.prompt()
    if key.index is None:
        return bool((key.chosen[:, : prompt.shape[1]] & ~prompt).any())
    first = query.index if query is not None and query.index is not None else -1
    return bool(((key.index >= prompt.sum(axis=1)) & (key.index < SLOTS) & (key.index > first)).any())


def _form(row: EditRows) -> Any:
    """What rows that share their arrays have in common; one of its own for a function."""
    shapes = np.shape(row.value) if row.fn is None else id(row)
    return tuple(row.index), frozenset(row.chosen), shapes


def _stack_rows(rows: Sequence[EditRows]) -> EditRows:
    """Stacks rows along K and pads K to a power of two, so that a few edits more are no new shape."""
    first = rows[0]
    if first.fn is not None:  # a function has its arrays to itself, as they are
        stacked = jax.tree.map(lambda leaf: leaf[None], dataclasses.replace(first, value=None))
        return dataclasses.replace(stacked, value=first.value)
    least = _MIN_ROWS if np.ndim(first.value) <= 1 else 1  # of a tensor not for nothing
    K = max(least, 1 << (len(rows) - 1).bit_length())
    padding = dataclasses.replace(rows[-1], layer=np.int32(NO_LAYER))
    return jax.tree.map(_stacked, *rows, *[padding] * (K - len(rows)))


def _stacked(*leaves: Any) -> Any:
    return numpy_of(*leaves).stack(leaves)
