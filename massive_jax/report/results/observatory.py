"""The observatory: everything that is measured of several models, and what compares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from massive_jax.analysis.massive import DEFINITION, Thresholds
from massive_jax.report.records import optional
from massive_jax.report.results.census import ModelCensus
from massive_jax.report.results.interventions import Intervention
from massive_jax.report.results.massive_attention import MassiveAttention
from massive_jax.report.results.super_weights import SuperWeightsOf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that models are compared by.

    Attributes:
      value: the number; None where the model has nothing of the kind.
      low, high: its 95 % interval; None where there is none.
      chance: what chance gives: uniform attention, random tokens, places of median size.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    chance: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """One model, with or without BOS.

    Attributes:
      model: its name.
      bos: whether BOS is in front of every window.
      finding: its census in one sentence.
      metrics: by name, as `massive_jax.report.observatory.METRICS` explains them.
      seconds: how long it took to observe.
      census: see `ModelCensus`; of each layer the first few places.
      attention: see `MassiveAttention`; without its heads.
      intervention: what becomes of the model without its massive activations; None where it has none, or there are too
        few tokens to predict.
      super_weights: see `SuperWeightsOf`; None of a mixture of experts.
    """

    model: str
    bos: bool
    finding: str
    metrics: Mapping[str, Metric]
    seconds: float
    census: ModelCensus
    attention: MassiveAttention | None = optional()  # noqa: RUF009  (a dataclass field)
    intervention: Intervention | None = optional()  # noqa: RUF009  (a dataclass field)
    super_weights: SuperWeightsOf | None = optional()  # noqa: RUF009  (a dataclass field)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observatory:
    """observatory.json.

    Attributes:
      text: of which the windows are.
      windows: how many.
      context: tokens of each, without BOS.
      thresholds: the definition of massive.
      seed: of what is drawn.
      versions: of jax and this package.
      models: in the order given, each without BOS, and with it where its tokenizer has one.
    """

    text: str
    windows: int
    context: int
    thresholds: Thresholds = DEFINITION
    seed: int = 0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    models: tuple[Observed, ...]
