"""Exact quantiles of more numbers than memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Of the norms, in a store's index."""
_HALF = 1 << 16


def quantiles_of(pieces: Callable[[], Iterable[np.ndarray]], quantiles: Sequence[float] = QUANTILES) -> list[float]:
    """Computes quantiles as `np.quantile(…, method="inverted_cdf")` does: each is one of the numbers.

    The bits of floats that are not negative are in the order of the floats: numbers are counted by the upper half of
    them, and those that share it with a quantile by the lower half.

    Args:
      pieces: gives arrays of float32, not negative, as often as it is called: twice.
      quantiles: from 0 to 1.

    Returns:
      One number a quantile; none where there are no numbers.
    """
    counts = np.zeros(_HALF, np.int64)
    for piece in pieces():
        counts += np.bincount(_bits(piece) >> 16, minlength=_HALF)
    total = int(counts.sum())
    if not total:
        return []
    ranks = [max(1, int(np.ceil(q * total))) for q in quantiles]
    uppers = np.searchsorted(np.cumsum(counts), ranks)
    lower = {int(upper): np.zeros(_HALF, np.int64) for upper in uppers}
    for piece in pieces():
        bits = _bits(piece)
        for upper, its in lower.items():
            its += np.bincount(bits[bits >> 16 == upper] & (_HALF - 1), minlength=_HALF)
    found = []
    for rank, upper in zip(ranks, uppers.tolist(), strict=True):
        rest = rank - int(counts[:upper].sum())
        bits = (upper << 16) | int(np.searchsorted(np.cumsum(lower[upper]), rest))
        found.append(float(np.uint32(bits).view(np.float32)))
    return found


def _bits(piece: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(piece, np.float32).view(np.uint32).astype(np.int64)
