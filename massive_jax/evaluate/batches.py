"""Running many windows a few at a time. Axis letters: see `massive_jax.probe.sites`; W windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from massive_jax.probe import Edit

TOKENS_A_BATCH = 2048  # windows are run together up to this many tokens

Progress = Callable[[int], Any]
"""Called with the number of tokens done."""


def batches(tokens: np.ndarray, progress: Progress | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Splits tokens [W, T] into (rows, tokens of those rows), calling `progress` after each has been used."""
    rows = max(1, TOKENS_A_BATCH // tokens.shape[1])
    for start in range(0, len(tokens), rows):
        which = slice(start, min(start + rows, len(tokens)))
        yield which, tokens[which]
        if progress is not None:
            progress(tokens[which].size)


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
