"""Massive activations of one model: layer by layer, in one layer, what attends to them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from massive_jax.analysis.massive import DEFINITION, Thresholds
from massive_jax.report.records import optional
from massive_jax.report.results.source import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """An activation, and where it is."""

    value: float
    position: int | str
    dim: int
    token: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopActivation(Activation):
    """One of a layer's largest. Its value is the mean over the sequences that have it among their 16 largest.

    Attributes:
      share: the fraction of those sequences.
    """

    share: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MassiveActivation:
    """One of one sequence that meets both criteria; `ratio` is to the layer's median magnitude."""

    value: float
    position: int
    dim: int
    token: str
    ratio: float = math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundActivation(Activation):
    """One of all layers' that meets one criterion or both, in at least half of the sequences."""

    layer: int
    ratio: float
    meets_magnitude: bool
    meets_ratio: bool

    @property
    def massive(self) -> bool:
        """Both criteria."""
        return self.meets_magnitude and self.meets_ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer: its largest activations and the median magnitude, averaged over the sequences.

    Attributes:
      layer: which; None for the final norm.
      top: the places of its largest activations.
      median: of the magnitudes.
      magnitudes: the largest, the second and the third of a sequence, wherever each is.
    """

    layer: int | None
    top: tuple[TopActivation, ...]
    median: float
    magnitudes: tuple[float, ...] = ()

    @property
    def largest(self) -> tuple[float, ...]:
        """Gives `magnitudes`, of a file without them those at the places, largest first; NaN before any number."""
        return self.magnitudes or tuple(np.sort(np.abs([top.value for top in self.top]))[::-1].tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layerwise(Run):
    """layerwise.json. Of several prompts: {"prompts": [{"prompt": …, and all this of it alone}]}.

    Attributes:
      tokens: texts of the first sequence's tokens; of an image CLS, reg1, …, (row,column).
      thresholds: the definition of massive, {magnitude, ratio}.
      layers: every layer.
      final_norm: the same after the final norm.
      massive: what meets a criterion, of each layer's 16 largest.
    """

    tokens: tuple[str, ...] = ()
    thresholds: Thresholds = DEFINITION
    layers: tuple[Layer, ...]
    final_norm: Layer | None = None
    massive: tuple[FoundActivation, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMap(Run):
    """feature_map.json.

    Attributes:
      tokens: T texts.
      thresholds: the definition of massive.
      layer: which is drawn.
      median: its median magnitude.
      massive: those of its 16 largest that meet the definition.
      dims: which are labelled: where a magnitude or its ratio to the median meets its criterion.
    """

    tokens: tuple[str, ...]
    thresholds: Thresholds = DEFINITION
    layer: int
    median: float
    massive: tuple[MassiveActivation, ...]
    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMap(Run):
    """attention_map.json; attention_map.npz has the maps themselves, logits and probs [T, S], masked entries NaN.

    Attributes:
      tokens: T texts.
      layer: which is drawn.
      head: which, from 0, or "mean".
      massive_positions: keys that have a massive activation in some layer.
      shares: of every layer, the share of attention on those keys, averaged over heads and queries.
      emergence_layer: the first layer whose output has a massive activation, or None.
      key_tokens: S texts, where the keys are not the tokens: an attention bias adds slots.
    """

    tokens: tuple[str, ...]
    layer: int
    head: int | str
    massive_positions: tuple[int, ...]
    shares: tuple[float, ...]
    emergence_layer: int | None
    key_tokens: tuple[str, ...] | None = optional()

    @property
    def keys(self) -> tuple[str, ...]:
        """S texts."""
        return self.tokens if self.key_tokens is None else self.key_tokens
