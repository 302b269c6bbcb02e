"""What every weight format looks like to the loader: names, shapes, one tensor at a time.

A `Source` is a checkpoint opened for reading. It knows the names and shapes of its tensors without reading
them, and reads one at a time, so a loader that streams needs memory for one tensor, not for the model.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from massive_jax.inputs.images import ImageProcessor
    from massive_jax.inputs.tokenizer import Tokenizer
    from massive_jax.weights.layout import Memory


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Describes a stored tensor, unread.

    Attributes:
      shape: row-major, as numpy and Hugging Face have it: a linear layer's weight is [out, in].
      dtype: how it is stored: a numpy name ("float32", "bfloat16", …), or a GGUF quantisation ("Q4_1").
    """

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Origin:
    """Says where a model's parameters come from, in words.

    Attributes:
      place: a file, a directory, a model of the hub; or how they were made.
      weights: what they were stored as: a GGUF quantisation ("Q4_1") or mixture of some ("Q4_K_M"), or a dtype; None
        where nothing was stored.
    """

    place: str
    weights: str | None = None


class Source(abc.ABC):
    """Opens a checkpoint for reading; use it as a context manager, or call `close`.

    Attributes:
      location: where it was opened from, for messages.
      format: "huggingface" or "gguf"; it decides which table of weight names applies.
      config: the file's own description of the model: `config.json`, or the GGUF metadata.
      tensors: every tensor of the checkpoint by its name in the file.
      files: the files that hold them, for a record of where a model came from.
    """

    location: str
    format: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: Sequence[Path]

    @abc.abstractmethod
    def read(self, name: str, memory: Memory | None = None) -> np.ndarray:
        """Reads one tensor, of the shape in `tensors`.

        It keeps its stored dtype (bfloat16 as `ml_dtypes.bfloat16`), but a GGUF quantised one comes back as
        float32. The array is the caller's own: it stays valid after `close`.

        Args:
          name: of the tensor.
          memory: where it may be laid out, over the tensor that was read there before; new memory takes longer.

        Raises:
          ValueError: no such tensor, or its data cannot be read.
        """

    def view(self, name: str) -> np.ndarray | None:
        """Gives one tensor as it lies in its file, of which only what is looked at is read; None where it has no such.

        Args:
          name: of the tensor.

        Raises:
          ValueError: its file has ended before it.
        """
        return None

    @abc.abstractmethod
    def tokenizer(self) -> Tokenizer | None:
        """Gives the checkpoint's tokenizer; None where it has none (a vision model, say).

        Raises:
          ValueError: it has one that cannot be used.
        """

    def weight_type(self) -> str | None:
        """Gives the type that most of the weights are stored as (`TensorInfo.dtype`); None where there are none."""
        counts: collections.Counter[str] = collections.Counter()
        for info in self.tensors.values():
            counts[info.dtype] += math.prod(info.shape)
        return max(counts, key=counts.__getitem__, default=None)

    def processor(self) -> ImageProcessor | None:
        """Says how the checkpoint wants its images; None where it does not say (a language model, say).

        Raises:
          ValueError: it says so in a way that is not implemented.
        """
        return None

    def close(self) -> None:
        """Lets go of the files; `read` is an error afterwards. Calling it twice is harmless."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def no_such_tensor(name: object, source: Source) -> ValueError:
    """Gives the error for a name that is not in `source.tensors`, with the nearest names that are."""
    near = difflib.get_close_matches(str(name), source.tensors, n=3)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return ValueError(f"{source.location} has no tensor named {name!r} ({len(source.tensors)} tensors{hint}).")
