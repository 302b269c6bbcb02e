"""Trainings of variants: what prevents sinks, and what prevents massive activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from massive_jax.report.records import optional
from massive_jax.report.results.source import Named
from massive_jax.report.results.training import CensusLayer, Fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredTraining:
    """measured.json, beside a training: what came of it on held-out windows.

    Attributes:
      variant: its name.
      config: the training's, as its checkpoints have it.
      windows: how many.
      problem: how it ended, where it did not reach its last step; then there is nothing else.
      loss: nats a token.
      int8_loss: the same with the inputs and the weights of every linear map in int8, a scale per tensor.
      layers: of the census on these windows.
    """

    variant: str
    config: Mapping[str, Any]
    windows: int
    problem: str | None = optional()
    loss: float | None = None
    int8_loss: float | None = None
    layers: tuple[CensusLayer, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantTraining:
    """One training; numbers, but the losses, as `massive_jax.analysis.SinkSpike` has them, and null where it diverged.

    Attributes:
      seed: of it.
      problem: how it ended, where it did not reach its last step.
      loss, int8_loss: as `MeasuredTraining` has them.
    """

    seed: int
    problem: str | None = optional()
    loss: float | None = None
    int8_loss: float | None = None
    first_share: float | None = None
    sink_heads: float | None = None
    block_heads: float | None = None
    slot_share: float | None = None
    ratio: float | None = None
    layer: int | None = None
    dim: int | None = None
    others_ratio: float | None = None
    typical_ratio: float | None = None
    top_ratio: float | None = None
    top_layer: int | None = None
    top_position: int | None = None
    top_dim: int | None = None
    kurtosis: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """A mean over seeds and its 95 % interval by Student's t, null where there is one seed only."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantCurve(Fit):
    """The first token's largest over the median, of the middle block where that is largest, by training step.

    Attributes:
      steps: of the censuses that every training has.
      ratios: of each training, a number a step.
      mean: geometric mean over them; what the curve is fitted to.
    """

    steps: tuple[int, ...]
    ratios: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantResult:
    """What came of one variant.

    Attributes:
      name: of the variant.
      words: what is different in it.
      source: who proposed it, or tried it.
      trainings: a seed each.
      means: over those that did not diverge, by name; of ratios and kurtosis geometric. "int8_rise" is how far the int8
        loss is above the other.
      sink: whether there is one, by the means: in a middle block at least half of the heads give the first token more
        than 0.3 of their attention. Null where all diverged.
      spike: whether there is one, by the means: the first token's largest is at least 100 times the median and twice a
        typical token's largest, and in most trainings in the same dim of every window.
      curve: how the ratio emerged; null where all diverged.
    """

    name: str
    words: str
    source: str
    trainings: tuple[VariantTraining, ...]
    means: Mapping[str, Bounds]
    sink: bool | None
    spike: bool | None
    curve: VariantCurve | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variants(Named):
    """emergence_variants.json.

    Attributes:
      preset: its name.
      text: that they were trained on.
      dtype: that they were trained in; they are measured in float32.
      bos: the token that every sequence begins with; null for none.
      context: tokens of a sequence.
      steps: of each training.
      windows: held-out ones that they are measured on.
      variants: in the order that was asked for.
    """

    preset: str
    text: str
    dtype: str
    bos: int | None
    context: int
    steps: int
    windows: int
    variants: tuple[VariantResult, ...]
