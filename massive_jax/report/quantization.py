"""What quantisation costs by setting and method: the tables, and what absorbing BOS buys as a figure."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from massive_jax.analysis import Interval
from massive_jax.quantize import Outcome
from massive_jax.report import style, words
from massive_jax.report.curves import logarithmic_ticks, number_logarithmic
from massive_jax.report.records import as_record
from massive_jax.report.results import QuantizationOf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Given = QuantizationOf | Mapping[str, Any]
_Table = tuple[tuple[str, ...], list[tuple[str | None, ...]]]

WIDTH = 7.0
_LANE, _GAP, _BOTTOM, _TOP = 0.16, 0.09, 0.5, 0.24  # inches: of a method, between settings, of the axis, of its name
_LEGEND = 0.26
_BETWEEN = 0.22  # panels
_DECADES = 4  # below the largest cost
ABSORB = "absorb"
_UNITS = {
    "perplexity": "Nats a token above the unquantised model",
    "top1_agreement": "Divergence from the unquantised classes, nats an image",
    "cosine_similarity": "1 − cosine similarity with the unquantised features",
}
_SHORT = {"perplexity": "nats a token", "top1_agreement": "nats an image", "cosine_similarity": "of similarity"}
_SCORES = {
    "perplexity": "perplexity",
    "top1_agreement": "share of images whose most likely class stays",
    "cosine_similarity": "cosine similarity of features",
}


def plot_quantization(
    result: _Given,
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws what each setting costs after each method, on a log axis: without BOS absorbed, with it, and between.

    Args:
      result: what was measured, or what quantize.json holds.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def quantization_rows(result: _Given, *, scores: bool = False) -> _Table:
    """Gives the table of costs with intervals, or of `scores`: names of columns, and a row a setting and scales."""
    found = as_record(QuantizationOf, result).found
    methods = _once(outcome.method for outcome in found.outcomes)
    rows: list[tuple[str | None, ...]] = []
    for scales, setting in _once((outcome.scales, outcome.setting) for outcome in found.outcomes):
        by_method = {o.method: o for o in found.outcomes if (o.scales, o.setting) == (scales, setting)}
        its = [by_method.get(method) for method in methods]
        cells = [None if o is None else _written(o.score if scores else o.cost) for o in its]
        rows.append((setting, scales, *cells))
    return ("setting", "scales", *methods), rows


def outlier_rows(result: _Given) -> _Table:
    """Gives the table of the inputs' outliers, nothing rounded: names of columns, and a row an input and statistic."""
    found = as_record(QuantizationOf, result).found
    methods = _once(shape.method for shape in found.inputs)
    rows: list[tuple[str | None, ...]] = []
    for site in _once(shape.site for shape in found.inputs):
        its = {shape.method: shape for shape in found.inputs if shape.site == site}
        rows.append((site, "kurtosis", *(words.number(its[m].kurtosis, 3) if m in its else None for m in methods)))
        rows.append((site, "largest / median", *(words.number(its[m].ratio, 3) if m in its else None for m in methods)))
    return ("input", "in its worst block", *methods), rows


def quantization_title(result: _Given) -> str:
    """Says in a sentence what absorbing BOS buys, or what rounding costs."""
    given = as_record(QuantizationOf, result)
    found, model = given.found, words.model_name(given)
    unit = _SHORT[found.metric]
    first = found.outcomes[0]
    of = {(o.setting, o.method): o.cost.value for o in found.outcomes if o.scales == first.scales}
    settings = _once(o.setting for o in found.outcomes)
    setting = next((s for s in settings if "A" in s and "A16" not in s), first.setting)  # of rounded inputs
    where = f"{model}, {setting}, one scale a {first.scales}"
    pairs = {base: absorbed for base, absorbed in _pairs(found.outcomes).items() if absorbed}
    told = [base for base in ("plain", "rotate") if base in pairs and (setting, base) in of]
    if not told:
        name = _name(first.method)
        return f"{where}, {name}: {words.number(of[setting, first.method], 2)} {unit}"
    amounts = [
        f"{words.number(of[setting, base], 2)} to {words.number(of[setting, pairs[base] or base], 2)}" for base in told
    ]
    said = [f"{'alone' if b == 'plain' else 'after a rotation'} from {a}" for b, a in zip(told, amounts, strict=True)]
    return f"{where}: absorbing BOS takes the cost, {unit}, {', '.join(said)}"


