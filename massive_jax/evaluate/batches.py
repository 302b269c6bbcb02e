"""Running many windows a few at a time. Axis letters: see `massive_jax.probe.sites`; W windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from massive_jax.model import Model
from massive_jax.probe import Edit

TOKENS_A_BATCH = 2048  # windows are run together up to this many tokens

Progress = Callable[[int], Any]
"""Called with the number of tokens done."""


def input_length(model: Model, inputs: np.ndarray) -> int:
    """T: the tokens of one of `inputs`, tokens [W, T] or images [W, height, width, 3]."""
    return model.config.input_sizes(inputs.shape)["T"]


def batches(
    inputs: np.ndarray, progress: Progress | None = None, length: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Splits inputs into (rows, inputs of those rows), calling `progress` after each has been used.

    Args:
      inputs: tokens [W, T], or images [W, height, width, 3].
      progress: called with the number of tokens.
      length: tokens of one of the inputs (see `input_length`); None for T.
    """
    length = length or inputs.shape[1]
    rows = max(1, TOKENS_A_BATCH // length)
    for start in range(0, len(inputs), rows):
        which = slice(start, min(start + rows, len(inputs)))
        yield which, inputs[which]
        if progress is not None:
            progress(len(inputs[which]) * length)


def edits_for(edits: Edit | Sequence[Edit] | None, rows: slice) -> list[Edit]:
    """`edits` for some of the windows: positions given one a window are cut to those."""
    if edits is None:
        return []
    return [
        dataclasses.replace(edit, position=edit.position[rows])
        if isinstance(edit.position, np.ndarray | list | tuple)
        else edit
        for edit in ((edits,) if isinstance(edits, Edit) else edits)
    ]
