"""Running many windows a few at a time. Axis letters: see `massive_jax.probe.sites`; W windows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from massive_jax.arguments import is_index, shown
from massive_jax.model import Model
from massive_jax.probe import Edit, ambiguous, as_edits

TOKENS_A_BATCH = 2048  # windows are run together up to this many tokens

Progress = Callable[[int], Any]
"""Called with the number of tokens done."""


def input_length(model: Model, inputs: np.ndarray) -> int:
    """Gives T, the number of tokens of each of `inputs`: tokens [W, T] or images [W, height, width, 3]."""
    return model.config.input_sizes(inputs.shape)["T"]


def checked_inputs(model: Model, inputs: Any, mask: Any = None) -> np.ndarray:
    """Gives `inputs`, tokens [W, T] or images [W, height, width, 3], as an array.

    Raises:
      ValueError: `model` is no `Model`; inputs or a mask that it cannot take (see `Model.__call__`).
    """
    return np.asarray(Model.of(model).check_inputs(inputs, mask)[0])


def rows_a_batch(count: int, length: int, tokens: int | None = None) -> int:
    """Says how many of `count` inputs of `length` tokens are run together: batches as even as their number allows."""
    most = max(1, (tokens or TOKENS_A_BATCH) // length)
    return math.ceil(count / math.ceil(count / most)) if count else most


def batches(
    inputs: np.ndarray, progress: Progress | None = None, length: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Splits inputs into (rows, inputs of those rows), calling `progress` after each has been used.

    The batches are as even as their number allows: a program is compiled for each size.

    Args:
      inputs: tokens [W, T], or images [W, height, width, 3].
      progress: called with the number of tokens.
      length: tokens of one of the inputs (see `input_length`); None for T.
    """
    length = length or inputs.shape[1]
    rows = rows_a_batch(len(inputs), length)
    for start in range(0, len(inputs), rows):
        which = slice(start, min(start + rows, len(inputs)))
        yield which, inputs[which]
        if progress is not None:
            progress(len(inputs[which]) * length)


def not_finite(model: Model, where: str) -> ValueError:
    """Makes the error that says where a model's activations are not finite numbers."""
    return ValueError(
        f"{model.name}: the output of {where} has values that are not finite in {model.config.dtype}: the weights are "
        "damaged, or a number is too large for it (float16 ends at 65,504)."
    )


def check_edits_of(edits: Any, count: int) -> tuple[Edit, ...]:
    """Gives `edits`, None, one or several, as a tuple.

    Raises:
      ValueError: something else, compiled ones among it: those are for one batch; positions given one an input that
        are not as many as the `count` inputs.
    """
    found = as_edits(edits)
    for edit in found:
        if problem := ambiguous(edit.position, count):
            raise ValueError(f"an edit of {shown(edit.site)}: {problem}")
        if _one_an_input(edit) and len(edit.position) != count:  # type: ignore[arg-type]
            raise ValueError(
                f"an edit of {shown(edit.site)} has {len(edit.position)} positions, one an input: "  # type: ignore[arg-type]
                f"there are {count}."
            )
    return found


def edits_for(edits: Edit | Sequence[Edit] | None, rows: slice) -> list[Edit]:
    """Gives `edits` for some of the windows: positions given one a window are cut to those."""

    def cut(position: Any) -> Any:
        # As a set, a list is that of the positions of every window, however many there are in a batch.
        return set(position) if isinstance(position, list | tuple) else position[rows]

    return [
        dataclasses.replace(edit, position=cut(edit.position)) if _one_an_input(edit) or _listed(edit) else edit
        for edit in as_edits(edits)
    ]


def _one_an_input(edit: Edit) -> bool:
    return isinstance(edit.position, np.ndarray | jax.Array) and edit.position.ndim > 0


def _listed(edit: Edit) -> bool:
    position = edit.position
    return isinstance(position, list | tuple) and all(map(is_index, position)) and np.ndim(edit.value) <= 1
