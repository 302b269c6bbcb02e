"""This project's own checkpoints: Orbax (v1 API), with config, tokenizer and provenance in the metadata.

On disk, consecutive layers are stacked in groups of at most 800 MiB (`layers/012/attn/query/kernel` starts with
layer 13), so that a model of any size is written in little memory and a small one is read in few pieces. A checkpoint
is written under another name and renamed when it is whole: what is at its path is complete. Paths may be `gs://…`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import TYPE_CHECKING, Any, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from massive_jax import files
from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.models import TransformerConfig, VisionConfig
from massive_jax.parallel import once, param_sharding, whole
from massive_jax.weights import layout
from massive_jax.weights.loader import Part

if TYPE_CHECKING:
    from etils import epath

    from massive_jax.inputs.images import ImageProcessor

FORMAT = 2  # 1: before attention biases were an option of their own
_KEY = "massive_jax"
_KINDS = {"language": TransformerConfig, "vision": VisionConfig}
_LAYERS = "layers"
_CHUNK_BYTES = 16 << 20  # pieces that are read and written side by side
_GROUP_BYTES = 800 << 20  # of layers that are stacked on disk; a larger layer is a group by itself
_FILE_BYTES = 32 << 20  # on disk: the first file is flushed while the others are filled
_READERS = 4  # parameters that are read side by side
_Groups: TypeAlias = dict[int | None, Any]  # first layer (None where not stacked) -> array on disk, in order


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's metadata says.

    Attributes:
      config: of the model.
      tokenizer: None where it has none.
      processor: of images; None where it has none.
      provenance: source, revision, files with sizes and checksums, dtype, versions, date.
    """

    config: TransformerConfig | VisionConfig
    tokenizer: Tokenizer | None
    processor: ImageProcessor | None
    provenance: Mapping[str, Any]


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a finished checkpoint is at `path`."""
    from orbax.checkpoint import v1 as ocp

    try:
        # Orbax takes any directory for a checkpoint, even an empty one: its metadata file tells.
        where = _epath(str(path))
        return (where / "_CHECKPOINT_METADATA").exists() and ocp.is_orbax_checkpoint(where)
    except (OSError, ValueError):
        return False


def save_checkpoint(
    path: str,
    config: TransformerConfig | VisionConfig,
    parts: Iterable[Part],
    expected: Mapping[str, tuple[int, ...]],
    *,
    dtype: Any,
    tokenizer: Tokenizer | None = None,
    processor: ImageProcessor | None = None,
    provenance: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Writes a checkpoint, a group of layers while the next one is read: two are in memory at a time.

    Args:
      path: where; nothing may be there. A half-written one that an earlier run left is replaced.
      config: of the model.
      parts: as `stream_params` gives them: layer by layer.
      expected: path -> shape of every parameter.
      dtype: of the stored parameters.
      tokenizer: goes into the metadata.
      processor: goes into the metadata.
      provenance: gives what goes into the metadata; asked when everything is read.

    Raises:
      ValueError: something is at `path`; it cannot be written.
    """
    target = _epath(path)
    if target.exists():
        raise ValueError(f"{path} exists already; name another directory, or remove it.")
    layers = {path: shape for path, shape in expected.items() if path.startswith(_LAYERS + "/")}
    others = {path: shape for path, shape in expected.items() if path not in layers}
    num_layers = max(shape[0] for shape in layers.values())
    group_size = _group_size(layers, dtype)
    memories = itertools.cycle((layout.Memory(), layout.Memory()))  # one is written while the other is filled
    try:
        once(lambda: _remove_unfinished(target), f"write {path}")
        with _Writer(target) as writer:
            for group, its_parts in itertools.groupby(
                parts, key=lambda part: part.place[0] // group_size if part.place else None
            ):
                if group is None:
                    first, stop, shapes = None, 0, others
                else:
                    first, stop = group * group_size, min((group + 1) * group_size, num_layers)
                    shapes = {path: (stop - first, *shape[1:]) for path, shape in layers.items()}
                arrays = _assemble(its_parts, first, shapes, dtype, next(memories))
                if first is not None:
                    arrays = {_on_disk(path, first): array for path, array in arrays.items()}
                metadata = None
                if stop == num_layers:
                    metadata = {
                        "format": FORMAT,
                        "kind": next(kind for kind, known in _KINDS.items() if isinstance(config, known)),
                        "config": dataclasses.asdict(config),
                        "tokenizer": None if tokenizer is None else tokenizer.to_json(),
                        "processor": None if processor is None else processor.to_json(),
                        "provenance": dict(provenance()),
                    }
                writer.write(flax.traverse_util.unflatten_dict(arrays, sep="/"), metadata and {_KEY: metadata})
            writer.finalize()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}.") from None


