"""The strict, streaming loader: a source and a weight table in, the parameter tree out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from massive_jax import files
from massive_jax.models import declared
from massive_jax.parallel import is_first, param_sharding
from massive_jax.weights import layout, numbers
from massive_jax.weights.source import Source
from massive_jax.weights.table import Row, WeightTable, expand, move_axes, table_sizes

_Entry: TypeAlias = tuple[str, Row, tuple[int, ...]]  # tensor name, row, place in the stacked parameter
_Move: TypeAlias = tuple[str | None, tuple[tuple[str, int], ...], Any]  # axes, sizes and take of `move_axes`
_STAY: _Move = (None, (), None)  # of a part whose axes are moved already
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
    written to its layer's place there. On a mesh each device is given its own part of it, and of several processes each
    reads no more than the parts of its devices, where the file can be read in parts (safetensors).

    Args:
      source: where the tensors are.
      module: its `init` (abstractly evaluated) says which parameters there are.
      table: how tensors become parameters.
      sizes: a size for every axis letter, and "L".
      dtype: of the parameters.
      mesh: devices to split the parameters over (see `massive_jax.parallel`); None for the default device.
      allow_nonfinite: takes weights that are NaN or infinite, or become so in `dtype`.
      progress: shows a bar when loading takes more than a moment.

    Raises:
      ValueError: a parameter without a tensor, a tensor without a row, a wrong shape, all of them in one message; a
        tensor of no floating-point type; weights that are NaN or infinite in `dtype`; an output head that the config
        ties to the embedding and that is another.
    """
    parameters = declared(module)
    expected = {path: parameter.shape for path, parameter in parameters.items()}
    shardings = {path: param_sharding(it.axes, it.shape, mesh) for path, it in parameters.items()}
    params: dict[str, jax.Array] = {}
    stacked = {path: expected[path] for path, it in parameters.items() if it.per_layer}
    parts = stream_params(
        source,
        expected,
        table,
        sizes=sizes,
        dtype=dtype,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
        shardings=shardings if mesh is not None and jax.process_count() > 1 else None,
    )
    for part in parts:
        path = part.path
        with np.errstate(over="ignore"):  # of float64, which jax casts on the host; see `Part.write`
            sharding = shardings[path]
            raw, move = (part.raw, part.move) if sharding is None else (part.on(sharding), _STAY)
            if not part.place:
                params[path] = _placer(None, shardings[path])(raw, move, dtype)
            else:
                if path not in params:  # all at once, in one program; the first layer would take them all anyway
                    params |= _zeros(tuple(stacked.items()), dtype, tuple(shardings[path] for path in stacked))
                params[path] = _placer(0, shardings[path])(params[path], raw, part.place, move)
        # Dispatch is asynchronous: without waiting, tensors not yet placed would pile up on the host.
        jax.block_until_ready(params[path])
        del part, raw
    return flax.traverse_util.unflatten_dict(params, sep="/")


@dataclasses.dataclass(frozen=True)
class Part:
    """Holds one parameter, or one layer's part of a stacked one, as it comes off the source.

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

    def pieces(self, sharding: NamedSharding) -> dict[str, np.ndarray]:
        """Gives what this process's devices have of it, as stored: its place in the part -> the numbers."""
        view, its = self._view(), self._sharding(sharding)
        found: dict[str, np.ndarray] = {}
        for index in its.addressable_devices_indices_map(view.shape).values():
            if index is not None and str(index) not in found:
                found[str(index)] = np.ascontiguousarray(view[index])
        return found

    def on(self, sharding: NamedSharding) -> jax.Array:
        """Puts it, as stored but for its axes, on the devices of its parameter, each with its piece."""
        pieces = self.pieces(sharding)
        return jax.make_array_from_callback(
            self._view().shape, self._sharding(sharding), lambda index: pieces[str(index)]
        )

    def _view(self) -> np.ndarray:
        axes, sizes, take = self.move
        return move_axes(self.raw, axes, dict(sizes), take)

    def _sharding(self, sharding: NamedSharding) -> NamedSharding:
        """How the part is split: as its parameter, of which it is one layer's, say."""
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[len(self.place) :]))

    def write(self, target: np.ndarray) -> None:
        """Writes the part itself to memory of its shape, in the target's dtype."""
        with np.errstate(over="ignore"):  # `stream_params` has refused what becomes infinite, or was told to take it
            layout.write(self._view(), target)


