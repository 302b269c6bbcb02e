"""Weights from a Hugging Face directory: `config.json` and safetensors, in one file or in shards.

Only safetensors are opened. PyTorch's `.bin` and `.pt` files are pickles, which can run any code when loaded.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  (safetensors asks numpy for bfloat16, which this import registers)
import numpy as np
import safetensors

from massive_jax import files
from massive_jax.weights import hub, layout, mxfp4, source

if TYPE_CHECKING:
    from massive_jax.inputs.images import ImageProcessor
    from massive_jax.inputs.tokenizer import Tokenizer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# safetensors' names → numpy's; a dtype that is not here keeps its own name and is refused when read.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn",
}


class HuggingFaceSource(source.Source):
    """Reads a Hugging Face checkpoint directory; see `Source`.

    `config` is `config.json`, parsed. Tensors are named as in the safetensors files.

    Args:
      directory: holds `config.json` and `model.safetensors`, or `model.safetensors.index.json` and its shards.

    Raises:
      ValueError: something is missing (every missing shard is named), damaged or contradictory; or the
        weights are pickles.
    """

    format = "huggingface"

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = files.existing_path(directory, "Checkpoint directory", hub.PATTERNS)
        self.location = str(self._directory)
        if not self._directory.is_dir():
            raise ValueError(
                f"{self.location} is a file; expected a directory with config.json and {SINGLE}."
                " Name the directory that holds it."
            )
        if odd := sorted(path.name for path in self._directory.iterdir() if _is_odd(path)):
            raise ValueError(f"{self.location}: {files.listed(odd)} are pipes or devices; replace them by files.")
        self.config = files.read_json_object(self._directory / "config.json")
        self._handles: dict[str, Any] = {}
        self._shard_of: dict[str, str] = {}
        shards, index = self._shards()
        holders = defaultdict(list)
        for shard in shards:
            self._handles[shard] = open_safetensors(self._directory / shard)
            for name in self._handles[shard].keys():  # noqa: SIM118  (not a mapping)
                holders[name].append(shard)
        self._shard_of = _settle(self.location, holders, index)
        self._stored = self._describe()
        self.tensors = MappingProxyType(mxfp4.unpacked(self._stored))
        self.files = [self._directory / name for name in ("config.json", *shards)]
        self._start_of: dict[str, int] = {}
        for shard in shards:
            self._start_of |= tensor_starts(self._directory / shard)

    def read(self, name: str, memory: layout.Memory | None = None) -> np.ndarray:
        """Reads one tensor, in its stored dtype. See `Source.read`."""
        if name in self.tensors and name not in self._shard_of:
            return mxfp4.dequantise(*(self.read(part) for part in mxfp4.parts(name)))
        if name not in self._shard_of:
            raise source.no_such_tensor(name, self)
        if not self._handles:
            raise ValueError(f"{self.location}: tensor {name} cannot be read: the source was closed.")
        info, shard = self._stored[name], self._shard_of[name]
        if info.dtype not in DTYPES.values():
            raise ValueError(
                f"{self.location}: tensor {name} ({info.dtype}) in {shard} cannot be read: numpy has no such dtype."
                " Convert it to float32, float16 or bfloat16."
            )
        # Not through a map of the file, whose pages would pile up in this process's memory, at half the speed.
        found = (memory or layout.Memory()).array(info.shape, info.dtype)
        left = found.reshape(-1).view(np.uint8).data
        try:
            with (self._directory / shard).open("rb", buffering=0) as file:
                file.seek(self._start_of[name])
                while left and (length := file.readinto(left)):
                    left = left[length:]
        except OSError as error:
            raise ValueError(f"{self.location}: tensor {name} in {shard} cannot be read: {error}.") from None
        if left:
            raise ValueError(f"{self.location}: {shard} ends within tensor {name}: it was cut since it was opened.")
        return found

    def view(self, name: str) -> np.ndarray | None:
        """Gives one tensor through a map of its file; None for one in several parts. See `Source.view`."""
        info, shard = self._stored.get(name), self._shard_of.get(name, "")
        if info is None or info.dtype not in DTYPES.values() or 0 in info.shape:
            return None
        try:
            bits = np.memmap(self._directory / shard, np.uint8, "r", self._start_of[name], _nbytes(info))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.location}: tensor {name} in {shard} cannot be read: {error}.") from None
        return bits.view(info.dtype).reshape(info.shape)

    def tokenizer(self) -> Tokenizer | None:
        """Gives the tokenizer beside the weights; None where there is none."""
        from massive_jax.inputs.tokenizer import Tokenizer, has_tokenizer

        return Tokenizer.from_directory(self._directory) if has_tokenizer(self._directory) else None

    def processor(self) -> ImageProcessor | None:
        """Gives the preprocessor config beside the weights; None where there is none."""
        from massive_jax.inputs.images import ImageProcessor

        return ImageProcessor.from_directory(self._directory)

    def close(self) -> None:
        """Lets go of the mapped files."""
        self._handles = {}

    def _shards(self) -> tuple[list[str], Mapping[str, str] | None]:
        """The files to open, and the index's tensor → file where there is an index."""
        if (self._directory / SINGLE).is_file():  # first, as in transformers
            return [SINGLE], None
        if not (self._directory / INDEX).is_file():
            raise self._no_weights()
        where = self._directory / INDEX
        index = files.read_json_object(where).get("weight_map")
        if not isinstance(index, dict) or not index or not all(isinstance(v, str) for v in index.values()):
            raise ValueError(f"{where} has no weight_map of tensor name to file name. Download it again.")
        shards = sorted(set(index.values()))
        if outside := [shard for shard in shards if PurePath(shard).name != shard or shard in ("", ".", "..")]:
            raise ValueError(
                f"{where} names files outside its own directory: {files.listed(outside)}. Shards are plain"
                " file names; do not trust this checkpoint."
            )
        if missing := [shard for shard in shards if not (self._directory / shard).is_file()]:
            raise ValueError(
                f"{self.location} lacks {len(missing)} of the {len(shards)} shards that {INDEX} names:"
                f" {files.listed(missing, 1000)}. Download them into the directory."
            )
        return shards, index

    def _no_weights(self) -> ValueError:
        expected = f"expected {SINGLE}, or {INDEX} and its shards"
        pickles = sorted({path.name for pattern in _PICKLES for path in self._directory.glob(pattern)})
        if pickles:
            return ValueError(
                f"{self.location} holds only PyTorch pickles ({files.listed(pickles)}); {expected}. Pickles are"
                " never loaded: loading one can run any code. Convert it where you trust it, with transformers:"
                " AutoModel.from_pretrained(DIR).save_pretrained(NEW_DIR), or ask for a revision with safetensors."
            )
        others = sorted(path.name for path in self._directory.glob("*.safetensors"))
        found = f" It has {files.listed(others)}: rename or merge them if they are the whole model." if others else ""
        return ValueError(
            f"{self.location} has no weights: {expected}.{found} A model published only as PyTorch pickles has to"
            " be converted first (transformers' save_pretrained writes safetensors)."
        )

    def _describe(self) -> dict[str, source.TensorInfo]:
        found = {}
        for name, shard in self._shard_of.items():
            view = self._handles[shard].get_slice(name)
            dtype = str(view.get_dtype())
            found[name] = source.TensorInfo(tuple(view.get_shape()), DTYPES.get(dtype, dtype))
        return found


