"""Weight tables: how a checkpoint's tensors become parameters, as data.

A family's table has a row for every tensor its checkpoints hold: the name in the file, the parameter's path, and how
the axes move, e.g. `Row("model.layers.{l}.self_attn.q_proj.weight", "layers/attn/query/kernel", "(HN)D->DHN")`.
A row may take a part of a tensor: fused projections are three rows of one name,
`Row("….c_attn.weight", "layers/attn/key/kernel", "D(QHN)->DHN", take=("Q", "1"))`.

Axis letters: see `massive_jax.probe.sites`; P pairs of a head's dims (N / 2), R the two members of a pair, Q the three
of query, key and value, G query heads of one key/value head (H / K), X the G query heads, the key and the value of one
key/value head, Y all query, key and value heads (H + 2·K), U gate and up, W embedding width; of vision models C
channels, I and J rows and columns of a patch, M rows of the position table, Z registers. An axis "1" has one element
and is dropped.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np

from massive_jax.weights import layout

_Array = TypeVar("_Array", jax.Array, np.ndarray)
LAYER, EXPERT = "{l}", "{e}"


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes one line of a weight table.

    Attributes:
      name: tensor name in the file; "{l}" stands for the 0-based layer, "{e}" for the expert.
      path: parameter path, joined by "/"; per-layer parameters are stacked along a first axis of L layers, those of
        single experts along a second one.
      axes: how the axes move, "from->to"; a group in parentheses is one axis of the tensor, its letters row-major.
        None: as stored.
      take: the part of one axis to take: (letter, index), which drops the letter, or (letter, start, stop), after which
        the letter has that size. Bounds are sums of letters and numbers, such as "H+K".
    """

    name: str
    path: str
    axes: str | None = None
    take: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class WeightTable:
    """Holds the table of one family in one file format.

    Attributes:
      rows: a row a tensor. Where files differ, a path has several, each of which fills it whole.
      ignored: patterns of tensor names that hold no parameter (buffers that are recomputed).
      tied: tensor name -> parameter path it repeats: accepted in a checkpoint only if equal to that parameter.
      prefix: what the names of `rows` and `ignored` begin with in this table, and in the file: see `spelled`.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: tuple[str, str] = ("", "")

    def is_ignored(self, name: str) -> bool:
        """Tells whether the tensor `name` of the file holds no parameter."""
        ours, theirs = self.prefix
        names = {name, *(name.removeprefix(outer) for outer in _ancestors(theirs))}
        if name.startswith(theirs):
            names.add(ours + name[len(theirs) :])
        return any(re.fullmatch(pattern, it) for pattern in self.ignored for it in names)

    def spelled(self, names: Collection[str]) -> WeightTable:
        """Gives this table as the file that holds `names` spells it.

        A backbone is saved with its head, which puts a prefix before the backbone's names ("model.", say), without it,
        or inside a wrapper, which puts one before all. What the table has before all names but the head's gives way to
        what the file has there. Of the rows that fill one path only the first whose tensor the file has is kept (the
        first of all, to be reported missing, where it has none).
        """
        ours = _shared_prefix(row.name for row in self.rows if not _is_head(row))
        theirs = _prefix_in(names, ours, {_first(row.name)[len(ours) :] for row in self.rows if not _is_head(row)})

        def spell_head(name: str) -> str:
            spellings = (name, *(outer + name for outer in _ancestors(theirs)))
            return next((it for it in spellings if it in names), name)

        def spell(row: Row) -> Row:
            return dataclasses.replace(
                row, name=spell_head(row.name) if _is_head(row) else theirs + row.name[len(ours) :]
            )

        rows: dict[str, Row] = {}
        for row in map(spell, self.rows):
            if row.path not in rows or (_first(row.name) in names and _first(rows[row.path].name) not in names):
                rows[row.path] = row
        tied = {spell_head(name): path for name, path in self.tied.items()}
        return dataclasses.replace(self, rows=tuple(rows.values()), tied=tied, prefix=(ours, theirs))

    def repeated(self, names: Collection[str], paths: Collection[str]) -> dict[str, str]:
        """Gives the part of `tied` that the file has, with what it repeats, in a model of the parameters `paths`."""
        own = {row.name: row.path for row in self.rows}
        return {
            name: path
            for name, path in self.tied.items()
            if name in names and path in paths and own.get(name) not in paths
        }

    def standing_in(self, names: Collection[str], paths: Collection[str]) -> WeightTable:
        """Gives this table with parameters of `paths` read off their repetition where the file has nothing else."""
        repetitions = {path: name for name, path in self.repeated(names, paths).items()}
        rows = tuple(
            dataclasses.replace(row, name=repetitions[row.path])
            if row.path in repetitions and row.name not in names
            else row
            for row in self.rows
            if row.path in paths
        )
        return dataclasses.replace(self, rows=rows)


def expand(rows: tuple[Row, ...], num_layers: int, num_experts: int = 0) -> Iterator[tuple[str, Row, tuple[int, ...]]]:
    """Lists (tensor name, row, place in the stacked parameter) of every tensor of a model; () if not stacked."""
    for row in rows:
        layers = range(num_layers) if LAYER in row.name else [None]
        experts = range(num_experts) if EXPERT in row.name else [None]
        for layer, expert in itertools.product(layers, experts):
            name = row.name.replace(LAYER, str(layer)).replace(EXPERT, str(expert))
            yield name, row, tuple(i for i in (layer, expert) if i is not None)


# What a fused projection holds of queries, keys and values along its axis Q, X or Y.
_PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "Q": (("0",), ("1",), ("2",)),
    "X": (("0", "G"), ("G", "G+1"), ("G+1", "X")),
    "Y": (("0", "H"), ("H", "H+K"), ("H+K", "Y")),
}


def fused_rows(name: str, kernel: str, bias: str | None = None) -> Iterator[Row]:
    """Gives the rows of a projection to queries, keys and values in one, whose axes have Q, X or Y for them."""
    for suffix, leaf, axes in (("weight", "kernel", kernel), ("bias", "bias", bias)):
        if axes is None:
            continue
        letter = next(letter for letter in _PARTS if letter in axes)
        for part, bounds in zip(("query", "key", "value"), _PARTS[letter], strict=True):
            yield Row(f"{name}.{suffix}", f"layers/attn/{part}/{leaf}", axes, take=(letter, *bounds))


def move_axes(x: _Array, axes: str | None, sizes: Mapping[str, int], take: tuple[str, ...] | None = None) -> _Array:
    """Moves the axes of `x`: splits, takes, permutes and merges them as `axes` and `take` say (see `Row`).

    Args:
      x: the tensor as stored, of jax or numpy; of the latter the result is a view where it can be one.
      axes: e.g. "(HN)D->DHN"; None returns x.
      sizes: a size for every letter.
      take: e.g. ("Q", "1").

    Raises:
      ValueError: x does not have the shape that the left side says.
    """
    if axes is None:
        return x
    move = _Move.of(axes, sizes, take)
    if x.shape != move.stored:
        raise ValueError(f"has shape {list(x.shape)}, expected {list(move.stored)} (axes {axes.split('->')[0]})")
    return x.reshape(move.split)[move.part].transpose(move.order).reshape(move.shape)


def stored_shape(row: Row, shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Gives the shape of the tensor of `row`, of whose part of a parameter the shape is `shape`."""
    return shape if row.axes is None else _Move.of(row.axes, sizes, row.take).stored


