"""Models side by side: the numbers they are compared by, and the figure of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.analysis.bootstrap import Interval
from massive_jax.report import style, words
from massive_jax.report.curves import logarithmic_ticks
from massive_jax.report.records import as_record
from massive_jax.report.results import (
    Intervention,
    MassiveAttention,
    Metric,
    ModelCensus,
    ModelCensusLayer,
    Observatory,
    SuperWeightsOf,
    TextSource,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class MetricKind:
    """Says how a metric is written and drawn.

    Attributes:
      words: what it is called in tables and above its panel.
      logarithmic: whether its axis is; otherwise it begins at 0.
      drawn: whether the figure has it.
    """

    words: str
    logarithmic: bool = False
    drawn: bool = True


METRICS: Mapping[str, MetricKind] = {
    "largest": MetricKind("first token's largest", True),
    "times_median": MetricKind("that over the median", True),
    "birth": MetricKind("at full size from layer", drawn=False),
    "sink_rate": MetricKind("sink rate"),
    "sink_mass": MetricKind("attention on it"),
    "bias_spread": MetricKind("spread of its update"),
    "rest_spread": MetricKind("spread of the rest", drawn=False),
    "value_norm_ratio": MetricKind("norm of its value"),
    "entropy": MetricKind("lowest entropy"),
    "residual_sink": MetricKind("tokens with one largest dim", drawn=False),
    "concentration": MetricKind("attention on massive tokens", drawn=False),
    "implicit_bias_spread": MetricKind("spread of their updates", drawn=False),
    "logit_gap": MetricKind("their logits over the others'", drawn=False),
    "secondary_sinks": MetricKind("secondary sinks in a window", drawn=False),
    "perplexity": MetricKind("perplexity", True),
    "perplexity_zero": MetricKind("perplexity, those zero", True),
    "perplexity_mean": MetricKind("perplexity, set to the mean", True, drawn=False),
    "perplexity_control": MetricKind("perplexity, controls zero", True, drawn=False),
    "super_weights": MetricKind("super weights", drawn=False),
    "perplexity_super_weight": MetricKind("perplexity, one super weight zero", True, drawn=False),
    "perplexity_other_weights": MetricKind("perplexity, 1,000 others zero", True, drawn=False),
}
"""What models are compared by. `largest` is the mean of largest magnitude of the first token in any layer;
`times_median` that over the layer's median magnitude; `birth` the layer from which massive activations have full size.
`sink_mass`, `bias_spread`, `rest_spread` and `value_norm_ratio` are means over the layers after the birth, of a model
without one over all; `concentration`, `implicit_bias_spread` and `logit_gap` the same of all massive tokens of a window
together (see `MassiveAttention`), over the layers after their birth. `entropy` is the least of any layer;
`residual_sink` the largest share of tokens with the same largest dim in any layer. `perplexity_super_weight` is without
the one weight that does most, `perplexity_other_weights` without the largest others of its matrix.
"""


def census_metrics(census: ModelCensus) -> dict[str, Metric]:
    """Gives what a census says of a model in a few numbers."""
    peak = max(census.layers, key=lambda layer: abs(layer.first[0].mean))
    after = census.layers if census.birth is None else (census.layers[census.birth :] or census.layers[-1:])
    lowest = min(census.layers, key=lambda layer: layer.entropy)

    def mean(name: str, chance: Sequence[float]) -> Metric:
        bounds = np.array([layer.intervals.get(name, (np.nan, np.nan)) for layer in after], float).mean(axis=0)
        low, high = (None if np.isnan(bound) else float(bound) for bound in bounds)
        value = float(np.mean([getattr(layer, name) for layer in after]))
        return Metric(value=value, low=low, high=high, chance=float(np.mean(chance)) if chance else None)

    def sinks(layer: ModelCensusLayer) -> float:
        return max((sink.share for sink in layer.residual_sinks), default=0.0)

    entropy = lowest.intervals.get("entropy", (None, None))
    return {
        "largest": Metric(value=abs(peak.first[0].mean)),
        "times_median": Metric(value=abs(peak.first[0].mean) / max(peak.median, 1e-30)),
        "birth": Metric(value=census.birth),
        "sink_rate": Metric(value=census.sink_rate, chance=0.0),
        "sink_mass": mean("sink_mass", [layer.sink_mass_uniform for layer in after]),
        "bias_spread": mean("bias_spread", [layer.random_spread.mean for layer in after]),
        "rest_spread": mean("rest_spread", []),
        "value_norm_ratio": mean("value_norm_ratio", [layer.random_value_norm_ratio.mean for layer in after]),
        "entropy": Metric(value=lowest.entropy, low=_finite(entropy[0]), high=_finite(entropy[1])),
        "residual_sink": Metric(value=max(map(sinks, census.layers))),
    }


def attention_metrics(found: MassiveAttention) -> dict[str, Metric]:
    """Gives what attention does with a model's massive tokens in a few numbers; few without any."""
    source, after = found.source, found.after
    windows = found.count or (source.windows if isinstance(source, TextSource) else None) or 1
    sinks = {"secondary_sinks": Metric(value=sum(group.count for group in found.secondary_sinks) / windows)}
    if after is None:
        return sinks
    gap = after.logit_massive - after.logit_others
    return sinks | {
        "concentration": Metric(value=after.concentration, chance=after.baseline),
        "implicit_bias_spread": Metric(value=after.spread, chance=after.random_spread),
        "logit_gap": Metric(value=gap, chance=0.0),
    }


