"""What massive activations are for: what becomes of a model when they are changed; and the summary of all findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from massive_jax.analysis.bootstrap import Interval
from massive_jax.analysis.effects import carrier
from massive_jax.report.records import optional
from massive_jax.report.results.activations import FoundActivation
from massive_jax.report.results.source import Named, Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlPlace:
    """A place whose like was drawn at random."""

    position: int | str
    dim: int

    def __str__(self) -> str:
        return f"{self.position}:{self.dim}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditedPlace(ControlPlace):
    """A place that was edited, and the value it has on average."""

    value_mean: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """What the model scores under an edit. An interval is 95 % of a bootstrap over windows or images, null for one.

    Attributes:
      value: the metric, with the interval from `low` to `high`.
      difference: how far it is above the unedited model's on the same windows (paired).
      nats: of a text, the same of the negative log-likelihood a token.
    """

    value: float
    low: float | None
    high: float | None
    difference: Interval
    nats: Interval | None = optional()  # noqa: RUF009  (a dataclass field)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AloneEffect(ControlPlace):
    """What an edit of one of the places does.

    Attributes:
      share: of the effect of all of them together; of a text in nats.
      effects: by operation.
    """

    share: float
    effects: Mapping[str, Effect]

    @property
    def operation(self) -> str:
        """The one that is looked at closely: that which changes the model most."""
        return next(iter(self.effects))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnEffect:
    """What the model scores under an edit of places drawn several times.

    Attributes:
      values: the metric, of each draw.
      mean: their mean.
      low, high: the interval that 95 % of them are in; null of one draw.
      nats: of a text, the same of the mean difference to the unedited model in nats a token.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    nats: Interval | None = optional()  # noqa: RUF009  (a dataclass field)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlDraws:
    """Controls of one kind.

    Attributes:
      kind: "median_sized" (entries of median magnitude), "same_position" (other dims) or "same_dim" (other positions).
      places: of each draw.
      effects: of the operation that changes the model most.
    """

    kind: str
    places: tuple[tuple[ControlPlace, ...], ...]
    effects: Mapping[str, DrawnEffect]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerEffect:
    """What an edit of the output of one layer does, by operation."""

    layer: int
    effects: Mapping[str, Effect]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """What a model is judged by, by the name of the operation; one of the three.

    Attributes:
      perplexity: of a text.
      top1_agreement: of images and a model with a head: the share of images whose most likely class stays.
      cosine_similarity: of images without: of the pooled features with the unedited ones, averaged over the images.
    """

    perplexity: Mapping[str, float] | None = optional()
    top1_agreement: Mapping[str, float] | None = optional()
    cosine_similarity: Mapping[str, float] | None = optional()

    @property
    def metric(self) -> str:
        """Which of them it is."""
        given = [name for name in ("top1_agreement", "cosine_similarity") if getattr(self, name) is not None]
        return given[0] if given else "perplexity"

    @property
    def measured(self) -> Mapping[str, float]:
        """That, by operation."""
        return getattr(self, self.metric) or {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention(Judged, Run):
    """intervene.json: what the model is judged by (perplexity, say), by the name of the operation.

    The names are "original", those of the operations ("zero", "set=5", …), and "random_" and an operation for the same
    done to the controls.

    Attributes:
      layer: whose output is edited; or "all".
      found_at: with "all", the layer that the places are from.
      sites: the places that are.
      mean_values: of those places, in their order.
      controls: the random places.
      seed: of what is drawn.
      predicted_tokens: of a text, how many the perplexity is over.
      bootstrap_draws: how many draws of windows or images intervals are of; null with one window, which has none.
      effects: the same numbers by name, with intervals and differences.
      alone: what each place does alone (of many, those of largest magnitude), under the operation that changes most.
      control_draws: the same of controls of every kind, drawn several times.
      sweep: the same edits at the output of every layer instead, one layer at a time.
    """

    layer: int | str
    found_at: int | None = optional()
    sites: tuple[EditedPlace, ...]
    mean_values: tuple[float, ...] = ()
    controls: tuple[ControlPlace, ...] = ()
    seed: int = 0
    predicted_tokens: int | None = optional()
    bootstrap_draws: int | None = None
    effects: Mapping[str, Effect] = dataclasses.field(default_factory=dict)
    alone: tuple[AloneEffect, ...] = ()
    control_draws: tuple[ControlDraws, ...] = ()
    sweep: tuple[LayerEffect, ...] = ()

    @property
    def carrier(self) -> AloneEffect | None:
        """The place that alone has nearly all of the effect; None where there is none."""
        if not self.alone:
            return None
        whole = self.effects[self.alone[0].operation]
        size = (whole.nats or whole.difference).value
        found = carrier(0.0, size, [one.share * size for one in self.alone])
        return None if found is None else self.alone[found]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carrier(ControlPlace):
    """The place that alone does nearly all that an edit of several does.

    Attributes:
      operation: the edit.
      value: what the model scores under it.
      share: what part of the effect that is; of a text in nats.
      low, high: the 95 % interval of `value`; None where there is none.
    """

    operation: str
    value: float
    share: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditedAt:
    """A layer (or "all") and the places in its output that were edited."""

    layer: int | str
    sites: tuple[EditedPlace, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings(Judged, Named):
    """summary.json: the paper's main findings on one model, and what it is judged by, as in intervene.json.

    Attributes:
      layer: where the largest activations appear at full size, or the one asked for.
      massive: what is massive there.
      one_criterion: the largest there that meet one criterion only.
      attention_share: the largest share of attention on the massive tokens in any layer; None without such tokens.
      attention_layer: that layer.
      intervention: what was edited.
      times_worse: of a text, the perplexity of "zero" over the original's; None where nothing was set to zero.
      zero_low, zero_high: the 95 % interval of that of "zero"; None where there is none.
      carrier: of several places that were edited, the one that alone does nearly all of it.
    """

    layer: int
    massive: tuple[FoundActivation, ...]
    one_criterion: tuple[FoundActivation, ...]
    attention_share: float | None
    attention_layer: int | None
    intervention: EditedAt
    times_worse: float | None = None
    zero_low: float | None = None
    zero_high: float | None = None
    carrier: Carrier | None = None
