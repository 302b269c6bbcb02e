"""Tensors from a file that `torch.save` wrote, without torch and without running what its pickle says.

Such a file is a zip archive: `data.pkl` describes the tensors, `data/0`, `data/1`, … are their raw numbers. A pickle
can call any function by name when it is loaded; here it may name the few that rebuild tensors, and nothing else.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from massive_jax.files import existing_file

_MAX_PICKLE = 16 << 20  # bytes; a description of tensors is some kilobytes
_DTYPES: dict[str, Any] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


def read_torch_zip(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict that `torch.save` wrote (torch 1.6 and later), by name.

    Raises:
      ValueError: not such a file, damaged, or its pickle names something other than tensors; the message says what.
    """
    file = existing_file(path, "Weights file")
    try:
        with zipfile.ZipFile(file) as archive:
            state = _Reader(archive).load()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{file} is not a zip archive ({error}): torch before 1.6 wrote bare pickles, which are not opened. Load "
            "it where it came from and save it with safetensors."
        ) from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None
    except Exception as error:  # a damaged pickle raises anything, also by the wrong number of arguments
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(state, dict) or not all(isinstance(x, np.ndarray) for x in state.values()):
        raise ValueError(f"{file} does not hold a dict of tensors; save the state dict alone.")
    return {str(name): array for name, array in state.items()}


class _Reader(pickle.Unpickler):
    """An unpickler that knows tensors and ordered dicts only."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        # The folder that everything is in is named after the file that was saved.
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1 or archive.getinfo(pickles[0]).file_size > _MAX_PICKLE:
            raise ValueError("a zip archive, but not one that torch.save wrote.")
        self._folder = pickles[0].removesuffix("data.pkl")
        self._byteorder = self._text("byteorder", "little")
        super().__init__(io.BytesIO(archive.read(pickles[0])))

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        }
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"refused: its pickle names {module}.{name}, which is no tensor.")
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The numbers of one storage, in one dimension."""
        kind, storage, key, _, count = pid
        if kind != "storage" or storage not in _DTYPES or not str(key).isalnum():
            raise pickle.UnpicklingError(f"refused: its pickle refers to {kind!r} {storage!r}, which is no tensor.")
        dtype = _DTYPES[storage]
        info = self._archive.getinfo(f"{self._folder}data/{key}")
        if info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {info.file_size} bytes for {count} numbers of {dtype.itemsize}.")
        if self._byteorder != "little":
            dtype = dtype.newbyteorder(">")
        return np.frombuffer(self._archive.read(info), dtype)

    def _text(self, name: str, default: str) -> str:
        try:
            return self._archive.read(self._folder + name).decode("ascii").strip()
        except KeyError:  # files of older versions do not say
            return default


def _rebuild_tensor(storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
    """A tensor from its storage; no tensor has more numbers than that (a view could repeat them without end)."""
    shape, steps = np.asarray(size, np.int64), np.asarray(stride, np.int64)
    count = math.prod(int(n) for n in shape)
    last = offset + int(np.sum((shape - 1) * steps)) if count else offset - 1
    fits = shape.shape == steps.shape and min([offset, *shape, *steps]) >= 0
    if not fits or count > len(storage) or last >= len(storage):
        raise ValueError(f"a tensor of shape {shape.tolist()} does not fit its storage of {len(storage)} numbers.")
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape.tolist(), (steps * storage.itemsize).tolist())
    return view.copy()


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data
