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

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping

import jax

LAYER, EXPERT = "{l}", "{e}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a weight table.

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
    """The table of one family in one file format.

    Attributes:
      rows: a row a tensor. Where files differ, a path has several, each of which fills it whole.
      ignored: patterns of tensor names that hold no parameter (buffers that are recomputed).
      tied: tensor name -> parameter path it repeats: accepted in a checkpoint only if equal to that parameter.
      spellings: (prefix, other prefix) of names that not all writers of this format spell alike: see `spelled`.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    spellings: tuple[tuple[str, str], ...] = ()

    def is_ignored(self, name: str) -> bool:
        """Whether the tensor `name` holds no parameter."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)

    def spelled(self, names: Collection[str]) -> WeightTable:
        """This table as the file that holds `names` spells it.

        A prefix of `spellings` that the file never uses is the other, and of the rows that fill one path only the first
        whose tensor the file has is kept (the first of all, to be reported missing, where it has none).
        """
        unused = [pair for pair in self.spellings if not any(name.startswith(pair[0]) for name in names)]

        def spell(name: str) -> str:
            return next((other + name[len(prefix) :] for prefix, other in unused if name.startswith(prefix)), name)

        rows: dict[str, Row] = {}
        for row in (dataclasses.replace(row, name=spell(row.name)) for row in self.rows):
            if row.path not in rows or (_first(row.name) in names and _first(rows[row.path].name) not in names):
                rows[row.path] = row
        return dataclasses.replace(
            self, rows=tuple(rows.values()), tied={spell(name): path for name, path in self.tied.items()}
        )


def expand(rows: tuple[Row, ...], num_layers: int, num_experts: int = 0) -> Iterator[tuple[str, Row, tuple[int, ...]]]:
    """(tensor name, row, place in the stacked parameter) of every tensor of a model; () where it is not stacked."""
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
    """Rows of a projection to queries, keys and values in one, whose axes are given with Q, X or Y for them."""
    for suffix, leaf, axes in (("weight", "kernel", kernel), ("bias", "bias", bias)):
        if axes is None:
            continue
        letter = next(letter for letter in _PARTS if letter in axes)
        for part, bounds in zip(("query", "key", "value"), _PARTS[letter], strict=True):
            yield Row(f"{name}.{suffix}", f"layers/attn/{part}/{leaf}", axes, take=(letter, *bounds))


def move_axes(
    x: jax.Array, axes: str | None, sizes: Mapping[str, int], take: tuple[str, ...] | None = None
) -> jax.Array:
    """Splits, takes, permutes and merges the axes of `x` as `axes` and `take` say (see `Row`).

    Args:
      x: the tensor as stored.
      axes: e.g. "(HN)D->DHN"; None returns x.
      sizes: a size for every letter.
      take: e.g. ("Q", "1").

    Raises:
      ValueError: x does not have the shape that the left side says.
    """
    if axes is None:
        return x
    before, after = (re.findall(r"\((\w+)\)|(\w)", side) for side in axes.split("->"))
    before, after = ([group or letter for group, letter in side] for side in (before, after))
    sizes = {**sizes, "1": 1}
    expected = tuple(math.prod(sizes[letter] for letter in group) for group in before)
    if x.shape != expected:
        raise ValueError(f"has shape {list(x.shape)}, expected {list(expected)} (axes {axes.split('->')[0]})")
    flat = "".join(before).replace("1", "")
    x = x.reshape([sizes[letter] for letter in flat])
    if take is not None:
        letter, start, *stop = take
        first, axis = _evaluate(start, sizes), flat.index(letter)
        if stop:
            sizes[letter] = _evaluate(stop[0], sizes) - first
            x = jax.lax.slice_in_dim(x, first, first + sizes[letter], axis=axis)
        else:
            x = jax.lax.index_in_dim(x, first, axis, keepdims=False)
            flat = flat.replace(letter, "")
    order = [flat.index(letter) for letter in "".join(after)]
    return x.transpose(order).reshape([math.prod(sizes[letter] for letter in group) for group in after])


def table_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes` of a config with the letters that only tables use."""
    H, K = sizes["H"], sizes["K"]
    return {**sizes, "R": 2, "P": sizes["N"] // 2, "Q": 3, "G": H // K, "X": H // K + 2, "Y": H + 2 * K, "U": 2}


def _first(name: str) -> str:
    """The tensor of the first layer and expert."""
    return name.replace(LAYER, "0").replace(EXPERT, "0")


def _evaluate(expression: str, sizes: Mapping[str, int]) -> int:
    return sum(int(term) if term.isdecimal() else sizes[term] for term in expression.split("+"))
