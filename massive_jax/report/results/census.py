"""The census: what every layer of a model does, over many windows of a text or over images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from massive_jax.analysis.massive import DEFINITION, Thresholds
from massive_jax.report.records import optional
from massive_jax.report.results.source import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A dim of one token over the windows: the mean and the population standard deviation of its values."""

    dim: int
    mean: float
    std: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MassivePlace(Spread):
    """Where large activations are in a layer, and how large those are that were counted.

    Attributes:
      position: 0 for the first token, whatever it is.
      token: for the others, its text (of an image, its place); null for a class of tokens together.
      class: `kind` here: "start", "first_delimiter", "delimiter", "weak_word", "other"; of images "class_token",
        "register", "patch".
      count: how many of these tokens have a large activation in this dim, among the three largest of the token.
      share: which fraction that is of all such tokens.
      ratio: mean ratio of those magnitudes to the median magnitude of the window.
      massive: whether mean magnitude and mean ratio meet the definition.
    """

    position: int | None = optional()
    token: str | None = optional()
    kind: str = dataclasses.field(metadata={"key": "class"})
    count: int
    share: float
    ratio: float
    massive: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Null:
    """What random tokens in the sink's place give: the mean, and the middle 95 % of the draws."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualSink:
    """A dim that is the largest on most tokens (arXiv 2601.22966).

    Attributes:
      dim: the dim.
      share: of the tokens whose largest it is.
      mean: of its magnitude there.
    """

    dim: int
    share: float
    mean: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCensusLayer:
    """A layer. P are attention probabilities, v values (of key/value heads, repeated to heads), x the block's output.

    Attributes:
      layer: 1-based.
      median: median magnitude of x, the lower of the two in the middle as torch has it; mean over windows.
      first: of position 0, the three dims of largest mean, by magnitude (Table 2 of the paper).
      places: large activations by place, most important first: position 0, then tokens by their text.
      classes: the same by class of token.
      sink_rate: share of heads whose attention on token 0, averaged over queries and windows, is above 0.3
        (arXiv 2410.10781).
      sink_mass: that attention, mean over heads.
      sink_mass_by_head: by head.
      sink_mass_uniform: what attention to all visible tokens alike would give.
      bias_spread: u_q = P_q0 v_0, heads concatenated, q ≥ 1: mean over q of ‖u_q − ū‖ / ‖ū‖, mean over windows: how
        constant the sink's update is (section 4.3 of the paper, as a number).
      rest_spread: the same of Σ_{i≥1} P_qi v_i.
      value_norm_ratio: ‖v_0‖, mean over heads, over the mean over heads and i ≥ 1 of ‖v_i‖; mean over windows.
      entropy: of the squared singular values of x (arXiv 2510.06477), from 0, one direction, to 1; mean over windows.
        Where windows and the width are above 128, over the first 8 windows, and above 1,024 null: it costs their cube.
      intervals: of these, by name, the 95 % interval of the mean over windows; [null, null] of one window.
      random_spread: `bias_spread` of random tokens in the sink's place, over the queries that come after them.
      random_value_norm_ratio: `value_norm_ratio` of random tokens.
      residual_sinks: dims that are the largest on more than half of the tokens.
    """

    layer: int
    median: float
    first: tuple[Spread, ...]
    places: tuple[MassivePlace, ...]
    classes: tuple[MassivePlace, ...] = ()
    sink_rate: float
    sink_mass: float
    sink_mass_by_head: tuple[float, ...] = ()
    sink_mass_uniform: float
    bias_spread: float
    rest_spread: float
    value_norm_ratio: float
    entropy: float
    intervals: Mapping[str, tuple[float, ...]]
    random_spread: Null
    random_value_norm_ratio: Null
    residual_sinks: tuple[ResidualSink, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockStep:
    """A block at which a massive dim changes by more than half of its largest mean, and what adds to that."""

    layer: int
    change: float
    attention: float
    mlp: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Life:
    """Where a massive activation is born and where it fades (arXiv 2603.05498).

    Attributes:
      place: "start" or "first_delimiter".
      dim: its dim.
      largest: its mean of largest magnitude over the layers.
      layer: the layer with it.
      full_size: the first layer at which the mean has half of that.
      up: blocks at which it steps up.
      down: blocks at which it steps down.
    """

    place: str
    dim: int
    largest: float
    layer: int
    full_size: int
    up: tuple[BlockStep, ...]
    down: tuple[BlockStep, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCensus(Run):
    """census.json.

    Attributes:
      thresholds: the definition of massive. What is counted in `places` is above the magnitude, and above the ratio or
        50 times the median, whichever is less.
      seed: of the random tokens.
      count: how many images; None for a text, whose windows are counted.
      finding: the census in one sentence.
      massive: whether any place meets the definition.
      birth: the first layer at which the largest of `lives` has full size; None without any.
      sink_rate: the model's: mean over layers.
      layers: every layer.
      lives: massive activations of the first token and of the first delimiter, through the layers.
    """

    thresholds: Thresholds = DEFINITION
    seed: int = 0
    count: int | None = optional()
    finding: str
    massive: bool
    birth: int | None
    sink_rate: float
    layers: tuple[ModelCensusLayer, ...]
    lives: tuple[Life, ...] = ()