def draw(result: _Given) -> "Figure":
    """Draws the figure of `plot_quantization`; call it under `style.context()`."""
    from matplotlib.ticker import NullLocator

    given = as_record(QuantizationOf, result)
    outcomes = given.found.outcomes
    scales, settings = (_once(getattr(o, name) for o in outcomes) for name in ("scales", "setting"))
    pairs = _pairs(outcomes)
    costs = {(o.scales, o.setting, o.method): o.cost for o in outcomes}
    low, high = _limits(list(costs.values()))

    header = style.Header(quantization_title(given), _notes(given, low), WIDTH)
    lanes = len(pairs) * _LANE + _GAP
    height = lanes * len(settings)
    legend = _LEGEND if any(pairs.values()) else 0
    made = style.figure(WIDTH, _BOTTOM + height + _TOP + legend + header.height)
    header.draw(made)
    names = [_name(base) for base in pairs]
    groups = max(style.text_width(s, style.BODY, "bold") for s in settings) + style.MARGIN + 0.12
    left = groups + max(style.text_width(name, style.SMALL) for name in names) + 0.1
    width = (WIDTH - left - style.MARGIN - _BETWEEN * (len(scales) - 1)) / len(scales)
    if legend:
        _draw_legend(made, left, _BOTTOM + height + _TOP + legend / 2)
    for i, kind in enumerate(scales):
        at = left + i * (width + _BETWEEN)
        ax = style.axes(made, at, _BOTTOM, width, height)
        ax.set_xscale("log")
        ax.set_xlim(low, high)
        ax.set_ylim(height, 0)
        ax.yaxis.set_major_locator(NullLocator())
        ax.spines["left"].set_visible(False)
        number_logarithmic(ax.xaxis, low, high)
        for tick in logarithmic_ticks(low, high):
            ax.axvline(tick, color=style.RULE, linewidth=0.5, zorder=0)
        style.text(made, at, _BOTTOM + height + 0.07, f"One scale a {kind}", size=style.SMALL, weight="bold")
        for row, setting in enumerate(settings):
            if row % 2 == 0:
                ax.axhspan(row * lanes, (row + 1) * lanes, color=style.FLOOR, linewidth=0, zorder=-1)
            for lane, (base, absorbed) in enumerate(pairs.items()):
                y = row * lanes + _GAP / 2 + (lane + 0.5) * _LANE
                _draw_lane(ax, y, costs.get((kind, setting, base)), costs.get((kind, setting, absorbed or "")), low)
                if i == 0:
                    options = {"va": "center_baseline", "ha": "right", "size": style.SMALL, "color": style.GREY}
                    style.text(made, left - 0.1, _BOTTOM + height - y, names[lane], **options)
            if i == 0:
                y = _BOTTOM + height - row * lanes - _GAP / 2 - 0.5 * _LANE
                style.text(made, style.MARGIN, y, setting, va="center_baseline", weight="bold")
    middle = left + (WIDTH - style.MARGIN - left) / 2
    style.text(made, middle, style.MARGIN, f"{_UNITS[given.found.metric]} (log scale)", ha="center", va="bottom")
    return made


