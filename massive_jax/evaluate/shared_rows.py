"""Rows of tokens in which many short sequences stand behind one another, what they begin with alike once.

So the context of several answers is run once, and next to nothing is padded. Of a model a row is one input, whose
edits say column by column where they are. Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from massive_jax.arguments import is_index
from massive_jax.evaluate.batches import TOKENS_A_BATCH
from massive_jax.forward import left_pad
from massive_jax.model import TextModel
from massive_jax.models import Packing
from massive_jax.probe import ALL_SITES, Edit, PerToken, find_positions

_ROW = 256  # tokens of a row, where what it holds is no longer
_SHARED = 0.25  # a sequence stands by the one before it where they have this part of it in common
_MOST_LENGTHS = 8  # that longer ones, and those that stand alone, are padded to
_COARSEST = 256  # lengths that are looked at for that, on a grid of 8 tokens or coarser
_SEQUENCES = 1024  # whose edits are looked up at one time
_BY_TOKEN = ("set", "scale", "add")  # what each does to a token depends on nothing else

Pair = tuple[Sequence[int], Sequence[int]]


@dataclasses.dataclass
class Row:
    """Holds the tokens of a row, and what is asked of them.

    Attributes:
      ids: the tokens.
      marks: of each token a bit for each edit, whether it is edited there.
      parents: the column before each token in its own sequence; -1 for a first one.
      asked: column -> the tokens that may come next, each with its place among them.
      answers: number of a pair -> the (column, place) of each token of its continuation.
    """

    ids: list[int] = dataclasses.field(default_factory=list)
    marks: list[int] = dataclasses.field(default_factory=list)
    parents: list[int] = dataclasses.field(default_factory=list)
    asked: dict[int, dict[int, int]] = dataclasses.field(default_factory=dict)
    answers: dict[int, list[tuple[int, int]]] = dataclasses.field(default_factory=dict)

    def add(self, unit: Sequence[_Sequence]) -> None:
        """Adds sequences, with what they begin with alike once."""
        columns: dict[tuple[int, int, int], int] = {}
        for its in unit:
            path, parent = [], -1
            for token, mark in zip(its.ids, its.marks, strict=True):
                column = columns.setdefault((parent, token, mark), len(self.ids))
                if column == len(self.ids):
                    self.ids.append(token)
                    self.marks.append(mark)
                    self.parents.append(parent)
                path.append(column)
                parent = column
            found = []
            for column, token in zip(path[-len(its.continuation) :], its.continuation, strict=True):
                tokens = self.asked.setdefault(column, {})
                found.append((column, tokens.setdefault(token, len(tokens))))
            self.answers[its.number] = found


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """What the model is run on for a pair: all but its last token, and where edits are in it."""

    number: int
    ids: tuple[int, ...]
    continuation: tuple[int, ...]
    marks: tuple[int, ...]

    def shared(self, other: _Sequence) -> int:
        """Counts the tokens that both begin with."""
        both = zip(zip(self.ids, self.marks, strict=True), zip(other.ids, other.marks, strict=True), strict=False)
        return next((i for i, (one, two) in enumerate(both) if one != two), min(len(self.ids), len(other.ids)))


def can_share(model: TextModel, edits: Sequence[Edit], longest: int) -> bool:
    """Tells whether a row may be several sequences of up to `longest` tokens: each gives what it gives by itself.

    Not where an edit looks at a whole sequence, draws by the position in it, or has a value for each; nor where the
    rotary embedding depends on a sequence's length.
    """

    def local(edit: Edit) -> bool:
        axes = ALL_SITES[edit.site].axes
        if axes[1] != "T" or not (isinstance(edit.op, PerToken) or edit.op in _BY_TOKEN):
            return False
        one_a_dim = np.ndim(edit.value) == 1 and not is_index(edit.dim)
        return isinstance(edit.op, PerToken) or not np.ndim(edit.value) or one_a_dim

    return all(map(local, edits)) and not model.config.scaled_at(_room(longest, model.config.context_length))


def edits_of_rows(edits: Sequence[Edit], marks: np.ndarray) -> list[Edit]:
    """Gives edits of rows that are several sequences, whose `marks` are int [B, T]."""
    return [
        edit if edit.position is None else dataclasses.replace(edit, position=(marks >> i & 1).astype(bool))
        for i, edit in enumerate(edits)
    ]


def packing_of(rows: Sequence[Row], T: int) -> Packing:
    """Says which tokens of rows see which; those of sequences that stand alone too."""
    places, seen = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T, T), bool)
    for row, place, sees in zip(rows, places, seen, strict=True):
        for column, parent in enumerate(row.parents):
            if parent >= 0:
                place[column], sees[column] = place[parent] + 1, sees[parent]
            sees[column, column] = True
    return Packing(places, seen)


def rows_by_length(
    model: TextModel, pairs: Sequence[Pair], edits: Sequence[Edit], batch_tokens: int
) -> Iterator[tuple[int, bool, list[Row]]]:
    """Puts pairs of context and continuation into rows.

    Yields:
      A number of columns, whether its rows may be several sequences, and the rows.
    """
    longest, most = max(len(context) + len(rest) - 1 for context, rest in pairs), model.config.context_length
    sharing = can_share(model, edits, longest)
    sequences = sorted(_sequences(model, pairs, edits if sharing else ()), key=lambda its: (its.ids, its.marks))
    units = sorted(_units(sequences, most if sharing else None), key=lambda sized: sized[0])
    short = bisect.bisect_right(units, min(_ROW, most), key=lambda sized: sized[0]) if sharing else 0
    if short:
        rows = _filled(units[:short], min(_ROW, most))
        yield min(most, -(-max(len(row.ids) for row in rows) // 8) * 8), True, rows
    if units[short:]:
        lengths = np.minimum(padded_lengths([size for size, _ in units[short:]], batch_tokens), most).tolist()
        for length, both in itertools.groupby(zip(lengths, units[short:], strict=True), key=lambda both: both[0]):
            group = [sized for _, sized in both]
            rows = _filled(group, length) if sharing else [row for sized in group for row in _filled([sized], length)]
            yield length, sharing, rows


def padded_lengths(lengths: Sequence[int], batch_tokens: int = TOKENS_A_BATCH) -> list[int]:
    """Chooses what each of several lengths, ascending, is padded to: at most 8 lengths, each a program to compile.

    Of all choices it is the one of the fewest tokens, where another length counts as much as a batch.
    """
    grid = 8 * max(1, -(-max(lengths) // (8 * _COARSEST)))
    rounded = -(-np.asarray(lengths) // grid) * grid
    sizes, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # best[j]: tokens that the j shortest sizes take, with k lengths; came[k][j]: how many of them the others take.
    best = np.where(before > 0, np.inf, 0.0)
    came, totals = [], []
    for _ in range(min(_MOST_LENGTHS, len(sizes))):
        cost = best[None, :-1] + sizes[:, None] * (before[1:, None] - before[None, :-1])
        cost = np.where(np.tri(len(sizes), dtype=bool), cost, np.inf)
        came.append(np.argmin(cost, axis=1))
        best = np.concatenate([[np.inf], cost.min(axis=1)])
        totals.append(best[-1] + batch_tokens * len(came))
    chosen, end = np.empty(len(sizes), np.int64), len(sizes)
    for k in range(int(np.argmin(totals)), -1, -1):
        start = int(came[k][end - 1])
        chosen[start:end], end = sizes[end - 1], start
    return chosen[np.searchsorted(sizes, rounded)].tolist()


def _room(longest: int, most: int) -> int:
    """How many tokens sequences of up to `longest` that begin alike may have together."""
    return min(max(_ROW, 2 * longest), most)


def _sequences(model: TextModel, pairs: Sequence[Pair], edits: Sequence[Edit]) -> Iterator[_Sequence]:
    """The sequences of pairs, with a bit for each of `edits` that has positions."""
    placed = [(1 << i, edit.position) for i, edit in enumerate(edits) if edit.position is not None]
    for start in range(0, len(pairs), _SEQUENCES):
        its = pairs[start : start + _SEQUENCES]
        ids = [(*map(int, context), *map(int, rest))[:-1] for context, rest in its]
        marks: Any = [(0,) * len(row) for row in ids]
        if placed:
            tokens, mask = left_pad(ids)
            sizes = model.config.input_sizes(tokens.shape)
            rules, bits = model.rules(), np.zeros(tokens.shape, object)  # numbers of any size: there may be many edits
            for bit, where in placed:
                bits += bit * find_positions(where, sizes, tokens, mask, rules).astype(object)
            marks = [tuple(row[: len(own)]) for row, own in zip(bits.tolist(), ids, strict=True)]
        for number, (row, (_, rest), marked) in enumerate(zip(ids, its, marks, strict=True), start):
            yield _Sequence(number, row, tuple(map(int, rest)), marked)


def _units(sequences: Sequence[_Sequence], most: int | None) -> list[tuple[int, list[_Sequence]]]:
    """Sequences in order, as many together as have much in common, or are the same; with the number of their tokens.

    `most` is what the model takes; None where only what is the same goes together.
    """
    units: list[tuple[int, list[_Sequence]]] = []
    longest = 0
    for its in sequences:
        length = len(its.ids)
        if units:
            size, unit = units[-1]
            shared = unit[-1].shared(its)
            fits = most is not None and size + length - shared <= _room(max(longest, length), most)
            if (fits and shared >= _SHARED * length) or shared == length == len(unit[-1].ids):
                unit.append(its)
                units[-1], longest = (size + length - shared, unit), max(longest, length)
                continue
        units.append((length, [its]))
        longest = length
    return units


def _filled(units: Sequence[tuple[int, list[_Sequence]]], length: int) -> list[Row]:
    """Rows of at most `length` tokens: units, ascending by size, go from the last where they leave the least room."""
    rows: list[Row] = []
    rooms: list[tuple[int, int]] = []  # that rows have left, ascending, and which row
    for size, unit in reversed(units):
        place = bisect.bisect_left(rooms, (size, 0))
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = length, len(rows)
            rows.append(Row())
        rows[number].add(unit)
        bisect.insort(rooms, (room - size, number))
    return rows
