"""Where an edit is, in every form that a person may give: layers, positions, keys, heads, dims.

One number along an axis is an index, of which an edit is a gather and a scatter; several are a mask, so that others,
and another number of them, are never another compilation. Positions count a sequence's own tokens from 0.
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import is_index, several, shown
from massive_jax.probe.coordinates import SLOTS
from massive_jax.probe.sites import SITES, Site, check_layers

NO_LAYER = -1  # the layer of a padding row: matches none
ALL_LAYERS = -2  # matches every layer

PositionRule: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Works out places of every sequence: int tokens [B, T] -> int [B], one each (-1 for none), or bool [B, T], several.

Where a batch is padded, it is asked for one sequence at a time, [1, T] of its own tokens.
"""

RULES: Mapping[str, PositionRule] = {
    "first": lambda tokens: np.zeros(len(tokens), np.int32),
    "last": lambda tokens: np.full(len(tokens), tokens.shape[1] - 1, np.int32),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Holds where an edit is along one axis: at one index, or at several.

    Attributes:
      index: int32 [], or [B] for positions and keys; None for several.
      chosen: bool [size], or [B, size] for positions and keys; None for one.
      listed: int [n] or [B, n], several in the order they were named in; None where they have none.
    """

    index: Any = None
    chosen: Any = None
    listed: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Holds what is known of the sequences on the host.

    Attributes:
      sizes: a size for every axis letter; "T" counts the tokens that are to be generated too.
      tokens: int [B, T]; None under a jax transform.
      mask: bool [B, T], False for padding; None for none.
      new_tokens: how many positions are generated after those of the tokens.
    """

    sizes: Mapping[str, int]
    tokens: np.ndarray | None
    mask: np.ndarray | None
    new_tokens: int

    @property
    def known(self) -> bool:
        """Whether their lengths are: not under a jax transform of the mask."""
        return not isinstance(self.mask, jax.core.Tracer)

    @property
    def whole(self) -> bool:
        """Whether there is neither padding nor anything to come."""
        return not self.new_tokens and (self.mask is None or (self.known and bool(np.all(self.mask))))

    def lengths(self, axis: str) -> np.ndarray:
        """Tokens of each sequence along "T" or "P", those to be generated too: int [B]."""
        if self.mask is None or not self.known:
            return np.full(self.sizes["B"], self.sizes[axis])
        return np.asarray(self.mask).sum(axis=1) + self.new_tokens

    def columns(self, axis: str) -> int:
        """Counts the columns that what is given along an axis has: those of the tokens."""
        return self.mask.shape[1] if axis == "T" and self.new_tokens and self.mask is not None else self.sizes[axis]

    def own_columns(self, axis: str) -> Any:
        """Gives the column of each position, int [B, size] ([B, keys] along "S"); None where they are the same."""
        if self.mask is None or self.whole or axis not in "TS" or (axis == "S" and self.new_tokens):
            return None
        xp = np if self.known else jnp
        order = xp.argsort(~xp.asarray(self.mask), axis=1, stable=True)
        if axis == "T":
            return order[:, np.minimum(np.arange(self.sizes["T"]), order.shape[1] - 1)]
        slots = np.broadcast_to(np.arange(self.sizes["T"], self.sizes["S"]), (len(order), self.num_slots))
        return xp.concatenate([order, slots], axis=1)

    @property
    def num_slots(self) -> int:
        """Counts the slots of an attention bias, which come after the keys of the tokens."""
        return self.sizes["S"] - self.sizes["T"]

    def prompt(self) -> np.ndarray:
        """Says which positions are those of the tokens that are given: bool [B, T]."""
        return np.arange(self.sizes["T"]) < (self.lengths("T") - self.new_tokens)[:, None]

    def ask(self, rule: PositionRule, name: object) -> np.ndarray:
        """A rule's places, of each sequence's own tokens: int [B], or bool [B, T]."""
        if self.tokens is None:
            raise ValueError(f"position rule {name!r} needs the tokens; it cannot be worked out under a jax transform.")
        tokens = np.asarray(self.tokens)
        if self.mask is None or np.all(self.mask):
            return self._mask_of_rule(np.asarray(rule(tokens)), tokens)
        own = [row[of][None] for row, of in zip(tokens, self.mask, strict=True)]
        found = [self._mask_of_rule(np.asarray(rule(row)), row) for row in own]
        if any(f.shape != found[0].shape or len(f) != 1 for f in found):
            raise ValueError(f"position rule {name!r} gives {found[0].shape} for one sequence; expected int [1].")
        return np.concatenate(found)

    def _mask_of_rule(self, found: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What a rule gives; a mask of the tokens by position, of all that there are to be."""
        if found.dtype != bool or tokens.ndim != 2 or found.shape != tokens.shape:
            return found
        T = self.sizes["T"]
        return np.pad(found, ((0, 0), (0, max(0, T - found.shape[1]))))[:, :T]


def find_layers(given: Any, site: Site, num_layers: int) -> tuple[int, np.ndarray | None]:
    """Gives a layer's number, and of several which, bool [L] (None for one or all)."""
    if not site.per_layer:
        if given is not None and not (is_index(given) and given == 0):
            raise ValueError(f"{site.name} is outside the blocks: leave layer out (given {shown(given)}).")
        return 0, None
    if given is None:
        raise ValueError(f"{site.name} is in every block: give layer=1 to {num_layers}, or 'all'.")
    if isinstance(given, str) and given == "all":
        return ALL_LAYERS, None
    if isinstance(given, slice):
        first = 1 if given.start is None else given.start
        layers: Any = _cut(range(num_layers + 1), slice(first, given.stop, given.step), "layer")
    else:
        numbers = given.tolist() if isinstance(given, np.ndarray | jax.Array) and given.ndim else given
        layers = None if is_index(given) else several(numbers)
        if layers is None:
            return check_layers([given], num_layers, "layer")[0], None
    layers = check_layers(layers, num_layers, "layer")
    if not layers:
        raise ValueError(f"layer {shown(given)} names no layer; there are 1 to {num_layers}.")
    return ALL_LAYERS, _chosen(np.array(layers) - 1, num_layers)


def find_place(name: str, given: Any, site: Site, sequences: Sequences, rules: Mapping[str, PositionRule]) -> Place:
    """Gives where an edit is along the axis that `name` (position, key, head, dim) indexes at `site`."""
    axis = site.axis_of(name)
    if axis is None:
        raise ValueError(f"{site.name} has axes {site.axes} and no {name}: leave it out (given {shown(given)}).")
    if isinstance(given, jax.core.Tracer) and not (name == "position" and given.dtype == bool):
        raise ValueError(f"{name} is hidden by a jax transform; give numbers, and transform over compiled edits.")
    if name == "position":
        return _position(given, axis, sequences, rules)
    if name == "key":
        return _key(given, site, sequences)
    size, there = sequences.sizes[axis], f"{site.name} has {name} 0 to {sequences.sizes[axis] - 1}"
    if isinstance(given, slice):
        listed = np.array(_cut(range(size), given, name), int)
    elif isinstance(given, np.ndarray | jax.Array) and given.dtype == bool and given.ndim:
        if given.shape != (size,):
            raise ValueError(f"{name} is bool{list(given.shape)}; {there}: give numbers, or bool[{size}].")
        return Place(chosen=np.asarray(given))
    else:
        numbers = given.tolist() if isinstance(given, np.ndarray | jax.Array) and given.ndim else given
        found = None if is_index(given) else several(numbers)
        if bad := [i for i in ((given,) if found is None else found) if not is_index(i) or not 0 <= i < size]:
            raise ValueError(f"{name} {shown(given if found is None else bad[0])} is out of range; {there}.")
        if found is None:
            return Place(np.int32(given))
        listed = np.array(sorted(found) if isinstance(given, set | frozenset) else found, int)
    if not listed.size:
        raise ValueError(f"{name} {shown(given)} names none; {there}.")
    return Place(None, _chosen(listed, size), listed)


def find_position(
    given: Any,
    sizes: Mapping[str, int],
    tokens: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    rules: Mapping[str, PositionRule] = RULES,
) -> np.ndarray:
    """Gives one position of each sequence, int32 [B], from what an `Edit` takes (see `compile_edits` for the rest).

    Raises:
      ValueError: as for an edit; several positions of a sequence, or none.
    """
    index = find_place("position", given, SITES["block_out"], Sequences(sizes, tokens, mask, 0), rules).index
    if index is None:
        raise ValueError(
            f"position is {shown(given)}, which may be several of a sequence; give one of each (an int, an int array "
            "[B] or a rule), or None for all."
        )
    if (index < 0).any():
        raise ValueError(f"position is {shown(given)}, which is none of sequence {np.argmin(index)}; give one of each.")
    return np.broadcast_to(index, (sizes["B"],)).astype(np.int32)


def find_positions(
    given: Any,
    sizes: Mapping[str, int],
    tokens: np.ndarray,
    mask: np.ndarray,
    rules: Mapping[str, PositionRule] = RULES,
) -> np.ndarray:
    """Says which of each sequence's own positions are meant, bool [B, T], by what an `Edit` takes; errors as there."""
    place = find_place("position", given, SITES["block_out"], Sequences(sizes, tokens, mask, 0), rules)
    if place.index is None:
        return np.asarray(place.chosen)
    return np.arange(sizes["T"]) == np.broadcast_to(place.index, (sizes["B"],))[:, None]


def find_heads(given: Any, num_heads: int) -> np.ndarray:
    """Gives the query heads that a person names as an `Edit` does, in that order: int32 [H']; ValueError otherwise."""
    place = find_place("head", given, SITES["attn_probs"], Sequences({"H": num_heads}, None, None, 0), RULES)
    found = place.listed if place.index is None else np.atleast_1d(place.index)
    found = np.flatnonzero(place.chosen) if found is None else found
    if not found.size:
        raise ValueError(f"heads is {shown(given)}, which names none; there are 0 to {num_heads - 1}.")
    return found.astype(np.int32)


def ambiguous(given: Any, count: int) -> str | None:
    """Says what to write for a list of as many positions as there are sequences; None where it is clear."""
    if not isinstance(given, list | tuple) or len(given) != count or not all(map(is_index, given)):
        return None
    if count == 1 and given[0] >= 0:  # the one of the one
        return None
    numbers = ", ".join(map(str, given))
    return (
        f"position is {shown(given)}, {count} for {count} sequences: write np.array([{numbers}]) for one a sequence "
        f"(-1 for none), or the set {{{numbers}}} for those of every sequence."
    )


def from_the_end(
    given: Any, sequences: Sequences, lengths: np.ndarray, what: str, there: str = "there are positions"
) -> np.ndarray:
    """One index for all sequences, negative ones from the end of each: int32 [B]."""
    if not is_index(given):
        raise ValueError(f"{what} {shown(given)} is not an integer.")
    if given < 0 and not sequences.known:
        raise ValueError(f"{what} {given} is from the end of sequences whose lengths a jax transform does not show.")
    array = np.full(len(lengths), operator.index(given))
    _check_range(array, -lengths, lengths, what, there)
    return np.where(array < 0, array + lengths, array).astype(np.int32)


def _position(given: Any, axis: str, sequences: Sequences, rules: Mapping[str, PositionRule]) -> Place:
    """Positions, from any of the forms that `Edit.position` takes."""
    B, size, lengths = sequences.sizes["B"], sequences.sizes[axis], sequences.lengths(axis)
    if isinstance(given, str) and given not in rules:
        raise ValueError(f"unknown position rule {given!r}; the rules are {', '.join(rules)}.")
    if is_index(given):
        return Place(from_the_end(given, sequences, lengths, "position"))
    if isinstance(given, str) or callable(given):
        array: Any = sequences.ask(rules[given] if isinstance(given, str) else given, given)
        if array.dtype == bool and array.shape == (B, size):
            return Place(chosen=array)
    elif (place := _several(given, size, sequences, lengths, "position")) is not None:
        return place
    else:
        try:
            array = given if isinstance(given, jax.core.Tracer) else np.asarray(given)
        except ValueError:  # rows of different lengths
            array = np.asarray(None)
    columns = sequences.columns(axis)
    if array.dtype == bool and array.shape == (B, columns):
        own = sequences.own_columns(axis)
        if own is None:
            return Place(chosen=array)
        xp = np if sequences.known and isinstance(array, np.ndarray) else jnp
        # Beyond a sequence's tokens there is nothing, or what is generated, which a mask of the tokens does not name.
        there = sequences.prompt() if sequences.known else True
        return Place(chosen=xp.take_along_axis(xp.asarray(array), own, axis=1) & there)
    if array.shape != (B,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"position is {array.dtype}{list(array.shape)}; give an int, or int[{B}] with one position a sequence, a "
            f"list or slice of those of every sequence, or bool[{B}, {columns}]."
        )
    _check_range(array, np.full(B, -1), lengths, "position", "there are positions", " (-1 for none)")
    return Place(array.astype(np.int32))


def _key(given: Any, site: Site, sequences: Sequences) -> Place:
    """Keys, from a number, a list or a slice."""
    lengths, size = sequences.lengths("T"), sequences.sizes["S"]
    there = f"{site.name} has key"
    if is_index(given):
        found = from_the_end(given, sequences, lengths + sequences.num_slots, "key", there)
        # Where a sequence grows, its slots stay what they are; where its length is not known, so is which is one.
        is_slot = (found >= lengths) & sequences.known
        return Place(np.where(is_slot, SLOTS + found - lengths, found).astype(np.int32))
    place = _several(given, size, sequences, lengths + sequences.num_slots, "key", there, check=False)
    if place is None:
        raise ValueError(f"key {shown(given)} is not an integer, and no list or slice of integers.")
    if sequences.num_slots and not sequences.known:
        raise ValueError(
            f"key {shown(given)}: a jax transform hides which are slots of the attention bias; give one key."
        )
    # A sequence's slots are its last keys, which are kept behind those of the longest.
    found, own = np.nonzero(place.chosen)
    is_slot = (own >= lengths[found]) & sequences.known
    chosen = np.zeros_like(place.chosen)
    chosen[found, np.where(is_slot, sequences.sizes["T"] + own - lengths[found], own)] = True
    return Place(None, chosen, place.listed if sequences.whole else None)


def _several(
    given: Any,
    size: int,
    sequences: Sequences,
    lengths: np.ndarray,
    what: str,
    there: str = "there are positions",
    check: bool = True,
) -> Place | None:
    """Positions or keys of every sequence, from a slice, or a list or set of numbers; None for another form."""
    if isinstance(given, slice):
        ends = [end for end in (given.start, given.stop) if is_index(end)]
        if not sequences.known and (any(end < 0 for end in ends) or (given.step or 1) < 0):
            raise ValueError(f"{what} {given} is from the end of sequences whose lengths a jax transform hides.")
        rows = [np.array(_cut(range(length), given, what), int) for length in lengths]
        if not any(map(len, rows)):
            raise ValueError(f"{what} {given} names none; {there} 0 to {lengths.max() - 1}.")
        same = all(len(row) == len(rows[0]) for row in rows)
        return Place(None, np.stack([_chosen(row, size) for row in rows]), np.stack(rows) if same else None)
    if not isinstance(given, list | tuple | range | set | frozenset) or not all(map(is_index, given)):
        return None
    if not given:
        raise ValueError(f"{what} {shown(given)} names none; {there} 0 to {lengths.max() - 1}.")
    if check and (problem := ambiguous(given, len(lengths))):
        raise ValueError(problem)
    numbers = sorted(given) if isinstance(given, set | frozenset) else given
    listed = np.stack([from_the_end(i, sequences, lengths, what, there) for i in numbers], axis=1)
    return Place(None, np.stack([_chosen(row, size) for row in listed]), listed)


def _cut(numbers: range, given: slice, what: str) -> range:
    """Those of `numbers` that a slice names."""
    try:
        return numbers[given]
    except (TypeError, ValueError):
        raise ValueError(f"{what} {given} is no slice of integers.") from None


def _chosen(indices: np.ndarray, size: int) -> np.ndarray:
    """Which of `size` are among the indices: bool [size]."""
    chosen = np.zeros(size, bool)
    chosen[indices] = True
    return chosen


def _check_range(
    array: np.ndarray, lowest: np.ndarray, lengths: np.ndarray, what: str, there: str, note: str = ""
) -> None:
    """Nothing where `lowest` <= array < `lengths`; ValueError that names the first sequence where not."""
    bad = np.flatnonzero((array < lowest) | (array >= lengths))
    if bad.size:
        row = bad[0]
        of = f" in sequence {row}" if (lengths != lengths[0]).any() else ""
        raise ValueError(f"{what} {array[row]} is out of range; {there} 0 to {lengths[row] - 1}{of}{note}.")
