"""A linear classifier published apart from its backbone, such as DINOv2's. V classes, W width of the feature."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import safetensors.numpy

from massive_jax.files import existing_file, listed
from massive_jax.weights.npz import read_arrays
from massive_jax.weights.torch_zip import read_torch_zip


@dataclasses.dataclass(frozen=True, eq=False)
class LinearHead:
    """Holds a classifier: logits = weight · feature + bias.

    Attributes:
      weight: float32 [V, W]. DINOv2's reads the class token and the mean of the patches, one after the other: W = 2·D.
      bias: float32 [V].
    """

    weight: np.ndarray
    bias: np.ndarray


def read_linear_head(path: str | os.PathLike[str]) -> LinearHead:
    """Reads the head in a .safetensors, .npz or .pth file with tensors `weight` [V, W] and `bias` [V].

    DINOv2's are published as `dinov2_vitX14_reg4_linear_head.pth`; nothing in a .pth file is run (see `torch_zip`).

    Raises:
      ValueError: not such a file, or other tensors in it.
    """
    file = existing_file(path, "Linear head")
    if file.suffix.lower() in (".pth", ".pt", ".bin"):
        tensors = read_torch_zip(file)
    elif file.suffix.lower() == ".safetensors":
        try:
            tensors = safetensors.numpy.load_file(file)
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{file} is no whole safetensors file: {error}.") from None
    else:
        tensors = read_arrays(file, "Linear head")
    if tensors.keys() == {"weight", "bias"}:
        weight, bias = (tensors[name].astype(np.float32) for name in ("weight", "bias"))
        if weight.ndim == 2 and bias.shape == weight.shape[:1]:
            return LinearHead(weight, bias)
    raise ValueError(
        f"{file}: expected tensors weight [classes, width] and bias [classes], found "
        f"{listed(f'{name} {list(array.shape)}' for name, array in tensors.items()) or 'none'}."
    )
