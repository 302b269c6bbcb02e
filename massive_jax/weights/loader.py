"""The strict, streaming loader: a source and a weight table in, the parameter tree out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from massive_jax.parallel import param_sharding
from massive_jax.weights import layout
from massive_jax.weights.source import Source
from massive_jax.weights.table import Row, WeightTable, expand, move_axes, table_sizes

_Entry: TypeAlias = tuple[str, Row, tuple[int, ...]]  # tensor name, row, place in the stacked parameter
_Move: TypeAlias = tuple[str | None, tuple[tuple[str, int], ...], Any]  # axes, sizes and take of `move_axes`
_SHOWN = 12  # offenders of one kind spelled out in an error


def load_params(
    source: Source,
    module: Any,
    table: WeightTable,
    *,
    sizes: Mapping[str, int],
    dtype: Any,
    mesh: Mesh | None = None,
    allow_nonfinite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Reads every parameter of `module` from `source`, one tensor at a time onto its devices.

    Peak host memory is one tensor above the result: each tensor is put on the device as stored, and moved, cast and
    written to its layer's place there.

    Args:
      source: where the tensors are.
      module: its `init` (abstractly evaluated) says which parameters there are.
      table: how tensors become parameters.
      sizes: a size for every axis letter, and "L".
      dtype: of the parameters.
      mesh: devices to split the parameters over (see `massive_jax.parallel`); None for the default device.
      allow_nonfinite: takes weights that are NaN or infinite.
      progress: shows a bar when loading takes more than a moment.

    Raises:
      ValueError: a parameter without a tensor, a tensor without a row, a wrong shape, all of them in one message; or
        weights that are NaN or infinite.
    """
    expected = expected_shapes(module)
    shardings = {path: param_sharding(path, shape, mesh) for path, shape in expected.items()}
    params: dict[str, jax.Array] = {}
    parts = stream_params(source, expected, table, sizes=sizes, allow_nonfinite=allow_nonfinite, progress=progress)
    for part in parts:
        path = part.path
        if not part.place:
            params[path] = _placer(None, shardings[path])(part.raw, part.move, dtype)
        else:
            if path not in params:
                params[path] = jnp.zeros(expected[path], dtype, device=shardings[path])
            params[path] = _placer(0, shardings[path])(params[path], part.raw, part.place, part.move)
        # Dispatch is asynchronous: without waiting, tensors not yet placed would pile up on the host.
        params[path].block_until_ready()
        del part
    _check_tied(source, table, params)
    return flax.traverse_util.unflatten_dict(params, sep="/")


@dataclasses.dataclass(frozen=True)
class Part:
    """One parameter, or one layer's part of a stacked one, as it comes off the source.

    Attributes:
      path: of the parameter.
      place: indices into its stacked axes (layer, expert); () where it is not stacked.
      raw: the tensor as stored.
      move: what turns it into the parameter: see `write`.
    """

    path: str
    place: tuple[int, ...]
    raw: np.ndarray
    move: _Move

    def write(self, target: np.ndarray) -> None:
        """Writes the part itself to memory of its shape, in the target's dtype."""
        axes, sizes, take = self.move
        layout.write(move_axes(self.raw, axes, dict(sizes), take), target)


def stream_params(
    source: Source,
    expected: Mapping[str, tuple[int, ...]],
    table: WeightTable,
    *,
    sizes: Mapping[str, int],
    allow_nonfinite: bool = False,
    progress: bool = True,
    memory: layout.Memory | None = None,
) -> Iterator[Part]:
    """The parts of all parameters, layer by layer, one tensor in memory at a time; see `load_params` for the errors.

    With `memory`, a part's tensor is in it until the next part is asked for.
    """
    sizes = table_sizes(sizes)
    plan = _match(source, table, expected, sizes)
    items = tuple(sorted(sizes.items()))
    total = sum(math.prod(source.tensors[name].shape) for name in {name for name, _, _ in plan})
    shown = None if progress else True  # None: not where there is no terminal
    broken = []
    with tqdm.tqdm(total=total, unit="param", unit_scale=True, desc="loading", delay=2.0, disable=shown) as bar:
        # Rows of one name are neighbours: a fused tensor is read once.
        for name, entries in itertools.groupby(plan, key=lambda entry: entry[0]):
            raw = source.read(name, memory)
            if not allow_nonfinite and not is_finite(raw):
                broken.append(name)
            for _, row, place in entries:
                yield Part(row.path, place, raw, (row.axes, items, row.take))
            bar.update(raw.size)
            del raw  # before the next one is read
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise ValueError(
            f"{source.location}: {len(broken)} tensors hold NaN or infinite values: {', '.join(broken[:_SHOWN])}"
            f"{more}. The file is damaged, or was saved after training diverged; allow_nonfinite loads it all the same."
        )


