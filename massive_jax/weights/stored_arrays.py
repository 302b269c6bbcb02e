"""Reading the arrays of a converted checkpoint: onto their devices, in their dtype, checked on the way.

They are read with the library that Orbax reads them with, into memory that becomes the device's own where device and
host share theirs: through Orbax itself every byte is copied twice more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from massive_jax import files
from massive_jax.models import Parameter
from massive_jax.parallel import param_sharding
from massive_jax.weights import layout, numbers

if TYPE_CHECKING:
    from etils import epath

LAYERS = "layers"
_READERS = 4  # parameters that are read side by side
_PIECE_BYTES = 4 << 20  # of an array that is not read right to where it is wanted: what fits a core's cache
_AGAIN = "Copy it again, or convert the model again."
_Groups: TypeAlias = dict[int | None, Any]  # first layer (None where not stacked) -> array on disk, in order
_Places: TypeAlias = list[tuple[tuple[slice, ...], np.ndarray]]  # part of the parameter -> where it is wanted


@dataclasses.dataclass(frozen=True)
class Record:
    """Holds what is known of an array on disk from when it was written.

    Attributes:
      checksum: XXH3 of its bytes, row-major, 64 bits in hexadecimal.
      extremes: its most negative and its most positive number; NaN where one is not finite.
    """

    checksum: str
    extremes: tuple[float, float]

    @classmethod
    def of(cls, array: np.ndarray) -> Record:
        """Makes the record of an array that is contiguous in memory."""
        return cls(_checksum(array), numbers.extremes(array))

    def to_json(self) -> dict[str, Any]:
        """Gives plain data; what JSON has no number for is null."""
        return {"xxh3_64": self.checksum, "extremes": [x if np.isfinite(x) else None for x in self.extremes]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Record:
        """Reads the record that `to_json` gave; TypeError, KeyError or ValueError for other data."""
        low, high = (float("nan") if x is None else float(x) for x in stored["extremes"])
        return cls(str(stored["xxh3_64"]), (low, high))


def on_disk(path: str, first: int | None) -> str:
    """Says where a group of layers of the parameter at `path` is stored; `first` is the group's first layer, from 0."""
    return path if first is None else f"{LAYERS}/{first:03d}/{path.removeprefix(LAYERS + '/')}"


def read_params(
    path: epath.Path,
    expected: Callable[[], Mapping[str, Parameter]],
    *,
    dtype: Any,
    mesh: Mesh | None,
    records: Mapping[str, Record] | None,
    allow_nonfinite: bool,
) -> dict[str, jax.Array]:
    """Reads parameter path -> array on its devices; see `checkpoint.load_checkpoint`.

    Every array is compared with its checksum. Where several processes read one checkpoint, each compares a part of the
    arrays, which it reads whole: of the others it reads only what its own devices hold.
    """
    try:
        stored = _open(path)
        shapes = {name: _whole_shape(groups) for name, groups in stored.items()}
        reading = _Reading(dtype, records)
        if mesh is not None:  # how an array is split is for its parameter to say
            check_shapes(shapes, parameters := expected())
            reading.shardings = {name: param_sharding(it.axes, it.shape, mesh) for name, it in parameters.items()}
        with futures.ThreadPoolExecutor(_READERS) as pool:
            found = {
                name: pool.submit(reading.read, name, groups, i) for i, (name, groups) in enumerate(stored.items())
            }
            try:
                if mesh is None:
                    check_shapes(shapes, expected())
                params = {name: array.result() for name, array in found.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    # RuntimeError, NotImplementedError …: tensorstore's, of what it cannot make sense of.
    except (OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path}: the arrays are not those of the model its metadata describes, or are damaged: {in_words(error)}"
        ) from None
    if reading.changed:
        raise ValueError(
            f"{path} is damaged: the checksums of {len(reading.changed)} arrays are not those that were written: "
            f"{files.listed(sorted(reading.changed))}. {_AGAIN}"
        )
    if not allow_nonfinite:
        if reading.broken:
            raise numbers.not_finite(str(path), sorted(set(reading.broken)))
        if reading.beyond:
            raise numbers.out_of_range(str(path), sorted(reading.beyond), dtype)
    return params


def _checksum(array: np.ndarray) -> str:
    import xxhash

    return xxhash.xxh3_64_hexdigest(array.reshape(-1).view(np.uint8).data)


def in_words(error: BaseException) -> str:
    """Says what tensorstore says in a line: the system's own word for it where there is one."""
    text = str(error).partition("\n")[0].partition(" [tensorstore_spec=")[0]
    _, _, code = text.partition("[os_error_code='")
    if (number := code.partition("'")[0]).isdecimal():
        return os.strerror(int(number))
    return text