def _nbytes(info: source.TensorInfo) -> int:
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize


def _is_odd(path: Path) -> bool:
    """Whether it has the name of a model's file and is a pipe or a device, which could be waited for without end."""
    named = any(fnmatch.fnmatch(path.name, pattern) for pattern in hub.PATTERNS)
    return named and path.exists() and not path.is_file() and not path.is_dir()


def open_safetensors(path: Path) -> Any:
    """Opens a safetensors file; ValueError where its header or its length is not one's."""
    try:
        return safetensors.safe_open(path, framework="numpy")
    except Exception as error:  # SafetensorError, OSError: a damaged header, a cut file, no permission
        size = path.stat().st_size if path.exists() else 0
        raise ValueError(
            f"{path} ({size} bytes) is not a whole safetensors file: {error}. Download it again"
            " (a small text file here is often a Git LFS pointer)."
        ) from None


def tensor_starts(path: Path) -> dict[str, int]:
    """Tells where in a file, which `open_safetensors` took, its tensors begin: after the header's length and it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _settle(location: str, holders: Mapping[str, list[str]], index: Mapping[str, str] | None) -> dict[str, str]:
    """Tensor → the one shard that holds it; ValueError where shards or index contradict each other.

    A tensor in a shard that the index forgets is kept: whether the model wants it is the loader's question.
    """
    problems = []
    if doubled := [f"{name} ({', '.join(where)})" for name, where in sorted(holders.items()) if len(where) > 1]:
        problems.append(f"tensors in more than one shard: {files.listed(doubled, 100)}")
    absent = [
        f"{name} ({shard})" for name, shard in sorted((index or {}).items()) if shard not in holders.get(name, ())
    ]
    if absent:
        problems.append(f"tensors that {INDEX} places in a shard that lacks them: {files.listed(absent, 100)}")
    if problems:
        raise ValueError(f"{location} contradicts itself: {'; '.join(problems)}. Download index and shards together.")
    return {name: where[0] for name, where in holders.items()}