def intervention_metrics(changed: Intervention | None) -> dict[str, Metric]:
    """Gives what an intervention says of a model in a few numbers; none where there was nothing to change."""
    if changed is None or changed.perplexity is None:
        return {}
    names = {"original": "perplexity", "zero": "perplexity_zero", "mean": "perplexity_mean"}
    found = {
        names[name]: Metric(value=effect.value, low=effect.low, high=effect.high)
        for name, effect in changed.effects.items()
        if name in names
    }
    controls = [value for draws in changed.control_draws for value in draws.effects["zero"].values]
    if controls:
        found["perplexity_control"] = Metric(
            value=float(np.mean(controls)), low=float(np.min(controls)), high=float(np.max(controls))
        )
    return found


def weight_metrics(found: SuperWeightsOf | None) -> dict[str, Metric]:
    """Gives what its super weights are to a model in a few numbers; none where there are none to be looked for."""
    if found is None:
        return {}
    count = {"super_weights": Metric(value=len(found.found.confirmed))}
    if not found.found.tested:
        return count
    worst = max(found.found.tested, key=lambda weight: weight.without.nats.value)
    return count | {
        "perplexity_super_weight": _of(worst.without.perplexity),
        "perplexity_other_weights": _of(worst.without_others.perplexity),
    }


def _of(interval: Interval) -> Metric:
    return Metric(value=interval.value, low=interval.low, high=interval.high)


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def metric_rows(result: Observatory) -> Iterator[tuple[str, list[str]]]:
    """Gives the table: the words of every metric that any model has, and its value for each model."""
    for name, kind in METRICS.items():
        found = [observed.metrics.get(name) for observed in result.models]
        if any(metric is not None and metric.value is not None for metric in found):
            yield kind.words, [_cell(metric, whole=name in ("birth", "super_weights")) for metric in found]


def _cell(metric: Metric | None, whole: bool) -> str:
    if metric is None or metric.value is None:
        return "–"
    text = str(int(metric.value)) if whole else words.number(metric.value, 3)
    if metric.low is not None and metric.high is not None:
        text += f" [{words.number(metric.low, 3)}, {words.number(metric.high, 3)}]"
    return text if _finite(metric.chance) is None else f"{text} ({words.number(metric.chance, 3)})"


WIDTH, _ROW, _GAP = 7.0, 0.24, 0.5  # inches
_COLUMNS, _TICKS = 3, 3


