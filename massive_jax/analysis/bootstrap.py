"""How sure an average is: over windows by a percentile bootstrap (Efron, 1979), over a few trainings by Student's t.

Axis letters: W windows or images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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


def mean_interval(values: Sequence[float] | np.ndarray, *, level: float = LEVEL, ratios: bool = False) -> Interval:
    """Gives the mean of a few independent numbers with Student's t interval; without one where there is one number.

    Args:
      values: at least one, as of trainings from several seeds.
      level: of the interval, from 0 to 1.
      ratios: averages logarithms, of positive numbers: the geometric mean.

    Raises:
      ValueError: no numbers; ratios that are not positive.

    Examples:
      >>> from massive_jax.analysis import mean_interval
      >>> found = mean_interval([1.0, 2.0, 3.0])
      >>> round(found.low, 3), found.value, round(found.high, 3)
      (-0.484, 2.0, 4.484)
    """
    from scipy.special import stdtrit

    level, x = number("level", level, 0, 1), np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"values have shape {x.shape}; give a list of one number at least.")
    if ratios and not (x > 0).all():
        raise ValueError("ratios must be positive; leave `ratios` out for other numbers.")
    x = np.log(x) if ratios else x
    ends = [x.mean()]
    if len(x) > 1:
        error = float(stdtrit(len(x) - 1, 0.5 + level / 2)) * x.std(ddof=1) / np.sqrt(len(x))
        ends += [ends[0] - error, ends[0] + error]
    return Interval(*(float(end) for end in (np.exp(ends) if ratios else ends)))
