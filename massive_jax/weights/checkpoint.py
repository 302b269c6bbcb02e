"""This project's own checkpoints: Orbax (v1 API), with config, tokenizer and provenance in the metadata.

On disk, consecutive layers are stacked in groups of at most 800 MiB (`layers/012/attn/query/kernel` starts with
layer 13), so that a model of any size is written in little memory and a small one is read in few pieces. A checkpoint
is written under another name and renamed when it is whole: what is at its path is complete. Paths may be `gs://…`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import json
import math
import os
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import TYPE_CHECKING, Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from massive_jax import files, storage
from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.models import Parameter, TransformerConfig, VisionConfig
from massive_jax.parallel import is_first, once, whole
from massive_jax.weights import layout
from massive_jax.weights.loader import Part
from massive_jax.weights.quiet import quiet_storage
from massive_jax.weights.stored_arrays import LAYERS, Record, check_shapes, in_words, on_disk, read_params

if TYPE_CHECKING:
    from etils import epath

    from massive_jax.inputs.images import ImageProcessor

FORMAT = 2  # 1: before attention biases were an option of their own
_KEY = "massive_jax"
_KINDS = {"language": TransformerConfig, "vision": VisionConfig}
_CHUNK_BYTES = 16 << 20  # pieces that are read and written side by side
_GROUP_BYTES = 800 << 20  # of layers that are stacked on disk; a larger layer is a group by itself
_FILE_BYTES = 32 << 20  # on disk: the first file is flushed while the others are filled
_METADATA = "_CHECKPOINT_METADATA"  # Orbax's names
_FINISHED = "commit_success.txt"
_UNFINISHED = ".partial_save"
_STRAGGLING = 10  # seconds that threads may go on writing after one of them has failed
_AGAIN = "Copy it again, or convert the model again."


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Holds what a checkpoint's metadata says.

    Attributes:
      config: of the model.
      tokenizer: None where it has none.
      processor: of images; None where it has none.
      provenance: source, revision, files with sizes and checksums, dtype, versions, date.
      arrays: what was written, by the name on disk; None in a checkpoint from before that was recorded.
    """

    config: TransformerConfig | VisionConfig
    tokenizer: Tokenizer | None
    processor: ImageProcessor | None
    provenance: Mapping[str, Any]
    arrays: Mapping[str, Record] | None = None


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tells whether a finished checkpoint is at `path`; ValueError where it is in a bucket that cannot be reached."""
    where = _epath(path)
    if _UNFINISHED in where.name:
        return False
    with storage.reaching(path):
        # A directory in a store cannot be renamed: it has a mark until all of it is there.
        return (where / _METADATA).is_file() and not (files.is_remote(where) and (where / storage.UNFINISHED).exists())


def is_or_was_checkpoint(path: files.Path) -> bool:
    """Tells whether a finished checkpoint is in a directory, or what is left of one: arrays without the metadata."""
    return is_checkpoint(path) or (path / _FINISHED).exists() or any(path.glob("*/manifest.ocdbt"))


def check_free(path: str | os.PathLike[str]) -> None:
    """Raises a ValueError where something is at `path`, so that no checkpoint can be written there."""
    with storage.reaching(path):
        target = _epath(path)
        if target.exists():
            raise ValueError(f"{path} exists already; name another directory, or remove it.")
        if files.is_remote(target):
            return
        there = next(parent for parent in target.parents if parent.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise ValueError(f"{path} cannot be written: {there} is no directory that can be written to.")


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
      ValueError: something is at `path`; another process writes it; it cannot be written. Nothing is left then.
    """
    target = _epath(path)
    trees = _trees(config, parts, expected, dtype, tokenizer, processor, provenance)
    if files.is_remote(path):
        once(lambda: _put(path, target, trees), f"write {path}")
        return
    with _target(path, target), quiet_storage(), _Writer(target) as writer:
        writer.write_all(trees)


def _put(path: str, target: epath.Path, trees: Iterable[tuple[Mapping[str, Any], Mapping[str, Any] | None]]) -> None:
    """Writes a checkpoint on this machine, and puts it into a store.

    Orbax joins the groups by renaming: its `partial.save` to gs:// ends with "Snapshot is not supported".
    """
    from etils import epath

    with files.atomic_directory(target) as here:
        here.rmdir()  # which Orbax makes
        with quiet_storage(), _Writer(epath.Path(here), alone=True) as writer:
            writer.write_all(trees)


