"""Massive activations of one model: layer by layer, in one layer, what attends to them, what they are for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from massive_jax.analysis.massive import DEFINITION, Thresholds
from massive_jax.report.records import optional
from massive_jax.report.results.source import Named, Run


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
    """A layer: its largest activations, largest first, and the median magnitude; `layer` is None for the final norm."""

    layer: int | None
    top: tuple[TopActivation, ...]
    median: float


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlPlace:
    """A random place whose magnitude is close to the median."""

    position: int | str
    dim: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditedPlace(ControlPlace):
    """A place that was edited, and the value it has on average."""

    value_mean: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention(Run):
    """intervene.json: what the model is judged by (one of the last three keys), by the name of the operation.

    The names are "original", those of the operations ("zero", "set=5", …), and "random_" and an operation for the same
    done to the controls.

    Attributes:
      layer: whose output is edited.
      sites: the places that are.
      mean_values: of those places, in their order.
      controls: the random places.
      seed: of what is drawn.
      predicted_tokens: of a text, how many the perplexity is over.
      perplexity: of a text.
      top1_agreement: of images and a model with a head: the share of images whose most likely class stays.
      cosine_similarity: of images without: of the pooled features with the unedited ones, averaged over the images.
    """

    layer: int
    sites: tuple[EditedPlace, ...]
    mean_values: tuple[float, ...] = ()
    controls: tuple[ControlPlace, ...] = ()
    seed: int = 0
    predicted_tokens: int | None = optional()
    perplexity: Mapping[str, float] | None = optional()
    top1_agreement: Mapping[str, float] | None = optional()
    cosine_similarity: Mapping[str, float] | None = optional()

    @property
    def metric(self) -> str:
        """What the model is judged by."""
        given = [name for name in ("top1_agreement", "cosine_similarity") if getattr(self, name) is not None]
        return given[0] if given else "perplexity"

    @property
    def measured(self) -> Mapping[str, float]:
        """That, by operation."""
        return getattr(self, self.metric) or {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditedAt:
    """A layer and the places in its output that were edited."""

    layer: int
    sites: tuple[EditedPlace, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings(Named):
    """summary.json: the paper's main findings on one model.

    Attributes:
      layer: where the largest activations appear at full size, or the one asked for.
      massive: what is massive there.
      one_criterion: the largest there that meet one criterion only.
      attention_share: the largest share of attention on the massive tokens in any layer; None without such tokens.
      attention_layer: that layer.
      intervention: what was edited.
      perplexity: by operation, as in intervene.json.
      times_worse: that of "zero" over the original's; None where nothing was set to zero.
    """

    layer: int
    massive: tuple[FoundActivation, ...]
    one_criterion: tuple[FoundActivation, ...]
    attention_share: float | None
    attention_layer: int | None
    intervention: EditedAt
    perplexity: Mapping[str, float]
    times_worse: float | None