def stream_params(
    source: Source,
    expected: Mapping[str, tuple[int, ...]],
    table: WeightTable,
    *,
    sizes: Mapping[str, int],
    dtype: Any,
    allow_nonfinite: bool = False,
    progress: bool = True,
    memory: layout.Memory | None = None,
    shardings: Mapping[str, NamedSharding | None] | None = None,
) -> Iterator[Part]:
    """Gives the parts of all parameters, layer by layer, one tensor in memory at a time; errors as `load_params`.

    `dtype` is what the caller makes of them: in it they have to be finite, and a tied head equal to the embedding. With
    `memory`, a part's tensor is in it until the next part is asked for. With `shardings`, of the parameters, only what
    this process's devices have of a tensor is read, and looked at, where it can be: the rest is for the others.
    """
    sizes = table_sizes(sizes)
    table = table.standing_in(source.tensors, expected)
    repetitions = table.repeated(source.tensors, expected)
    plan = _match(source, table, expected, sizes)
    items = tuple(sorted(sizes.items()))
    total = sum(math.prod(source.tensors[name].shape) for name in {name for name, _, _ in plan})
    shown = None if progress else True  # None: not where there is no terminal
    broken, beyond = [], []
    with tqdm.tqdm(total=total, unit="param", unit_scale=True, desc="loading", delay=2.0, disable=shown) as bar:
        # Rows of one name are neighbours: a fused tensor is read once.
        for name, group in itertools.groupby(plan, key=lambda entry: entry[0]):
            view = None if shardings is None else source.view(name)
            raw = source.read(name, memory) if view is None else view
            parts = [Part(row.path, place, raw, (row.axes, items, row.take)) for _, row, place in group]
            if not allow_nonfinite:
                extremes = numbers.extremes(raw) if view is None else _extremes_of(parts, shardings or {})
                if not numbers.finite_in(extremes, raw.dtype):
                    broken.append(name)
                elif not numbers.finite_in(extremes, dtype):
                    beyond.append(f"{name} ({max(extremes, key=abs):.6g})")
            repeated = () if view is not None and not is_first() else repetitions.items()  # one will do
            for part in parts:
                for other in (it for it, path in repeated if path == part.path and it != name):
                    _check_tied(source, raw, other, part.path, dtype)
                yield part
            bar.update(raw.size)
            del raw, parts, part, view  # before the next one is read
    if broken:
        raise numbers.not_finite(source.location, broken)
    if beyond:
        raise numbers.out_of_range(source.location, beyond, dtype)


def expected_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Gives path -> shape of every parameter of `module`, a model, without allocating any."""
    return {path: parameter.shape for path, parameter in declared(module).items()}


def count_params(module: Any) -> int:
    """Counts the parameters of `module`, without allocating any."""
    return sum(math.prod(shape) for shape in expected_shapes(module).values())


def _match(
    source: Source, table: WeightTable, expected: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> list[_Entry]:
    """The tensors to read, by name and layer; raises with every disagreement between file, table and model."""
    wanted = list(expand(table.rows, sizes["L"], sizes["E"]))
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
    no_weights = [
        f"{name} ({source.tensors[name].dtype})"
        for name in sorted({*names, *table.repeated(source.tensors, expected)})
        if name in source.tensors and not numbers.holds_weights(source.tensors[name].dtype)
    ]
    if no_weights:
        raise ValueError(
            f"{source.location}: {len(no_weights)} tensors are of types that hold no weights, but the codes of a "
            f"quantisation that is not implemented: {files.listed(no_weights, _SHOWN)}. Load a checkpoint in float32, "
            "float16 or bfloat16."
        )
    headless = [name for name, row, _ in wanted if row.path.startswith("head") and name not in source.tensors]
    if missing and len(headless) == len(missing) and not extra and not uncovered:
        raise ValueError(
            f"{source.location}: {', '.join(headless)} is missing from the checkpoint, which is of a model without its "
            "output head. Save the model with its head, or, if a language model's head is its embedding, set "
            "tie_word_embeddings to true in its config."
        )
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


def _extremes_of(parts: Sequence[Part], shardings: Mapping[str, NamedSharding | None]) -> tuple[float, float]:
    """What `numbers.extremes` gives of those pieces of a tensor's parts that this process has."""
    found = [
        numbers.extremes(piece)
        for part in parts
        if (sharding := shardings[part.path]) is not None
        for piece in part.pieces(sharding).values()
    ]
    return numbers.extremes_of_all(found)


def _check_tied(source: Source, raw: np.ndarray, other: str, path: str, dtype: Any) -> None:
    """The tensor `other`, which repeats the parameter `path` that is made of `raw`, must be equal to it in `dtype`."""
    stored = source.read(other)
    if stored.shape != raw.shape or not (
        (stored.dtype == raw.dtype and np.array_equal(stored.view(np.uint8), raw.view(np.uint8)))
        or np.array_equal(stored.astype(dtype), raw.astype(dtype))
    ):
        raise ValueError(
            f"{source.location}: the config ties the output head to the embedding, but {other} differs from {path}; "
            "set tie_word_embeddings to false in its config if the head is the model's own."
        )


def _zeros(shapes: tuple[tuple[str, tuple[int, ...]], ...], dtype: Any, shardings: tuple[Any, ...]) -> Any:
    """Parameters of zeros, by path, on the devices of their shardings."""
    placed = {path: sharding for (path, _), sharding in zip(shapes, shardings, strict=True)}
    return jax.jit(lambda: {path: jnp.zeros(shape, dtype) for path, shape in shapes}, out_shardings=placed)()


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
