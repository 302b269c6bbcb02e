"""Trainings from scratch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from massive_jax.report.records import named, optional, unwritten
from massive_jax.report.results.source import Named


@dataclasses.dataclass(frozen=True, kw_only=True)
class CensusActivation:
    """One of a layer's largest in a census."""

    value: float
    position: int
    dim: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CensusLayer:
    """A layer in a census, as `massive_jax.train.take_census` gives it; the last six are of causal models."""

    layer: int
    top: tuple[CensusActivation, ...] = ()
    largest: float
    median: float
    kurtosis: float
    sink_rate: float
    slot_rate: float
    first_share: float | None = optional()
    sink_heads: float | None = optional()
    first: float | None = optional()
    first_dim: int | None = optional()
    others: float | None = optional()
    typical: float | None = optional()

    @property
    def ratio(self) -> float:
        """Gives the largest magnitude over the median; nan where that is 0."""
        return self.over_median(self.largest)

    def over_median(self, magnitude: float | None) -> float:
        """Gives a magnitude over the median; nan of none, or where the median is 0."""
        return math.nan if magnitude is None or not self.median else magnitude / self.median


@dataclasses.dataclass(frozen=True, kw_only=True)
class Census:
    """A line of census.jsonl."""

    step: int
    layers: tuple[CensusLayer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Named):
    """What the figure of a training shows, and train_gpt2.json and train_vit.json start with.

    Attributes:
      preset: its name.
      attention_bias: its kind, or "none".
      text: of a language model.
      dataset: of a vision model.
      dtype: of the model.
      steps: how many.
      parameters: how many.
      census: all of them; the files have the last.
      sink: what the sink is called.
    """

    preset: str | None = None
    attention_bias: str
    text: str | None = optional()
    dataset: str | None = optional()
    dtype: str
    steps: int = 0
    parameters: int
    census: tuple[Census, ...] = unwritten()
    sink: str = unwritten(default="position 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainGPT2(Training):
    """train_gpt2.json.

    Attributes:
      tokenizer: the text's.
      tokens: seen in all.
      loss: of the last step, in nats.
      validation_loss: on held-out text.
      unigram_entropy: of that.
      last_census: the last.
    """

    tokenizer: str
    tokens: int
    loss: float
    validation_loss: float
    unigram_entropy: float
    last_census: Census = named("census")  # noqa: RUF009  (a dataclass field)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainViT(Training):
    """train_vit.json.

    Attributes:
      registers: how many.
      images: seen in all.
      loss: of the last step, in nats.
      validation_loss, accuracy: on all held-out images.
      seconds: that it took.
      last_census: the last.
    """

    registers: int
    images: int
    loss: float
    validation_loss: float
    accuracy: float
    seconds: float
    last_census: Census = named("census")  # noqa: RUF009  (a dataclass field)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A fitted parameter and its standard error, None where the points do not determine it."""

    value: float
    error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How a ratio of largest to median magnitude went: `massive_jax.analysis.EmergenceFit`, or why there is none.

    Attributes:
      parameters: amplitude, decay, rate, offset, baseline.
      r_squared: share of the variance over steps that the curve explains.
      peak: step of the curve's extremum, which may lie past the training; None where it has none.
      problem: why there is no curve.
    """

    parameters: Mapping[str, Estimate] | None = None
    r_squared: float | None = None
    peak: float | None = None
    problem: str | None = optional()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmergenceOfLayer(Fit):
    """The fit of a layer."""

    layer: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emergence(Named):
    """emergence.json: a census a checkpoint, and a curve through each layer's ratio.

    Attributes:
      sink: what the sink is called.
      text, bos, windows, context, images: what models that were loaded ran on, as in `TextSource` and `ImageSource`; of
        a training's own census the text, or none of these.
      dtype: that models computed in.
      census: of each checkpoint, in order of steps.
      checkpoints: names of models that were loaded.
      r_squared: mean over layers with a curve; None where none has one.
      fits: a layer each.
    """

    sink: str = "position 0"
    dtype: str | None = optional()
    text: str | None = optional()
    bos: bool | None = optional()
    windows: int | None = optional()
    context: int | None = optional()
    images: tuple[str, ...] | None = optional()
    census: tuple[Census, ...]
    checkpoints: tuple[str, ...] | None = optional()
    r_squared: float | None
    fits: tuple[EmergenceOfLayer, ...]