def put_back(x: np.ndarray, stored: np.ndarray, row: Row, sizes: Mapping[str, int]) -> int:
    """Writes what `move_axes` made, or should have made, to its place in the tensor that it comes from.

    Args:
      x: the parameter, or one layer's or expert's part of it.
      stored: the tensor, of `stored_shape`, row-major; the part of it that `row` takes is written, in its dtype.
      row: of the table.
      sizes: a size for every letter.

    Returns:
      How many elements of `stored` were written.
    """
    if row.axes is None:
        layout.write(x, stored)
        return x.size
    move = _Move.of(row.axes, sizes, row.take)
    part = stored.reshape(move.split)[move.part]
    there = tuple(part.shape[axis] for axis in move.order)
    layout.write(x.reshape(there).transpose([move.order.index(axis) for axis in range(part.ndim)]), part)
    return x.size


@dataclasses.dataclass(frozen=True)
class _Move:
    """Holds what `axes` and `take` of a `Row` say, in numbers.

    Attributes:
      stored: shape of the tensor.
      split: its shape with an axis a letter.
      part: what is taken of that, for indexing.
      order: of the axes of what was taken.
      shape: with the axes merged: that of the parameter.
    """

    stored: tuple[int, ...]
    split: tuple[int, ...]
    part: tuple[slice | int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, axes: str, sizes: Mapping[str, int], take: tuple[str, ...] | None) -> _Move:
        before, after = (re.findall(r"\((\w+)\)|(\w)", side) for side in axes.split("->"))
        before, after = ([group or letter for group, letter in side] for side in (before, after))
        sizes = {**sizes, "1": 1}
        stored = tuple(math.prod(sizes[letter] for letter in group) for group in before)
        flat = "".join(before).replace("1", "")
        split = tuple(sizes[letter] for letter in flat)
        part: tuple[slice | int, ...] = ()
        if take is not None:
            letter, start, *stop = take
            first, axis = _evaluate(start, sizes), flat.index(letter)
            part = (slice(None),) * axis
            if stop:
                sizes[letter] = _evaluate(stop[0], sizes) - first
                part += (slice(first, first + sizes[letter]),)
            else:
                part += (first,)
                flat = flat.replace(letter, "")
        order = tuple(flat.index(letter) for letter in "".join(after))
        return cls(stored, split, part, order, tuple(math.prod(sizes[letter] for letter in group) for group in after))


