"""What a model answers in the tasks of the lm-evaluation-harness, under edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from massive_jax.report.records import optional
from massive_jax.report.results.interventions import EditedPlace, Effect
from massive_jax.report.results.source import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What came of a task.

    Attributes:
      version: of the task, as it says itself.
      items: how many.
      num_fewshot: examples in front of each.
      metric: "acc", "exact_match", "word_perplexity", …; None where no metric is one number for each item.
      chance: what guessing gives, where there are choices.
      effects: of that metric, by edit; an interval is 95 % of a bootstrap over items, a difference is paired.
      harness: all that the harness says, by edit and metric.
    """

    version: str
    items: int
    num_fewshot: int
    metric: str | None = None
    chance: float | None = optional()
    effects: Mapping[str, Effect] = dataclasses.field(default_factory=dict)
    harness: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Run):
    """zero_shot.json. Its text is what places were looked for in, and means are of.

    Attributes:
      edits: their names: "none", "zero", "mean", …; the first is what the others are compared with.
      layer: whose output is edited; None without edits.
      sites: the places that are, and what they are on average.
      prompt_bos: whether BOS is in front of every prompt.
      chat: whether the model's chat template is used.
      quantized_bits: of weights and of what enters linear maps, where they are rounded.
      limit: most items of a task, from its start; None for all.
      seed: of examples, and of what is drawn.
      lm_eval: version of the harness.
      tasks: by name.
      mean_accuracy: over the tasks with an accuracy, by edit; none of fewer than two.
    """

    edits: tuple[str, ...]
    layer: int | None
    sites: tuple[EditedPlace, ...]
    prompt_bos: bool
    chat: bool
    quantized_bits: int | None = optional()
    limit: int | None
    seed: int
    lm_eval: str
    tasks: Mapping[str, TaskResult]
    mean_accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