def plot_observatory(
    result: Observatory | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> Figure:
    """Draws a panel a metric, a line a model (hollow: without BOS): the value, its interval, and a bar for chance.

    Args:
      result: the observatory, or what observatory.json holds. A number that is not finite is left out.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there are no models; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: Observatory | Mapping[str, Any]) -> Figure:
    """Draws the figure of `plot_observatory`; call it under `style.context()`."""
    found = as_record(Observatory, result)
    if not found.models:
        raise ValueError("there are no models: there is nothing to draw")
    names = [_name(observed.model, observed.bos) for observed in found.models]
    shown = [
        (name, kind)
        for name, kind in METRICS.items()
        if kind.drawn and any(_value(observed.metrics.get(name)) is not None for observed in found.models)
    ]
    left = max(style.text_width(name, style.SMALL) for name in names) + 0.25
    rows = -(-len(shown) // _COLUMNS)
    height = _ROW * len(names) + 0.1
    text = words.shorten(words.plain(words.short_name(found.text)), 24)
    source = f"{words.count(found.windows, 'window')} of {words.count(found.context, 'token')} of {text}"
    note = f"{source} · bars: 95 % intervals; grey: by chance; filled: with BOS"
    header = style.Header(_title(found), [note], WIDTH)
    made = style.figure(WIDTH, header.height + rows * (height + _GAP) + 0.1)
    header.draw(made)
    room = (WIDTH - left - style.MARGIN - 0.2 * _COLUMNS) / _COLUMNS
    for index, (name, kind) in enumerate(shown):
        column, row = index % _COLUMNS, index // _COLUMNS
        x, base = left + column * (room + 0.2), 0.35 + (rows - 1 - row) * (height + _GAP)
        metrics = [observed.metrics.get(name) for observed in found.models]
        _panel(made, (x, base, room, height), kind, metrics, [observed.bos for observed in found.models])
        if column == 0:
            for place, label in zip(_places(len(names)), names, strict=True):
                y = base + height * place
                style.text(made, left - 0.12, y, label, size=style.SMALL, ha="right", va="center_baseline")
    return made


def _places(count: int) -> np.ndarray:
    """Where the lines of a panel are, from 0 to 1, the first at the top."""
    return 1 - (np.arange(count) + 0.5) / count


def _value(metric: Metric | None) -> float | None:
    return None if metric is None else _finite(metric.value)


def _panel(
    made: Any,
    where: tuple[float, float, float, float],
    kind: MetricKind,
    metrics: Sequence[Metric | None],
    filled: Sequence[bool],
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

    x, base, width, height = where
    ax = style.axes(made, x, base, width, height)
    ax.set_yticks([])
    ax.set_ylim(0, 1)
    ax.spines["left"].set_visible(False)
    if kind.logarithmic:
        ax.set_xscale("log")
    low, high = np.inf, 0.0
    for place, metric, full in zip(_places(len(metrics)), metrics, filled, strict=True):
        ax.axhline(place, color=style.RULE, linewidth=0.5, zorder=0)
        value = _value(metric)
        if metric is None or value is None or (kind.logarithmic and value <= 0):
            continue
        ends = [value if end is None or not np.isfinite(end) else end for end in (metric.low, metric.high)]
        ax.plot(ends, [place, place], color=style.MASSIVE, linewidth=1.2)
        fill = style.MASSIVE if full else style.PAPER
        ax.plot([value], [place], "o", markersize=4.5, color=style.MASSIVE, markerfacecolor=fill, clip_on=False)
        chance = _finite(metric.chance)
        if chance is not None and (chance > 0 or not kind.logarithmic):
            ax.plot([chance], [place], "|", markersize=8, color=style.GREY, clip_on=False)
        chance = chance or value
        low, high = min(low, value, chance), max(high, ends[1], chance)
    if kind.logarithmic:
        low, high = (low / 2, high * 2) if high > 0 else (1.0, 10.0)
        ax.set_xlim(low, high)
        most = _TICKS if low >= 1e-4 and high < 1e9 else 2  # powers of ten take more room
        ax.xaxis.set_major_locator(FixedLocator(logarithmic_ticks(low, high, most)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_xlim(0, 1.1 * high or 1.0)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.on_axis(value)))
    style.text(made, x, base + height + 0.06, kind.words, size=style.SMALL, weight="bold")


def _short(value: float) -> str:
    """A tick: 50, 20k, 5M, 10⁹."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if unit <= value < 1e9:
            return f"{value / unit:g}{name}"
    return words.on_axis(value)


def _name(model: str, bos: bool) -> str:
    short = words.shorten(words.plain(words.short_name(model)), 26)
    return f"{short}{' + BOS' if bos else ''}"


def _title(found: Observatory) -> str:
    """The finding of all."""
    massive = sum(observed.census.massive for observed in found.models)
    rates = [observed.census.sink_rate for observed in found.models]
    low, high = (f"{100 * rate:.0f}" for rate in (min(rates), max(rates)))
    between = f"a sink rate of {high} %" if low == high else f"sink rates from {low} to {high} %"
    return f"{massive} of {words.count(len(found.models), 'observation')} with massive activations; {between}"