@dataclasses.dataclass
class _Reading:
    """How arrays are read, and what was found wrong with them."""

    dtype: Any
    records: Mapping[str, Record] | None
    shardings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of no name: the default device
    changed: list[str] = dataclasses.field(default_factory=list)
    broken: list[str] = dataclasses.field(default_factory=list)
    beyond: list[str] = dataclasses.field(default_factory=list)
    _local: threading.local = dataclasses.field(default_factory=threading.local)

    def _memory(self) -> layout.Memory:
        """Of this thread, for one array after another as they are stored."""
        if not hasattr(self._local, "memory"):
            self._local.memory = layout.Memory()
        return self._local.memory

    def read(self, name: str, groups: _Groups, number: int) -> jax.Array:
        """A parameter, the `number`-th, from its groups of layers, onto its devices."""
        shape = _whole_shape(groups)
        sharding = self.shardings.get(name) or SingleDeviceSharding(jax.devices()[0])
        places: _Places = [
            (index, layout.Memory().array(_shape_of(index, shape), self.dtype))
            for index in sharding.addressable_devices_indices_map(shape).values()
            if index is not None
        ]
        mine = self.records is not None and number % jax.process_count() == jax.process_index()
        for first, array in groups.items():
            size = array.shape[0] if array.ndim else 0
            # Layers are never split over devices.
            parts = [
                (index, out) if first is None else ((slice(None), *index[1:]), out[first : first + size])
                for index, out in places
            ]
            self._read_group(name, first, array, parts, mine)
        left = {str(index): [out for it, out in places if it == index] for index, _ in places}
        return jax.make_array_from_callback(shape, sharding, lambda index: left[str(index)].pop())

    def _read_group(self, name: str, first: int | None, array: Any, parts: _Places, mine: bool) -> None:

        stored = array.dtype.numpy_dtype
        if not numbers.holds_weights(stored.name):
            raise ValueError(f"{name} is stored as {stored.name}, which holds no weights")
        record = None if self.records is None else self.records[on_disk(name, first)]
        if len(parts) == 1 and parts[0][1].shape == tuple(array.shape) and stored == self.dtype:
            _copy(array, parts)
            checksum = _checksum(parts[0][1]) if mine else None
        elif mine and array.ndim:
            checksum = self._read_pieces(array, parts, stored)
        else:
            _copy(array, parts)
            checksum = None
        if record is None:
            found = [numbers.extremes(out) for _, out in parts]
            self._look_at(name, numbers.extremes_of_all(found), self.dtype)
        else:
            if checksum is not None and checksum != record.checksum:
                self.changed.append(name if first is None else f"{name} (layers from {first + 1})")
            self._look_at(name, record.extremes, stored)

    def _read_pieces(self, array: Any, parts: _Places, stored: Any) -> str:
        """Reads a piece as it is stored, then writes it to where it is wanted, and so on; gives the checksum of all."""
        import tensorstore as ts
        import xxhash

        digest = xxhash.xxh3_64()
        rows = max(1, _PIECE_BYTES // max(1, array[0].size * stored.itemsize))
        for start in range(0, array.shape[0], rows):
            stop = min(start + rows, array.shape[0])
            piece = array[start:stop]
            raw = self._memory().array(tuple(piece.shape), stored)
            _copy(piece, [((slice(None),) * array.ndim, raw)])
            digest.update(raw.reshape(-1).view(np.uint8).data)
            _copy(ts.array(raw), _within(parts, start, stop, array.shape[0]))
        return digest.hexdigest()

    def _look_at(self, name: str, extremes: tuple[float, float], stored: Any) -> None:
        if not numbers.finite_in(extremes, stored):
            self.broken.append(name)
        elif not numbers.finite_in(extremes, self.dtype):
            self.beyond.append(f"{name} ({max(extremes, key=abs):.6g})")


def _copy(array: Any, parts: _Places) -> None:
    """Writes parts of an array of tensorstore to where they are wanted, cast to the dtype that is wanted there."""
    import tensorstore as ts

    writing = []
    for index, out in parts:
        part = array[index][ts.d[:].translate_to[0]] if array.ndim else array
        writing.append(ts.array(out).write(part if part.dtype.numpy_dtype == out.dtype else ts.cast(part, out.dtype)))
    for it in writing:
        it.result()


def _within(parts: _Places, start: int, stop: int, size: int) -> _Places:
    """Of `parts` of an array of `size` rows, what lies in its rows from `start` to `stop`, counted from there."""
    found = []
    for (rows, *rest), out in parts:
        first, last, _ = rows.indices(size)
        low, high = max(first, start), min(last, stop)
        if low < high:
            found.append(((slice(low - start, high - start), *rest), out[low - first : high - first]))
    return found


def _open(path: epath.Path) -> dict[str, _Groups]:
    """Parameter path -> its groups of layers, unread."""
    import tensorstore as ts

    directory = next((child for child in path.iterdir() if (child / "manifest.ocdbt").exists()), None)
    if directory is None:
        raise ValueError("there are none")
    location = f"{directory}/"
    remote = files.is_remote(location)
    if not remote:
        _check_files(location)
    base = location if remote else {"driver": "file", "path": location}
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
        stacked = parts[0] == LAYERS
        first = int(parts.pop(1)) if stacked else None
        arrays.setdefault("/".join(parts), {})[first] = array.result()
    return {name: dict(sorted(groups.items())) for name, groups in arrays.items()}


def _check_files(directory: str) -> None:
    """Refuses a pipe or a device among the files: reading one could wait for ever."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(os.path.join(folder, name)).st_mode):
                    raise ValueError(f"{os.path.join(folder, name)} is no file")


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


def check_shapes(stored: Mapping[str, tuple[int, ...]], parameters: Mapping[str, Parameter]) -> None:
    """Raises a ValueError that lists the arrays, path -> shape, which are not those of `parameters`."""
    expected = {name: parameter.shape for name, parameter in parameters.items()}
    wrong = [
        f"{name} {list(stored[name]) if name in stored else 'missing'}"
        f" (expected {list(expected[name]) if name in expected else 'none'})"
        for name in sorted({*stored, *expected})
        if stored.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError(files.listed(wrong))


def _shape_of(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(size)[part]) for size, part in zip(shape, index, strict=True))
