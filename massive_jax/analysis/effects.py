"""Which of several edited places does what all of them do together; which of two measures orders them alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from massive_jax.arguments import number

NEARLY_ALL, NOTICEABLE = 0.8, 0.01


def shares_alone(original: float, together: float, alone: Sequence[float]) -> list[float]:
    """Says what part of an edit's effect each place has alone: 1 for as much as all together, 0 for none.

    Args:
      original: what the unedited model scores; of a text the mean negative log-likelihood.
      together: under the edit of all places.
      alone: under that of each place.

    Returns:
      A share for each; NaN where the edit of all changes nothing, or a score is not finite.
    """
    whole = together - original
    return [(one - original) / whole if whole and math.isfinite(whole) else math.nan for one in alone]


def carrier(
    original: float, together: float, alone: Sequence[float], *, share: float = NEARLY_ALL, least: float = NOTICEABLE
) -> int | None:
    """Finds the one place that alone has nearly all of the effect that an edit of several has: four fifths of it.

    Arguments are those of `shares_alone`, and:
      share: what part counts as nearly all.
      least: the smallest effect, in the unit of the scores, that is looked at.

    Returns:
      Its index in `alone`; None where there is no effect, or none or more than one have it.

    Examples:
      >>> from massive_jax.analysis import carrier
      >>> carrier(3.02, 15.8, [15.4, 3.05])  # nats a token
      0
    """
    number("share", share, 0)
    if not abs(together - original) >= least:
        return None
    found = [i for i, part in enumerate(shares_alone(original, together, alone)) if part >= share]
    return found[0] if len(found) == 1 else None


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Gives Spearman's rank correlation of two arrays of a shape, ties at their mean rank; None where one is constant.

    Examples:
      >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
      0.5
    """
    from scipy.stats import rankdata

    a, b = (rankdata(values) - (values.size + 1) / 2 for values in (np.asarray(first), np.asarray(second)))
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else None
