"""Register tokens' features, block by block: their means over images, what is massive in them, and fixing them there.

Axis letters: see `massive_jax.probe.sites`; R registers.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from massive_jax.analysis.massive import DEFINITION, Location, Thresholds, rank_locations
from massive_jax.files import listed
from massive_jax.probe import Edit
from massive_jax.weights.npz import read_arrays

_KEPT = 16  # values looked at in a block


@dataclasses.dataclass(frozen=True, eq=False)
class RegisterMeans:
    """Holds register features at the input of every block, averaged over images: what Fix-Reg-Mean sets.

    Attributes:
      values: float32 [L, R, D]; `values[l]` is of layer l as everywhere else: the embedding for 0, else the output of
        block l, which is the input of block l + 1. (Counted from 0, as in the released code, that is block l's input.)
    """

    values: np.ndarray

    @classmethod
    def read(cls, path: str | os.PathLike[str], shape: tuple[int, int, int]) -> RegisterMeans:
        """Reads the array of `shape` [L, R, D] in an .npz file of register means, one or several models' (as released).

        Raises:
          ValueError: not an .npz file, no array of that shape (another model's means) or several, values that are not
            finite numbers.
        """
        arrays = read_arrays(path, "Register means")
        fitting = [name for name, array in arrays.items() if array.shape == shape]
        if len(fitting) != 1:
            held = listed(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise ValueError(
                f"{path}: register means [blocks, registers, width] of this model have shape {list(shape)}; the file "
                f"has {held or 'nothing'}: {'they are of another model' if not fitting else 'which one is not clear'}."
            )
        values = arrays[fitting[0]]
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise ValueError(f"{path}: {fitting[0]} is {values.dtype} or has values that are not finite.")
        return cls(values.astype(np.float32))

    def edits(self, first: int) -> list[Edit]:
        """Makes the edits of Fix-Reg-Mean: every register is set to its mean at the input of every block.

        Args:
          first: position of the first register: after the class token.
        """
        return [
            Edit("block_out" if layer else "embed", layer=layer or None, position=first + register, value=value)
            for layer, registers in enumerate(self.values)
            for register, value in enumerate(registers)
        ]

    def locations(self, layer: int, thresholds: Thresholds = DEFINITION) -> list[Location]:
        """Finds the largest activations at `layer` (0 to L - 1), largest first; registers are counted from 1.

        The ratio is to the median magnitude of this layer's registers.
        """
        state = self.values[layer]
        largest = np.argsort(-np.abs(state), axis=None, kind="stable")[None, :_KEPT]
        register, dim = np.unravel_index(largest, state.shape)
        median = np.median(np.abs(state))[None]
        return rank_locations(state[register, dim], register + 1, dim, median, thresholds=thresholds)
