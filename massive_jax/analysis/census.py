"""What a census counts, on the host: kinds of tokens, sums over windows, places, births, and what to hold them against.

Axis letters: see `massive_jax.probe.sites`; W windows, R rows followed, k values kept of each token.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import threadpoolctl

from massive_jax.analysis.massive import FIRST_DELIMITER

SINK = 0.3  # ε of the sink rate (arXiv 2410.10781)
CLASSES = ("start", FIRST_DELIMITER, "delimiter", "weak_word", "other", "class_token", "register", "patch")
"""Kinds of tokens; the last three are an image's."""
WEAK_WORDS = frozenset({"and", "from", "of", "2", "the"})
"""Words of little meaning: those that section 2.2 of the paper names, and "the"."""


def class_of(text: str) -> str:
    r"""Says what kind of token, not the first of a text or the first delimiter, has this text.

    Examples:
      >>> from massive_jax.analysis import class_of
      >>> [class_of(text) for text in (" the", ".", "\n\n", " summer")]
      ['weak_word', 'delimiter', 'delimiter', 'other']
    """
    word = text.strip().lower()
    if word in WEAK_WORDS:
        return "weak_word"
    return "delimiter" if all(unicodedata.category(c)[0] in "PZC" for c in word) else "other"


def uniform_sink_mass(length: int, *, causal: bool, window: int | None = None) -> float:
    """Gives the mean over queries of the attention on token 0 where every query attends to all it sees alike.

    Args:
      length: T.
      causal: whether a query sees the tokens up to it, or all.
      window: how many of those, at most.

    Examples:
      >>> from massive_jax.analysis import uniform_sink_mass
      >>> round(uniform_sink_mass(9, causal=True), 2)
      0.31
    """
    if not causal:
        return 1.0 / length
    seen = np.arange(1, length + 1)
    return float(np.mean(np.where(seen <= (window or length), 1.0 / seen, 0.0)))


def matrix_entropy(gram: np.ndarray) -> np.ndarray:
    """Computes how evenly the singular values σ of matrices x are spread: −Σ p log p / log n with p = σ² / Σ σ².

    From 0, one direction, to 1, all alike (arXiv 2510.06477).

    Args:
      gram: float [..., n, n]: x xᵀ or xᵀ x, whichever is smaller.

    Returns:
      float64 [...].

    Examples:
      >>> from massive_jax.analysis import matrix_entropy
      >>> matrix_entropy(np.stack([np.eye(4), np.ones((4, 4))])).round(3).tolist()
      [1.0, 0.0]
    """
    with threadpoolctl.threadpool_limits(1, "blas"):  # matrices are small: two threads take twice the time of one
        eigenvalues = np.maximum(np.linalg.eigvalsh(np.asarray(gram, np.float64)), 0.0)
    p = eigenvalues / eigenvalues.sum(axis=-1, keepdims=True)
    terms = np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0)
    return np.abs(terms.sum(axis=-1)) / np.log(gram.shape[-1])