def _trees(
    config: TransformerConfig | VisionConfig,
    parts: Iterable[Part],
    expected: Mapping[str, tuple[int, ...]],
    dtype: Any,
    tokenizer: Tokenizer | None,
    processor: ImageProcessor | None,
    provenance: Callable[[], Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """The arrays of a checkpoint, a group of layers at a time, with the last of them its metadata."""
    layers = {path: shape for path, shape in expected.items() if path.startswith(LAYERS + "/")}
    others = {path: shape for path, shape in expected.items() if path not in layers}
    num_layers = max(shape[0] for shape in layers.values())
    group_size = _group_size(layers, dtype)
    memories = itertools.cycle((layout.Memory(), layout.Memory()))  # one is written while the other is filled
    records: dict[str, Any] = {}
    for group, its_parts in itertools.groupby(
        parts, key=lambda part: part.place[0] // group_size if part.place else None
    ):
        if group is None:
            first, stop, shapes = None, 0, others
        else:
            first, stop = group * group_size, min((group + 1) * group_size, num_layers)
            shapes = {path: (stop - first, *shape[1:]) for path, shape in layers.items()}
        arrays = _assemble(its_parts, first, shapes, dtype, next(memories))
        arrays = {on_disk(path, first): array for path, array in arrays.items()}
        records |= {path: Record.of(array).to_json() for path, array in arrays.items()}
        metadata = None
        if stop == num_layers:
            metadata = {
                "format": FORMAT,
                "kind": next(kind for kind, known in _KINDS.items() if isinstance(config, known)),
                "config": dataclasses.asdict(config),
                "tokenizer": None if tokenizer is None else tokenizer.to_json(),
                "processor": None if processor is None else processor.to_json(),
                "provenance": dict(provenance()),
                "arrays": records,
            }
            metadata = {_KEY: metadata | {"checksum": _checksum(metadata)}}
        yield flax.traverse_util.unflatten_dict(arrays, sep="/"), metadata


@contextlib.contextmanager
def _target(path: str | os.PathLike[str], target: epath.Path) -> Iterator[None]:
    """What is around writing a checkpoint: nothing is there, nobody else writes it, and a failure leaves nothing."""

    def start() -> None:
        lock.enter_context(files.locked(target))
        check_free(path)
        with storage.reaching(path):
            _remove_unfinished(target)

    with contextlib.ExitStack() as lock:
        once(start, f"write {path}")
        try:
            yield
        except Exception as error:
            if is_first():
                with contextlib.suppress(Exception):  # the first failure is the one to report
                    _remove_unfinished(target)
            if isinstance(error, OSError):
                raise ValueError(f"{path} cannot be written: {error.strerror or error}.") from None
            raise


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
        stacked = {name: x for name, x in flat.items() if name.startswith(LAYERS + "/")}
        yield from (Part(name, (), np.asarray(x), as_it_is) for name, x in flat.items() if name not in stacked)
        for layer in range(config.num_layers):
            on_devices = all(isinstance(x, jax.Array) for x in stacked.values())
            of_layer = _of_layer(stacked, layer) if on_devices else {name: x[layer] for name, x in stacked.items()}
            yield from (Part(name, (layer,), np.asarray(x), as_it_is) for name, x in of_layer.items())

    expected = {name: x.shape for name, x in flat.items()}
    dtype = next(iter(flat.values())).dtype
    save_checkpoint(
        path, config, parts(), expected, dtype=dtype, tokenizer=tokenizer, processor=processor, provenance=provenance
    )


def check_params(params: Any, expected: Mapping[str, Parameter], *, allow_nonfinite: bool = False) -> None:
    """Looks at parameters that are in memory before they are written.

    Args:
      params: nested, as a model has them.
      expected: parameter path -> what the config declares.
      allow_nonfinite: takes those that are NaN or infinite.

    Raises:
      ValueError: parameters that are not those expected, are not floating, or NaN or infinite; all of them are named.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/") if isinstance(params, Mapping) else {}
    try:
        check_shapes({name: np.shape(x) for name, x in flat.items()}, expected)
    except ValueError as error:
        raise ValueError(f"the parameters are not those of the config: {error}.") from None
    wrong = [
        f"{name} of {x.dtype if hasattr(x, 'dtype') else type(x).__name__}"
        for name, x in flat.items()
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating)
    ]
    if wrong:
        raise ValueError(f"parameters that are no weights, which are floating: {files.listed(wrong, 5)}.")
    if not allow_nonfinite and (bad := [name for name, x in flat.items() if not _all_finite(x)]):
        raise ValueError(
            f"parameters that are NaN or infinite: {files.listed(bad, 5)}. Where they are meant to be, allow_nonfinite "
            "saves them all the same."
        )


@jax.jit
def _of_layer(stacked: dict[str, jax.Array], layer: int) -> dict[str, jax.Array]:
    """One layer's parameters of stacked ones [L, …]: one program for all of them and every layer."""
    return {name: x[layer] for name, x in stacked.items()}


_all_finite = jax.jit(lambda x: jnp.all(jnp.isfinite(x)))


class _Writer:
    """Writes one tree of arrays while the next is made; what goes wrong with one is raised by the next call."""

    def __init__(self, target: epath.Path, *, alone: bool = False):
        """Writes to `target`, which all processes see, or process 0 `alone`."""
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
        if alone:
            self._context.multiprocessing.active_processes = {0}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write_all(self, trees: Iterable[tuple[Mapping[str, Any], Mapping[str, Any] | None]]) -> None:
        """Writes trees and their metadata, and gives the checkpoint its name."""
        for tree, metadata in trees:
            self.write(tree, metadata)
        self.finalize()

    def write(self, tree: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> None:
        """Starts writing, once the tree before is written: Orbax takes one partial save at a time."""
        self._finish()
        self._writing = self._pool.submit(self._save, tree, metadata)

    def finalize(self) -> None:
        """Gives the checkpoint its name."""
        from orbax.checkpoint import v1 as ocp

        self._finish()
        with self._reported(), self._context:
            ocp.partial.finalize(str(self._target))

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore's: a full disk, say
            raise ValueError(f"{self._target} cannot be written: {in_words(error)}.") from None

    def _finish(self) -> None:
        if self._writing is None:
            return
        with self._reported():
            self._writing.result()

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


def read_metadata(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads the metadata of the checkpoint at `path`.

    Raises:
      ValueError: no finished checkpoint is there, it is not one of this project, of another version, or it is damaged.
    """
    if not is_checkpoint(path):
        raise ValueError(f"{path} holds no finished checkpoint; convert the model again (checkpoints/README.md).")
    with storage.reaching(path):
        stored = _stored_json(_epath(path) / _METADATA)
    for name in ("custom_metadata", _KEY):
        stored = stored.get(name) if isinstance(stored, dict) else None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is an Orbax checkpoint, but not of this project: it has no config.")
    if stored.get("format") != FORMAT or isinstance(stored["format"], bool):
        raise ValueError(
            f"{path} has format {files.shown(stored.get('format'))}, this version reads {FORMAT}; "
            "convert the model again."
        )
    if missing := [name for name in ("config", "tokenizer", "provenance") if name not in stored]:
        raise ValueError(f"{path} is damaged: its metadata lack {', '.join(missing)}. {_AGAIN}")
    kind = stored.get("kind", "language")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"{path} holds a model of kind {files.shown(kind)}; known: {', '.join(_KINDS)}. Update massive_jax."
        )
    # A checkpoint from before there were checksums has none.
    if ("checksum" in stored or "arrays" in stored) and stored.get("checksum") != _checksum(stored):
        raise ValueError(f"{path} is damaged: the checksum of its metadata is not the one that was written. {_AGAIN}")
    tokenizer, processor, arrays = stored["tokenizer"], stored.get("processor"), stored.get("arrays")
    try:
        if processor is not None:
            from massive_jax.inputs.images import ImageProcessor

            processor = ImageProcessor.from_json(processor)
        return Checkpoint(
            _from_dict(_KINDS[kind], stored["config"]),
            None if tokenizer is None else Tokenizer.from_json(tokenizer),
            processor,
            stored["provenance"],
            None if arrays is None else {name: Record.from_json(record) for name, record in arrays.items()},
        )
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is damaged: its metadata cannot be used ({files.one_line(reason)}). {_AGAIN}"
        ) from None


def load_checkpoint(
    path: str | os.PathLike[str],
    expected: Callable[[], Mapping[str, Parameter]],
    *,
    dtype: Any,
    mesh: Mesh | None = None,
    allow_nonfinite: bool = False,
    found: Checkpoint | None = None,
) -> dict[str, Any]:
    """Restores the parameters of the checkpoint at `path` onto the default device, or split over `mesh`.

    Args:
      path: a directory or `gs://…`.
      expected: gives what `massive_jax.models.declared` says of the model that its config describes. Asked while the
        arrays are being read, where they are not to be split: tracing a module takes as long.
      dtype: of the parameters; cast while reading where it differs from the stored one.
      mesh: see `massive_jax.parallel`.
      allow_nonfinite: takes parameters that are NaN or infinite, or become so in `dtype`.
      found: its metadata, where they have been read.

    Raises:
      ValueError: the arrays are not those of the model, are not what was written, are NaN or infinite, or cannot be
        read.
    """
    where = _epath(path)
    params = read_params(
        where,
        expected,
        dtype=jnp.dtype(dtype),
        mesh=mesh,
        records=(found or read_metadata(path)).arrays,
        allow_nonfinite=allow_nonfinite,
    )
    return flax.traverse_util.unflatten_dict(params, sep="/")


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


def _epath(path: str | os.PathLike[str]) -> epath.Path:
    """`path` as Orbax's own libraries have it, in a bucket or here."""
    from etils import epath

    found = files.user_path(path)
    return epath.Path(found if files.is_remote(found) else found.absolute())


def _remove_unfinished(target: epath.Path) -> None:
    """Removes what a save left. Threads of a failed one may still write, into it or anew: looks until it stays gone."""
    until = time.monotonic() + _STRAGGLING
    while left := list(target.parent.glob(f"{target.name}{_UNFINISHED}*")) if target.parent.exists() else []:
        for directory in left:
            try:
                directory.rmtree()
            except OSError:
                if time.monotonic() > until:
                    raise
        time.sleep(0.1)


def _stored_json(path: epath.Path) -> Any:
    """What a metadata file of Orbax holds, read by itself: Orbax would open the arrays too, and log what it meets."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: not readable JSON: {error}. {_AGAIN}") from None


def _checksum(metadata: Mapping[str, Any]) -> str:
    """XXH3 of metadata as JSON writes them, but for their own checksum."""
    import xxhash

    kept = {name: value for name, value in metadata.items() if name != "checksum"}
    return xxhash.xxh3_64_hexdigest(json.dumps(kept).encode())


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