def _draw_lane(ax: Any, y: float, base: Interval | None, absorbed: Interval | None, low: float) -> None:
    """A method without BOS absorbed, hollow, with it, full, and the way from one to the other."""
    both = [cost for cost in (base, absorbed) if cost is not None and math.isfinite(cost.value)]
    if len(both) == 2:
        ends = [max(cost.value, low) for cost in both]
        ax.plot(ends, [y, y], color=style.MASSIVE, linewidth=2.6, alpha=0.35, solid_capstyle="butt", zorder=1)
    for cost, full in ((base, False), (absorbed, True)):
        if cost is None or not math.isfinite(cost.value):
            continue
        colour = style.MASSIVE if full else style.INK
        if cost.low is not None and cost.high is not None and cost.high > low:
            ends = [max(cost.low, low), cost.high]
            ax.plot(ends, [y, y], color=colour, linewidth=0.9, solid_capstyle="butt", zorder=2)
        marker = "o" if cost.value > low else "<"
        face = colour if full else style.PAPER
        ax.plot(
            max(cost.value, low), y, marker, color=colour, markerfacecolor=face, markersize=4.2, markeredgewidth=0.9,
            clip_on=False, zorder=3,
        )  # fmt: skip


def _draw_legend(made: Any, x: float, y: float) -> None:
    for text, colour, face in (
        ("BOS in front", style.INK, style.PAPER),
        ("BOS absorbed into an attention bias", style.MASSIVE, style.MASSIVE),
    ):
        style.line(
            made, [x + 0.04], [y], marker="o", color=colour, markerfacecolor=face, markersize=4.2, markeredgewidth=0.9
        )
        style.text(made, x + 0.14, y, text, size=style.SMALL, va="center_baseline", color=colour)
        x += 0.14 + style.text_width(text, style.SMALL) + 0.3


def _limits(costs: Sequence[Interval]) -> tuple[float, float]:
    values = [x for cost in costs for x in (cost.value, cost.low, cost.high) if x is not None and math.isfinite(x)]
    high = max([*values, 0.0])
    if high <= 0:
        return 1e-4, 1.0
    least = min((cost.value for cost in costs if 0 < cost.value <= high), default=high)
    return max(least / 1.6, high * 10.0**-_DECADES), high * 1.3


def _notes(given: QuantizationOf, low: float) -> list[str]:
    found = given.found
    before = f"Unquantised: {_SCORES[found.metric]} {_written(found.unquantised)}." if given.count is None else ""
    over = "windows" if given.count is None else "images"
    below = "A triangle at the left edge: less, or nothing." if any(o.cost.value <= low for o in found.outcomes) else ""
    return [
        words.conditions(given),
        f"{before} Lines: 95 %, bootstrap over {over}, paired. {below}".strip(),
        "W weights, A what enters linear maps, KV keys and values, with their bits.",
    ]


def _pairs(outcomes: Sequence[Outcome]) -> dict[str, str | None]:
    """Method without "absorb" -> the same with it, None where that was not measured."""
    methods = _once(outcome.method for outcome in outcomes)
    parts = {method: frozenset(method.split("+")) - {"plain"} for method in methods}
    with_it = {parts[method] - {ABSORB}: method for method in methods if ABSORB in parts[method]}
    found = {method: with_it.pop(parts[method], None) for method in methods if ABSORB not in parts[method]}
    alone = {"+".join(sorted(rest)) or "plain": method for rest, method in with_it.items()}
    return {**found, **alone}


def _name(method: str) -> str:
    named = {"plain": "plain", "zero": "massive zeroed", "apart": "massive apart", "super": "super weight kept"}
    named |= {"rotate": "rotated", "smooth": "smoothed", ABSORB: "BOS absorbed"}
    return " + ".join(named.get(part, part) for part in method.split("+"))


def _written(interval: Interval) -> str:
    value = words.number(interval.value, 3)
    if interval.low is None or interval.high is None:
        return value
    return f"{value} ({words.number(interval.low, 3)} to {words.number(interval.high, 3)})"


def _once(items: Any) -> list[Any]:
    return list(dict.fromkeys(items))