def save_params(
    path: str,
    config: TransformerConfig | VisionConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    processor: ImageProcessor | None = None,
    provenance: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Writes a checkpoint of parameters that are in memory, in their dtype; see `save_checkpoint`.

    What is split over several processes is gathered first: all of them call this, and each has the host's memory for
    the parameters.
    """
    flat: dict[str, Any] = whole(flax.traverse_util.flatten_dict(params, sep="/"))
    as_it_is = (None, (), None)

    def parts() -> Iterable[Part]:
        stacked = {name: x for name, x in flat.items() if name.startswith(_LAYERS + "/")}
        yield from (Part(name, (), np.asarray(x), as_it_is) for name, x in flat.items() if name not in stacked)
        for layer in range(config.num_layers):
            yield from (Part(name, (layer,), np.asarray(x[layer]), as_it_is) for name, x in stacked.items())

    expected = {name: x.shape for name, x in flat.items()}
    dtype = next(iter(flat.values())).dtype
    save_checkpoint(
        path, config, parts(), expected, dtype=dtype, tokenizer=tokenizer, processor=processor, provenance=provenance
    )


class _Writer:
    """Writes one tree of arrays while the next is made; what goes wrong with one is raised by the next call."""

    def __init__(self, target: epath.Path):
        from orbax.checkpoint import v1 as ocp

        self._target = target
        self._pool = futures.ThreadPoolExecutor(1)
        self._writing: futures.Future[None] | None = None
        self._context = ocp.Context()
        # Uncompressed: trained weights hardly shrink, and reading is what happens often.
        self._context.array.saving.use_compression = False
        self._context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
        self._context.array.saving.ocdbt_target_data_file_size = _FILE_BYTES
        self._context.memory.deepcopy_host_arrays = False  # nobody else has the arrays

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, tree: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> None:
        """Starts writing, once the tree before is written: Orbax takes one partial save at a time."""
        self._finish()
        self._writing = self._pool.submit(self._save, tree, metadata)

    def finalize(self) -> None:
        """Gives the checkpoint its name."""
        from orbax.checkpoint import v1 as ocp

        self._finish()
        ocp.partial.finalize(str(self._target))

    def _finish(self) -> None:
        if self._writing is None:
            return
        try:
            self._writing.result()
        except (OSError, ValueError) as error:  # tensorstore's: a full disk, say
            raise ValueError(f"{self._target} cannot be written: {error}.") from None

    def _save(self, tree: Any, metadata: Any) -> None:
        from orbax.checkpoint import v1 as ocp

        with self._context:
            ocp.partial.save(str(self._target), tree, custom_metadata=metadata)
        _trim_memory()


def _trim_memory() -> None:
    """Gives the system what the C library has free: glibc keeps gigabytes of what tensorstore's threads wrote from."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


def read_metadata(path: str) -> Checkpoint:
    """The metadata of the checkpoint at `path`.

    Raises:
      ValueError: no finished checkpoint is there, or it is not one of this project.
    """
    from orbax.checkpoint import v1 as ocp

    if not is_checkpoint(path):
        raise ValueError(f"{path} holds no finished checkpoint; convert the model again (checkpoints/README.md).")
    # Only this file: the sizes of the arrays are not needed yet.
    stored = (ocp.checkpointables_metadata(_epath(path)).custom_metadata or {}).get(_KEY)
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is an Orbax checkpoint, but not of this project: it has no config.")
    if stored.get("format") != FORMAT:
        raise ValueError(f"{path} has format {stored.get('format')}, this version reads {FORMAT}; convert it again.")
    tokenizer, processor = stored["tokenizer"], stored.get("processor")
    if processor is not None:
        from massive_jax.inputs.images import ImageProcessor

        processor = ImageProcessor.from_json(processor)
    return Checkpoint(
        _from_dict(_KINDS[stored.get("kind", "language")], stored["config"]),
        None if tokenizer is None else Tokenizer.from_json(tokenizer),
        processor,
        stored["provenance"],
    )


def load_checkpoint(
    path: str, expected: Callable[[], Mapping[str, tuple[int, ...]]], *, dtype: Any, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Restores the parameters of the checkpoint at `path` onto the default device, or split over `mesh`.

    The arrays that Orbax wrote are read with the library that it reads them with, into memory that becomes the device's
    own where device and host share theirs: through Orbax itself every byte is copied twice more.

    Args:
      path: a directory or `gs://…`.
      expected: gives parameter path -> shape, of the model its config describes. Asked while the arrays are being read:
        tracing a module takes as long.
      dtype: of the parameters; cast while reading where it differs from the stored one.
      mesh: see `massive_jax.parallel`.

    Raises:
      ValueError: the arrays are not those of the model, or cannot be read.
    """
    try:
        stored = _open_arrays(_epath(path))
        with futures.ThreadPoolExecutor(_READERS) as pool:
            found = {name: pool.submit(_read, name, groups, dtype, mesh) for name, groups in stored.items()}
            try:
                _check_shapes({name: _whole_shape(groups) for name, groups in stored.items()}, expected())
                params = {name: array.result() for name, array in found.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: the arrays are not those of the model its metadata describes: {error}") from None
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _open_arrays(path: epath.Path) -> dict[str, _Groups]:
    """Parameter path -> its groups of layers, unread."""
    import tensorstore as ts

    directory = next((child for child in path.iterdir() if (child / "manifest.ocdbt").exists()), None)
    if directory is None:
        raise ValueError("there are none")
    location = f"{directory}/"
    base = location if "://" in location else {"driver": "file", "path": location}
    database = {"driver": "ocdbt", "base": base, "cache_pool": "cache_pool#nodes"}
    context = ts.Context({"cache_pool#nodes": {"total_bytes_limit": 100_000_000}, "file_io_mode": {"mode": "memmap"}})
    keys = (key.decode() for key in ts.KvStore.open(database, context=context).result().list().result())
    names = [key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json")]
    # A missing piece is an error, not zeros.
    specs = [
        {"driver": "zarr3", "kvstore": {**database, "path": f"{name}/"}, "fill_missing_data_reads": False}
        for name in names
    ]
    opened = [ts.open(spec, open=True, read=True, context=context) for spec in specs]
    arrays: dict[str, _Groups] = {}
    for name, array in zip(names, opened, strict=True):
        parts = name.split(".")
        stacked = parts[0] == _LAYERS
        first = int(parts.pop(1)) if stacked else None
        arrays.setdefault("/".join(parts), {})[first] = array.result()
    return {name: dict(sorted(groups.items())) for name, groups in arrays.items()}


def _whole_shape(groups: _Groups) -> tuple[int, ...]:
    """The shape of a parameter, its groups of layers joined."""
    if None in groups:
        return tuple(groups[None].shape)
    stop = 0
    for first, array in groups.items():
        if first != stop:
            raise ValueError(f"layers {stop + 1} to {first} are missing")
        stop += array.shape[0]
    shapes = {tuple(array.shape[1:]) for array in groups.values()}
    if len(shapes) > 1:
        raise ValueError(f"layers have different shapes: {sorted(shapes)}")
    return (stop, *shapes.pop())


def _check_shapes(stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{name} {list(stored[name]) if name in stored else 'missing'}"
        f" (expected {list(expected[name]) if name in expected else 'none'})"
        for name in sorted({*stored, *expected})
        if stored.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError(files.listed(wrong))


def _read(name: str, groups: _Groups, dtype: Any, mesh: Mesh | None) -> jax.Array:
    """A parameter from its groups of layers, onto its devices."""
    import tensorstore as ts

    shape = _whole_shape(groups)

    def shard(index: Any) -> np.ndarray:
        its_shape = tuple(len(range(size)[part]) for size, part in zip(shape, index, strict=True))
        out = layout.Memory().array(its_shape, dtype)
        reading = []
        for first, array in groups.items():
            # Layers are never split over devices.
            rows = out if first is None else out[first : first + array.shape[0]]
            part = array[index if first is None else (slice(None), *index[1:])]
            cast = part if part.dtype.numpy_dtype == out.dtype else ts.cast(part, out.dtype)
            reading.append(ts.array(rows).write(cast[ts.d[:].translate_to[0]]))
        for it in reading:
            it.result()
        return out

    sharding = param_sharding(name, shape, mesh) or SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(shape, sharding, shard)


def _on_disk(path: str, first: int) -> str:
    """Where a group of layers of the parameter at `path` is stored; `first` is the group's first layer, from 0."""
    return f"{_LAYERS}/{first:03d}/{path.removeprefix(_LAYERS + '/')}"


def _group_size(layers: Mapping[str, tuple[int, ...]], dtype: Any) -> int:
    """How many layers are stacked on disk."""
    layer_bytes = sum(math.prod(shape[1:]) for shape in layers.values()) * jnp.dtype(dtype).itemsize
    return max(1, _GROUP_BYTES // max(1, layer_bytes))


def _assemble(
    parts: Iterable[Part], first: int | None, shapes: Mapping[str, tuple[int, ...]], dtype: Any, memory: layout.Memory
) -> dict[str, Any]:
    """Path -> array of one group of layers, or of what is not in layers, laid out in `memory`."""
    arrays = memory.arrays(shapes, dtype)
    for part in parts:
        place = part.place if first is None else (part.place[0] - first, *part.place[1:])
        part.write(arrays[part.path][place])
    return arrays


def _epath(path: str) -> epath.Path:
    from etils import epath

    found = epath.Path(path)
    return found if "://" in path else found.expanduser().absolute()


def _remove_unfinished(target: epath.Path) -> None:
    for left in target.parent.glob(target.name + ".partial_save*") if target.parent.exists() else ():
        left.rmtree()


def _from_dict(kind: type, fields: Mapping[str, Any]) -> Any:
    """A config dataclass from its `asdict`, tuples and nested configs restored."""
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in fields.items():
        nested = [t for t in typing.get_args(hints[name]) or (hints[name],) if dataclasses.is_dataclass(t)]
        if isinstance(value, dict) and nested:
            value = _from_dict(nested[0], value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return kind(**values)