def is_finite(x: np.ndarray) -> bool:
    """Whether no element of a stored tensor is NaN or infinite."""
    if x.dtype.kind == "f" and x.dtype.itemsize > 2:
        return bool(np.isfinite(x.min()) and np.isfinite(x.max()))  # both pass NaN on; no copy
    if x.dtype.itemsize == 2 and jnp.issubdtype(x.dtype, jnp.floating):
        # As integers these are the largest of each sign; no copy either.
        infinite = 0x7C00 if x.dtype == np.float16 else 0x7F80
        return bool(x.view(np.int16).max() < infinite and x.view(np.uint16).max() < infinite + 0x8000)
    return True


def expected_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of `module`, a model, without allocating any."""
    tree = jax.eval_shape(module.init, jax.random.key(0), module.config.example)["params"]
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def count_params(module: Any) -> int:
    """Number of parameters of `module`, without allocating any."""
    return sum(math.prod(shape) for shape in expected_shapes(module).values())


def _match(
    source: Source, table: WeightTable, expected: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> list[_Entry]:
    """The tensors to read, by name and layer; raises with every disagreement between file, table and model."""
    wanted = [entry for entry in expand(table.rows, sizes["L"], sizes["E"]) if entry[1].path in expected]
    first = {name: i for i, (name, _, _) in reversed(list(enumerate(wanted)))}
    wanted.sort(key=lambda entry: (entry[2][:1], first[entry[0]]))
    names = {name for name, _, _ in wanted}
    missing = [f"{name} -> {row.path}" for name, row, _ in wanted if name not in source.tensors]
    uncovered = sorted(set(expected) - {row.path for _, row, _ in wanted})
    extra = [
        f"{name} {list(info.shape)}"
        for name, info in source.tensors.items()
        if name not in names and not table.is_ignored(name) and name not in table.tied and 0 not in info.shape
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


def _check_tied(source: Source, table: WeightTable, params: Mapping[str, jax.Array]) -> None:
    """A tensor that repeats a tied parameter must be equal to it."""
    rows = {row.name: row.path for row in table.rows}
    for name, path in table.tied.items():
        if name not in source.tensors or path not in params or rows.get(name) in params:
            continue
        stored, param = source.read(name), params[path]
        if stored.shape != param.shape or not np.array_equal(stored.astype(param.dtype), np.asarray(param)):
            raise ValueError(
                f"{source.location}: the config ties the output head to the embedding, but {name} differs from {path}; "
                "set tie_word_embeddings to false in its config if the head is the model's own."
            )


@functools.cache
def _placer(donated: int | None, sharding: Any) -> Any:
    """The compiled placing of a whole parameter, or (donated=0) of a part of a stacked one."""

    def whole(raw: jax.Array, move: _Move, dtype: Any) -> jax.Array:
        axes, sizes, take = move
        return move_axes(raw, axes, dict(sizes), take).astype(dtype)

    def part(stacked: jax.Array, raw: jax.Array, place: tuple[int, ...], move: _Move) -> jax.Array:
        return stacked.at[place].set(whole(raw, move, stacked.dtype))

    if donated is None:
        return jax.jit(whole, static_argnums=(1, 2), out_shardings=sharding)
    return jax.jit(part, static_argnums=3, donate_argnums=donated, out_shardings=sharding)
