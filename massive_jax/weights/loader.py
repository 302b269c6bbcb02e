"""The strict, streaming loader: a source and a weight table in, the parameter tree out."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from massive_jax.weights.source import Source
from massive_jax.weights.table import Row, WeightTable, expand, move_axes, table_sizes

_Entry: TypeAlias = tuple[str, Row, tuple[int, ...]]  # tensor name, row, place in the stacked parameter
_Items: TypeAlias = tuple[tuple[str, int], ...]
_SHOWN = 12  # offenders of one kind spelled out in an error


def load_params(
    source: Source,
    module: nn.Module,
    table: WeightTable,
    *,
    sizes: Mapping[str, int],
    dtype: Any,
    progress: bool = True,
) -> dict[str, Any]:
    """Reads every parameter of `module` from `source`, one tensor at a time onto the default device.

    Peak host memory is one tensor above the result: each tensor is put on the device as stored, and moved, cast and
    written to its layer's place there.

    Args:
      source: where the tensors are.
      module: its `init` (abstractly evaluated) says which parameters there are.
      table: how tensors become parameters.
      sizes: a size for every axis letter, and "L".
      dtype: of the parameters.
      progress: shows a bar when loading takes more than a moment.

    Raises:
      ValueError: a parameter without a tensor, a tensor without a row, a wrong shape: all of them in one message.
    """
    sizes = table_sizes(sizes)
    expected = expected_shapes(module)
    plan = _match(source, table, expected, sizes)
    params: dict[str, jax.Array] = {}
    total = sum(math.prod(source.tensors[name].shape) for name in {name for name, _, _ in plan})
    with tqdm.tqdm(
        total=total, unit="param", unit_scale=True, desc="loading", delay=2.0, disable=None if progress else True
    ) as bar:
        # Rows of one name are neighbours: a fused tensor is read once.
        for name, entries in itertools.groupby(plan, key=lambda entry: entry[0]):
            raw = jax.device_put(source.read(name))
            for _, row, place in entries:
                move = (row.axes, _items(sizes), row.take)
                if not place:
                    params[row.path] = _place_whole(raw, *move, dtype)
                    continue
                if row.path not in params:
                    params[row.path] = jnp.zeros(expected[row.path], dtype)
                params[row.path] = _place_part(params[row.path], raw, place, *move)
            bar.update(raw.size)
    for name, path in table.tied.items():
        if name in source.tensors and path in params and not _has_row(plan, name):
            _check_tied(source, name, params[path], path)
    return flax.traverse_util.unflatten_dict(params, sep="/")


def expected_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of `module`, without allocating any."""
    tree = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def count_params(module: nn.Module) -> int:
    """Number of parameters of `module`, without allocating any."""
    return sum(math.prod(shape) for shape in expected_shapes(module).values())


def _match(
    source: Source, table: WeightTable, expected: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> list[_Entry]:
    """The tensors to read, by name in table order; raises with every disagreement between file, table and model."""
    wanted = [entry for entry in expand(table.rows, sizes["L"], sizes["E"]) if entry[1].path in expected]
    order = {name: i for i, (name, _, _) in reversed(list(enumerate(wanted)))}
    wanted.sort(key=lambda entry: order[entry[0]])
    names = {name for name, _, _ in wanted}
    missing = [f"{name} -> {row.path}" for name, row, _ in wanted if name not in source.tensors]
    uncovered = sorted(set(expected) - {row.path for _, row, _ in wanted})
    extra = [
        f"{name} {list(info.shape)}"
        for name, info in source.tensors.items()
        if name not in names and not table.is_ignored(name) and name not in table.tied
    ]
    misshapen = []
    for name, row, place in wanted:
        if name not in source.tensors:
            continue
        shape = expected[row.path][len(place) :]
        try:
            x = jax.ShapeDtypeStruct(source.tensors[name].shape, jnp.float32)
            got = jax.eval_shape(functools.partial(move_axes, axes=row.axes, sizes=sizes, take=row.take), x).shape
            if got != shape:
                misshapen.append(f"{name} has shape {list(got)}, expected {list(shape)}")
        except ValueError as error:
            misshapen.append(f"{name} {error}")
    problems = []
    for what, offenders in (
        ("missing from the checkpoint", missing),
        ("in the checkpoint but not in this model", extra),
        ("of the wrong shape", misshapen),
        ("parameters no table row fills", uncovered),
    ):
        if offenders:
            more = [f"… and {len(offenders) - _SHOWN} more"] if len(offenders) > _SHOWN else []
            problems.append("\n    ".join([f"  {len(offenders)} {what}:", *offenders[:_SHOWN], *more]))
    if problems:
        raise ValueError(
            f"{source.location}: the weights do not fit the model its config describes.\n"
            + "\n".join(problems)
            + "\n  Check that config and weights belong together and that the download is complete."
        )
    return wanted


def _has_row(plan: list[_Entry], name: str) -> bool:
    return any(name == planned for planned, _, _ in plan)


def _check_tied(source: Source, name: str, param: jax.Array, path: str) -> None:
    stored = source.read(name)
    if stored.shape != param.shape or not np.array_equal(np.asarray(stored.astype(param.dtype)), np.asarray(param)):
        raise ValueError(
            f"{source.location}: the config ties the output head to the embedding, but {name} differs from {path}; "
            "set tie_word_embeddings to false in its config if the head is the model's own."
        )


def _items(sizes: Mapping[str, int]) -> _Items:
    return tuple(sorted(sizes.items()))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _place_whole(raw: jax.Array, axes: str | None, sizes: _Items, take: Any, dtype: Any) -> jax.Array:
    return move_axes(raw, axes, dict(sizes), take).astype(dtype)


@functools.partial(jax.jit, static_argnums=(3, 4, 5), donate_argnums=0)
def _place_part(
    stacked: jax.Array, raw: jax.Array, place: tuple[int, ...], axes: str | None, sizes: _Items, take: Any
) -> jax.Array:
    return stacked.at[place].set(move_axes(raw, axes, dict(sizes), take).astype(stacked.dtype))
