"""What a model scores on each of several windows or images, and how sure the average is. W windows or images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from massive_jax.analysis.bootstrap import DRAWS, Interval, percentiles, resampled_means


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Holds the scores of W windows of a text, or of W images.

    Attributes:
      metric: what the model is judged by: "perplexity", or of images "top1_agreement" or "cosine_similarity".
      sums: float64 [W]: of a window the negative log-likelihood in nats, of an image its agreement.
      counts: int [W]: how many tokens of a window are predicted; 1 for an image.
    """

    metric: str
    sums: np.ndarray
    counts: np.ndarray

    @property
    def mean(self) -> float:
        """Gives the average: nats a token, or agreement."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def value(self) -> float:
        """Gives the metric over all windows or images: inf where the likelihood underflows, nan where it is nan."""
        return float(self._metric_of(self.mean))

    def estimate(self, *, draws: int = DRAWS, seed: int = 0) -> Interval:
        """Gives `value` with its 95 % interval, by a bootstrap over windows or images; without one where W is 1."""
        return self._estimate(self.value, self._metric_of(self._drawn(draws, seed)))

    def difference(self, other: Scores, *, draws: int = DRAWS, seed: int = 0) -> Interval:
        """Gives how far `value` is above another's on the same windows or images, with its interval: paired.

        Raises:
          ValueError: the other's scores are of another metric, or of other windows.
        """
        return self._paired(other, self._metric_of, draws, seed)

    def mean_difference(self, other: Scores, *, draws: int = DRAWS, seed: int = 0) -> Interval:
        """Gives how far `mean` is above another's, as `difference` does: of a text in nats a token."""
        return self._paired(other, lambda mean: mean, draws, seed)

    def _paired(self, other: Scores, of_mean: Any, draws: int, seed: int) -> Interval:
        if self.metric != other.metric or not np.array_equal(self.counts, other.counts):
            raise ValueError("scores of different metrics or windows have no difference; measure both on the same.")
        with np.errstate(invalid="ignore"):  # of two that are infinite
            value = float(of_mean(self.mean) - of_mean(other.mean))
            return self._estimate(value, of_mean(self._drawn(draws, seed)) - of_mean(other._drawn(draws, seed)))

    def _metric_of(self, mean: Any) -> Any:
        with np.errstate(over="ignore"):
            return np.exp(mean) if self.metric == "perplexity" else mean

    def _drawn(self, draws: int, seed: int) -> np.ndarray:
        return resampled_means(self.sums, self.counts, draws=draws, seed=seed)

    def _estimate(self, value: float, samples: np.ndarray) -> Interval:
        return Interval(value, *(percentiles(samples) if len(self.sums) > 1 else ()))
