"""Sets of tokens of a sequence, massive ones or random ones in their place, and what to hold them against.

Axis letters: see `massive_jax.probe.sites`; W windows or images, m tokens of a set (-1 where there are fewer).
"""

from __future__ import annotations

import numpy as np


def padded_sets(member: np.ndarray, size: int) -> np.ndarray:
    """Gives the positions of the members, ascending, -1 after them: bool [W, T] -> int32 [W, size].

    Examples:
      >>> import numpy as np
      >>> from massive_jax.analysis import padded_sets
      >>> padded_sets(np.array([[True, False, True], [False, True, False]]), 2).tolist()
      [[0, 2], [1, -1]]
    """
    order = np.argsort(~member, axis=1, kind="stable")[:, :size]
    found = np.where(np.take_along_axis(member, order, axis=1), order, -1).astype(np.int32)
    return np.pad(found, ((0, 0), (0, size - found.shape[1])), constant_values=-1)


def random_sets(member: np.ndarray, draws: int, rng: np.random.Generator, *, causal: bool) -> np.ndarray:
    """Draws sets as large as that of the members, of other tokens: bool [T] -> int32 [draws, members].

    Of a causal sequence they are from its first half, so that at least half of the queries see them; from all of it
    where that has too few. No set, -1, where all of it has.
    """
    T, count = len(member), int(member.sum())
    others = np.flatnonzero(~member)
    early = others[others < T // 2] if causal else others
    pool = early if len(early) >= count else others
    if len(pool) < count:
        return np.full((draws, count), -1, np.int32)
    return pool[np.argsort(rng.random((draws, len(pool))), axis=1)[:, :count]].astype(np.int32)


def uniform_share(member: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Gives the share of attention on the members where every query attends to all that it sees alike.

    Args:
      member: bool [W, T].
      visible: bool [T, T], which query sees which token.

    Returns:
      [W], the mean over queries.

    Examples:
      >>> import numpy as np
      >>> from massive_jax.analysis import uniform_share
      >>> first = np.arange(9)[None] == 0
      >>> uniform_share(first, np.tri(9, dtype=bool)).round(2).tolist()
      [0.31]
    """
    seen = visible.astype(np.float64)
    return (member @ (seen / seen.sum(axis=1, keepdims=True)).T).mean(axis=1)


def mean_cosine(total: np.ndarray, count: int) -> np.ndarray:
    """Gives the mean cosine of two of `count` vectors, from the sum of their unit vectors: [..., F] -> [...].

    NaN where there is no pair.
    """
    if count < 2:
        return np.full(total.shape[:-1], np.nan)
    total = np.asarray(total, np.float64)
    return (np.square(total).sum(axis=-1) - count) / (count * (count - 1))
