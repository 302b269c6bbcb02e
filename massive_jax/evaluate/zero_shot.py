"""What the lm-evaluation-harness found, item by item, as scores with intervals. Needs no package besides."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from massive_jax.evaluate.scores import Scores

# Of a task the first of these that it has; otherwise the first that is a number for each item.
_PREFERRED = ("acc", "exact_match", "word_perplexity", "byte_perplexity")
_PERPLEXITIES = ("word_perplexity", "byte_perplexity")
ACCURACIES = ("acc", "exact_match")


@dataclasses.dataclass(frozen=True, eq=False)
class TaskScores:
    """Holds what a task found.

    Attributes:
      metric: as the harness calls it.
      scores: of each item; a perplexity's are negative log-likelihoods, over words or bytes.
      chance: what guessing gives, where a task has choices; None elsewhere.
    """

    metric: str
    scores: Scores
    chance: float | None = None


def task_scores(samples: Sequence[Mapping[str, Any]]) -> TaskScores | None:
    """Gives the scores of a task's items by its main metric.

    Args:
      samples: those of `evaluate_tasks(…)["samples"][task]`.

    Returns:
      None where no metric is a number, or a log-likelihood and a weight, for each item.
    """
    samples = [sample for sample in samples if sample.get("filter") == samples[0].get("filter")]
    if not samples:
        return None
    names = list(samples[0]["metrics"])
    for metric in [name for name in _PREFERRED if name in names] + [name for name in names if name not in _PREFERRED]:
        values = [sample[metric] for sample in samples]
        if metric in _PERPLEXITIES:
            likelihoods, weights = np.array(values, np.float64).T
            return TaskScores(metric, Scores("perplexity", -likelihoods, weights))
        if all(isinstance(value, numbers.Real) for value in values):
            scores = Scores(metric, np.array(values, np.float64), np.ones(len(values), int))
            return TaskScores(metric, scores, _chance(samples) if metric == "acc" else None)
    return None


def mean_scores(found: Sequence[TaskScores]) -> float | None:
    """Averages the accuracies of several tasks, each counting as one; None of fewer than two."""
    values = [task.scores.value for task in found if task.metric in ACCURACIES]
    return float(np.mean(values)) if len(values) > 1 else None


def _chance(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """What guessing gives on average: 1 / choices; None where an item has only one request."""
    choices = [len(sample["arguments"]) // (1 + ("acc_mutual_info" in sample["metrics"])) for sample in samples]
    return float(np.mean([1 / count for count in choices])) if min(choices) > 1 else None