@dataclasses.dataclass
class Sums:
    """Adds up what windows give, of any shape, so that a mean and a standard deviation come of it.

    Attributes:
      count: how many were added: float64, of the shape of what is added, or one number.
      total: their sum, float64.
      squares: the sum of their squares, float64.
    """

    count: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, axis: int = 1, where: np.ndarray | None = None) -> Sums:
        """Adds up `values` over an axis, those that are no NaN, and only `where`, which broadcasts."""
        values = np.asarray(values, np.float64)
        counted = ~np.isnan(values) if where is None else ~np.isnan(values) & where
        values = np.where(counted, values, 0.0)
        return cls(counted.sum(axis=axis, dtype=np.float64), values.sum(axis=axis), np.square(values).sum(axis=axis))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> np.ndarray:
        """Gives the mean; NaN of nothing."""
        return self.total / np.where(self.count > 0, self.count, np.nan)

    @property
    def std(self) -> np.ndarray:
        """Gives the population standard deviation; NaN of nothing."""
        count = np.where(self.count > 0, self.count, np.nan)
        return np.sqrt(np.maximum(self.squares / count - np.square(self.total / count), 0.0))

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Gives the 95 % interval of the mean, from its standard error; NaN of fewer than two."""
        error = 1.96 * self.std / np.sqrt(np.where(self.count > 1, self.count - 1, np.nan))
        return self.mean - error, self.mean + error


@dataclasses.dataclass
class Places:
    """Counts large activations by layer, kind of token, token and dim.

    Attributes:
      keys: int64 [n], sorted: what `sizes` makes one number of; see `parts`.
      sums: float64 [n, 4]: how often, the sum of the values, of their squares, of their ratios to the median magnitude.
      sizes: how many layers, kinds of tokens, tokens and dims there are.
    """

    keys: np.ndarray
    sums: np.ndarray
    sizes: tuple[int, int, int, int]

    @classmethod
    def none(cls, sizes: tuple[int, int, int, int]) -> Places:
        """Holds nothing yet."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 4)), sizes)

    def add(self, parts: Sequence[np.ndarray], values: np.ndarray, ratios: np.ndarray) -> Places:
        """Gives these and others: (layers, kinds, tokens, dims), values and ratios, each [m]."""
        values = np.asarray(values, np.float64)
        new = np.stack([np.ones_like(values), values, np.square(values), np.asarray(ratios, np.float64)], axis=1)
        keys, where = np.unique(
            np.concatenate([self.keys, np.ravel_multi_index(tuple(parts), self.sizes)]), return_inverse=True
        )
        sums = np.zeros((len(keys), 4))
        np.add.at(sums, where, np.concatenate([self.sums, new]))
        return Places(keys, sums, self.sizes)

    def parts(self) -> tuple[np.ndarray, ...]:
        """Gives layers (from 0), kinds, tokens and dims, each int [n]."""
        return tuple(np.unravel_index(self.keys, self.sizes))

    @property
    def means(self) -> np.ndarray:
        """Gives the mean of the values, [n]."""
        return self.sums[:, 1] / self.sums[:, 0]

    @property
    def stds(self) -> np.ndarray:
        """Gives the population standard deviation of the values, [n]."""
        return np.sqrt(np.maximum(self.sums[:, 2] / self.sums[:, 0] - np.square(self.means), 0.0))

    @property
    def ratios(self) -> np.ndarray:
        """Gives the mean ratio of the magnitudes to the median, [n]."""
        return self.sums[:, 3] / self.sums[:, 0]


@dataclasses.dataclass(frozen=True)
class Step:
    """Describes a block at which an activation changes by more than half of its largest mean magnitude.

    Attributes:
      layer: 1-based.
      change: of the mean value over the block.
      attention: what attention adds to it.
      mlp: what the MLP adds.
    """

    layer: int
    change: float
    attention: float
    mlp: float

    @property
    def up(self) -> bool:
        """Tells whether the magnitude grows: most of it was not there before."""
        return abs(self.after) > abs(self.after - self.change)

    after: float = 0.0


def steps(after: np.ndarray, attention: np.ndarray, mlp: np.ndarray, fraction: float = 0.5) -> list[Step]:
    """Finds the blocks at which a dim steps up or down (arXiv 2603.05498).

    Args:
      after: float [L], its mean value after each block.
      attention: float [L], what attention adds in each.
      mlp: float [L], what the MLP adds.
      fraction: of the largest mean magnitude that a step is more than.

    Examples:
      >>> from massive_jax.analysis import steps
      >>> found = steps(np.array([1.0, 91.0, 90.0, 0.0]), np.zeros(4), np.array([1.0, 90.0, -1.0, -90.0]))
      >>> [(step.layer, step.change, step.up) for step in found]
      [(2, 90.0, True), (4, -90.0, False)]
    """
    after = np.asarray(after, np.float64)
    before = np.concatenate([[after[0] - attention[0] - mlp[0]], after[:-1]])
    change = after - before
    large = np.flatnonzero(np.abs(change) > fraction * np.abs(after).max())
    return [Step(int(i) + 1, float(change[i]), float(attention[i]), float(mlp[i]), float(after[i])) for i in large]


def null_interval(draws: np.ndarray) -> Mapping[str, np.ndarray]:
    """Gives what random token sets give: [..., M] -> "mean", and "low" and "high", the middle 95 % of the draws."""
    draws = np.asarray(draws, np.float64)
    return {
        "mean": draws.mean(axis=-1),
        "low": np.quantile(draws, 0.025, axis=-1),
        "high": np.quantile(draws, 0.975, axis=-1),
    }
