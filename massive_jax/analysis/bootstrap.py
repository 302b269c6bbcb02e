"""How sure an average over windows is: percentile bootstrap (Efron, 1979). Axis letters: W windows or images."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from massive_jax.arguments import number, seed_number, whole_number

DRAWS, LEVEL = 1000, 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """Holds a number and its interval; `low` and `high` are None where there is none, as of one window only."""

    value: float
    low: float | None = None
    high: float | None = None


def resampled_means(
    sums: np.ndarray, counts: np.ndarray | None = None, *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Averages over W windows drawn with replacement, again and again: float [..., W] -> float64 [..., draws].

    Equal seeds draw equal windows, so the difference of two such arrays over the same windows is paired.

    Args:
      sums: what is averaged, summed over each window.
      counts: [W], of how many each sum is; None for one each.
      draws: how often.
      seed: of the draws.

    Raises:
      ValueError: no windows; counts that are not one a window; a number of draws below 1; a seed out of range.
    """
    sums = np.asarray(sums, np.float64)
    W = sums.shape[-1] if sums.ndim else 0
    counts = np.ones(W) if counts is None else np.asarray(counts, np.float64)
    if not W or counts.shape != (W,):
        raise ValueError(f"sums {list(sums.shape)} and counts {list(counts.shape)}: give a sum and a count a window.")
    drawn = np.random.default_rng(seed_number(seed)).integers(W, size=(whole_number("draws", draws, 1), W))
    return sums[..., drawn].sum(axis=-1) / counts[drawn].sum(axis=-1)


def percentiles(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Gives the ends of the interval that holds the middle `level` of `samples`, from 0 to 1; NaN where one is NaN.

    Examples:
      >>> from massive_jax.analysis import percentiles
      >>> np.round(percentiles(np.arange(101.0)), 6).tolist()
      [2.5, 97.5]
    """
    samples, tail = np.asarray(samples, np.float64), 50 * (1 - number("level", level, 0, 1))
    # Between an infinite number and another one there is none in between.
    method: Literal["linear", "inverted_cdf"] = "linear" if np.isfinite(samples).all() else "inverted_cdf"
    low, high = np.percentile(samples, [tail, 100 - tail], method=method)
    return float(low), float(high)