def table_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Gives `sizes` of a config with the letters that only tables use."""
    H, K = sizes["H"], sizes["K"]
    return {**sizes, "R": 2, "P": sizes["N"] // 2, "Q": 3, "G": H // K, "X": H // K + 2, "Y": H + 2 * K, "U": 2}


def _is_head(row: Row) -> bool:
    """Whether the row's tensor belongs to the head on a backbone: what is saved with it has the backbone's prefix."""
    return row.path.startswith("head")


def _shared_prefix(names: Iterable[str]) -> str:
    """The longest prefix of all names that ends in a dot; "" where there is none."""
    firsts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{parts[0]}." for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, firsts))


def _prefix_in(names: Collection[str], ours: str, stems: Collection[str]) -> str:
    """What a file puts before the `stems` of tensors: `ours` where it does so at all, else what is there most often.

    That has to be before a third of them (no file has all rows of a table): a few are other architectures' too.
    """
    found = collections.Counter(
        name[:start] for name in names for start in (0, *_after_dots(name)) if name[start:] in stems
    )
    if ours in found:
        return ours
    best = max(found, key=lambda prefix: (found[prefix], -len(prefix)), default=ours)
    return best if 3 * found[best] >= len(stems) else ours


def _after_dots(name: str) -> list[int]:
    return [dot.end() for dot in re.finditer(r"\.", name)]


def _ancestors(prefix: str) -> list[str]:
    """`prefix` and what it is in: "a.b." gives "a.b." and "a."."""
    return [prefix[:end] for end in reversed(_after_dots(prefix))]


def _first(name: str) -> str:
    """The tensor of the first layer and expert."""
    return name.replace(LAYER, "0").replace(EXPERT, "0")


def _evaluate(expression: str, sizes: Mapping[str, int]) -> int:
    return sum(int(term) if term.isdecimal() else sizes[term] for term in expression.split("+"))
