"""Models side by side, and an implicit attention bias made explicit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from massive_jax.report.records import named, optional
from massive_jax.report.results.source import Named, Numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileLayer:
    """A layer: its largest and its median magnitude, and the share of attention on the sink and on a bias's slots."""

    layer: int
    largest: float
    median: float
    sink_rate: float
    slot_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedModel(Named):
    """A model of a comparison, with what it is judged by: a perplexity, top1 or cosine_similarity.

    Attributes:
      weights: what they were stored as; None where that is not known.
      attention_bias: its kind and slots; None without one.
      registers: how many.
      loss: of a text, in nats a token.
      perplexity: of a text.
      top1: of images in class folders.
      cosine_similarity: of other images: the features, quantised, with the unquantised ones.
      int8_per_tensor: the same measure, with every linear map's input in int8, a scale a tensor.
      largest: the largest magnitude of any layer.
      sink_rate: the largest share of attention on the sink in any layer.
      layers: every layer.
    """

    weights: str | None = None
    attention_bias: Mapping[str, Any] | None
    registers: int
    loss: float | None = optional()
    perplexity: float | None = optional()
    top1: float | None = optional()
    cosine_similarity: float | None = optional()
    int8_per_tensor: float
    largest: float
    sink_rate: float
    layers: tuple[ProfileLayer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """compare_bias.json.

    Attributes:
      text, windows, context: of language models.
      images, count: of vision models: the path given, and how many.
      models: each.
    """

    text: str | None = optional()
    windows: int | None = optional()
    context: int | None = optional()
    images: str | None = optional()
    count: int | None = optional()
    models: tuple[ComparedModel, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
    """What stood in front: its text ("bos", "mean" or a text) and tokens."""

    text: str
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsApart:
    """How far the new model's logits are from the old one's.

    Attributes:
      largest_difference: of any logit at any position.
      relative_difference: the largest of any position, of its logits' norm.
      positions: how many were compared.
      beyond: how many of them differ by more than 1e-4 of their norm.
    """

    largest_difference: float
    relative_difference: float
    positions: int
    beyond: int = named("beyond_1e-4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplicitBias(Named, Numbers):
    """explicit_bias.json; the mappings are {"original": …, "explicit": …}.

    Attributes:
      text, windows, context: as everywhere; the prefix is not counted.
      prefix: what stood in front of every window.
      perplexity: over the same tokens, those from the second of each window on.
      largest: the largest magnitude of any layer.
      int8_per_tensor: the perplexity with every linear map's input in int8, a scale a tensor.
      logits: how far they are apart.
      layers: every layer.
    """

    text: str
    windows: int
    context: int
    prefix: Prefix
    perplexity: Mapping[str, float]
    largest: Mapping[str, float]
    int8_per_tensor: Mapping[str, float]
    logits: LogitsApart
    layers: Mapping[str, tuple[ProfileLayer, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileCurves:
    """A model's curves: a number a layer."""

    name: str
    largest: tuple[float, ...]
    median: tuple[float, ...]
    sink_rate: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profiles:
    """A figure of several models: its title, the line under it, the models, and what the sink is called."""

    title: str
    conditions: str
    models: tuple[ProfileCurves, ...]
    sink: str = "position 0"
