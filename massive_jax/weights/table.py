"""Weight tables: how a checkpoint's tensors become parameters, as data.

A family's table has a row for every tensor its checkpoints hold: the name in the file, the parameter's path, and how
the axes move, e.g. `Row("model.layers.{l}.self_attn.q_proj.weight", "layers/attn/query/kernel", "(HN)D->DHN")`.
Axis letters: see `massive_jax.probe.sites`; P pairs of a head's dims (N / 2), R the two members of a pair.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import jax

LAYER = "{l}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a weight table.

    Attributes:
      name: tensor name in the file; "{l}" stands for the 0-based layer.
      path: parameter path, joined by "/"; per-layer parameters are stacked along a first axis of L layers.
      axes: how the axes move, "from->to"; a group in parentheses is one axis of the tensor, its letters row-major.
        None: as stored.
    """

    name: str
    path: str
    axes: str | None = None


@dataclasses.dataclass(frozen=True)
class WeightTable:
    """The table of one family in one file format.

    Attributes:
      rows: a row a tensor.
      ignored: patterns of tensor names that hold no parameter (buffers that are recomputed).
      tied: tensor name -> parameter path it repeats: accepted in a checkpoint only if equal to that parameter.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def is_ignored(self, name: str) -> bool:
        """Whether the tensor `name` holds no parameter."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def expand(rows: tuple[Row, ...], num_layers: int) -> Iterator[tuple[str, Row, int | None]]:
    """(tensor name, row, layer) for every tensor of a model with `num_layers` blocks."""
    for row in rows:
        if LAYER in row.name:
            for layer in range(num_layers):
                yield row.name.replace(LAYER, str(layer)), row, layer
        else:
            yield row.name, row, None


def move_axes(x: jax.Array, axes: str | None, sizes: Mapping[str, int]) -> jax.Array:
    """Splits, permutes and merges the axes of `x` as `axes` says.

    Args:
      x: the tensor as stored.
      axes: e.g. "(HN)D->DHN"; None returns x.
      sizes: a size for every letter.

    Raises:
      ValueError: x does not have the shape that the left side says.
    """
    if axes is None:
        return x
    before, after = (re.findall(r"\((\w+)\)|(\w)", side) for side in axes.split("->"))
    before, after = ([group or letter for group, letter in side] for side in (before, after))
    expected = tuple(math.prod(sizes[letter] for letter in group) for group in before)
    if x.shape != expected:
        raise ValueError(f"has shape {list(x.shape)}, expected {list(expected)} (axes {axes.split('->')[0]})")
    flat = "".join(before)
    order = [flat.index(letter) for letter in "".join(after)]
    x = x.reshape([sizes[letter] for letter in flat]).transpose(order)
    return x.reshape([math.prod(sizes[letter] for letter in group) for group in after])
