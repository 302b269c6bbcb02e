"""What removing massive activations does to the perplexity, or to a vision model's agreement with itself."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from massive_jax.probe.operations import in_words
from massive_jax.report import style, words
from massive_jax.report.layer_sweep import draw_sweep
from massive_jax.report.records import as_record
from massive_jax.report.results import AloneEffect, DrawnEffect, Intervention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, BAR, SWEEP = 7.0, 0.36, 2.3  # inches; BAR is a bar with its share of the gaps, SWEEP the curves' height

# What is measured -> the label of its axis.
METRICS = {
    "perplexity": "Perplexity (log scale; lower is better)",
    "top1_agreement": "Images whose most likely class stays",
    "cosine_similarity": "Cosine similarity of the features with the unedited ones",
}
_CONTROLS = {
    "median_sized": "Entries of median size",
    "same_position": "Same positions, other dims",
    "same_dim": "Same dims, other positions",
}
_COLOURS = {"original": style.GREY, "zero": style.MASSIVE, "mean": style.BLUE}


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes a bar of the figure, and a row of the table.

    Attributes:
      key: of the intervention, as results have it; with what it is done to where that is something else.
      name: the same in words.
      value: what the model scores.
      low, high: the interval of it; None where there is none.
      draws: what it is the mean of, where it is of several draws.
      colour: of the bar.
    """

    key: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    draws: tuple[float, ...] = ()
    colour: str = "#8C939B"

    @property
    def interval(self) -> str:
        """Gives the interval in words; "–" where there is none."""
        if self.low is None or self.high is None:
            return "–"
        return f"{words.number(self.low)} to {words.number(self.high)}"


def intervention_rows(result: Intervention) -> list[Row]:
    """Lists what was measured: the operations, below the strongest each place alone, then the controls."""
    rows, drawn = [], _draws(result)
    for name, value in result.measured.items():
        op = name.removeprefix("random_")
        if name != op and op in drawn:
            continue  # the first of several draws, which have a row of their own
        effect = result.effects.get(name)
        interval = (effect.low, effect.high) if effect is not None else (None, None)
        rows.append(Row(name, _name(name), value, *interval, colour=_COLOURS.get(name, Row.colour)))
        for one in result.alone:
            if name == one.operation:
                alone = one.effects[name]
                place = f"{str(one.position).replace('_', ' ')}, dim {one.dim}"
                colour = _COLOURS.get(name, Row.colour)
                names = (f"{name} at {one} only", f"only position {place}")
                rows.append(Row(*names, alone.value, alone.low, alone.high, colour=colour))
    for op, kinds in drawn.items():
        for kind, found in kinds:
            times = f" × {len(found.values)}" if len(found.values) > 1 else ""
            names = (f"{op} at {kind.replace('_', ' ')}{times}", f"{_CONTROLS.get(kind, kind)}{times}")
            rows.append(Row(*names, found.mean, found.low, found.high, found.values))
    return rows


def _draws(result: Intervention) -> dict[str, list[tuple[str, DrawnEffect]]]:
    """Operation -> the controls that were drawn for it, by kind; none where there is the usual one only."""
    found: dict[str, list[tuple[str, DrawnEffect]]] = {}
    for control in result.control_draws:
        for op, effect in control.effects.items():
            found.setdefault(op, []).append((control.kind, effect))
    return {op: kinds for op, kinds in found.items() if len(kinds) > 1 or len(kinds[0][1].values) > 1}


def about_intervals(result: Intervention) -> str:
    """Says in a sentence what the intervals are of."""
    what = "windows" if result.metric == "perplexity" else "images"
    if result.bootstrap_draws is None:
        return f"No intervals over {what}: there is only one of them, or they were not measured."
    drawn = "; of controls, of their draws" if _draws(result) else ""
    return f"Intervals: 95 %, {result.bootstrap_draws:,} bootstrap draws of the {what}{drawn}."


def plot_intervention(result: Intervention | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws perplexity, or what there is in its place, as bars, one an intervention, each with its number.

    The axis of a perplexity is logarithmic and starts at 1, the least a perplexity can be, so a bar's length is the
    cross entropy. A perplexity that is not finite is an open bar to the end of the axis. A thin line is the 95 %
    interval; a dot is one of several draws. Where layers were edited one by one, curves below say what each does.

    Args:
      result: what the model is judged by under each operation ("original" is what the others are compared with), or
        what intervene.json holds.
      path: where the figure goes: .png, .pdf or .svg. Written whole or not at all.

    Raises:
      ValueError: there is no perplexity at all, or one below 1; or another suffix.
    """
    with style.context():
        style.save(draw(result), path)


def draw(result: Intervention | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_intervention`; call it under `style.context()`."""
    intervention = as_record(Intervention, result)
    metric, values = intervention.metric, intervention.measured
    logarithmic = metric == "perplexity"
    if not values:
        raise ValueError(f"the {metric} is empty: there is nothing to draw")
    wrong = {name: value for name, value in values.items() if value < 0.999}
    if wrong and logarithmic:
        raise ValueError(f"a perplexity is at least 1, but there is {wrong}")
    rows = intervention_rows(intervention)
    header = style.Header(*_words(intervention), WIDTH)
    below = SWEEP if intervention.sweep else 0.0
    bottom, height = below + 0.45, BAR * len(rows) + 0.1
    made = style.figure(WIDTH, bottom + height + header.height)
    header.draw(made)
    _draw_bars(made, rows, values.get("original", math.nan), metric, bottom, height)
    if intervention.sweep:
        draw_sweep(made, intervention, {name: _name(name) for name in values}, _COLOURS, SWEEP)
    return made


def _draw_bars(made: Any, rows: Sequence[Row], original: float, metric: str, bottom: float, height: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    logarithmic = metric == "perplexity"

    def along(value: float) -> float:
        return max(0.0, math.log10(value) if value > 0 else 0.0) if logarithmic else value

    names = [words.shorten(words.plain(row.name), 34) for row in rows]
    left = max(map(style.text_width, names)) + style.MARGIN + 0.12
    numbers = [words.number(row.value) for row in rows]
    changes = [_change(row.value, original) if logarithmic and i else "" for i, row in enumerate(rows)]
    beside = [
        style.text_width(number) + (style.text_width(change, style.SMALL) + 0.1 if change else 0) + 0.14
        for number, change in zip(numbers, changes, strict=True)
    ]
    # The axis ends with the longest bar, interval or draw; the numbers have their room to the right of it.
    room = WIDTH - left - style.MARGIN - max(beside)
    reach = [
        max((along(x) for x in (row.value, row.high, *row.draws) if x is not None and math.isfinite(x)), default=0.0)
        for row in rows
    ]
    finite = [math.isfinite(row.value) for row in rows]
    end = max([*reach, 1.0]) * (1 if all(finite) else 1.2)
    ax = style.axes(made, left, bottom, room, height)
    ax.set_xlim(0, end)
    ax.set_ylim(len(rows) - 0.5 + 0.1, -0.5 - 0.1)
    ax.spines["left"].set_visible(False)
    for i, row in enumerate(rows):
        length = along(row.value) if finite[i] else end
        if finite[i]:
            ax.barh(i, length, height=0.66, color=row.colour, linewidth=0)
            _draw_spread(ax, i, row, along)
        else:
            open_bar = {"facecolor": "white", "edgecolor": row.colour, "linewidth": 1, "linestyle": "--"}
            ax.barh(i, length, height=0.66, clip_on=False, **open_bar)
        y = bottom + height * (len(rows) - 0.5 + 0.1 - i) / (len(rows) + 0.2)
        x = left + room * max(length, reach[i]) / end + 0.07
        style.text(made, left - 0.08, y, names[i], ha="right", va="center_baseline")
        style.text(made, x, y, numbers[i], va="center_baseline")
        if changes[i]:
            x += style.text_width(numbers[i]) + 0.1
            style.text(made, x, y, changes[i], size=style.SMALL, color=style.GREY, va="center_baseline")
    ax.axvline(0, color=style.GREY, linewidth=0.8)
    if math.isfinite(original):
        ax.axvline(along(original), color=style.INK, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)

    ax.yaxis.set_major_locator(NullLocator())
    ax.set_xlabel(METRICS[metric])
    if not logarithmic:
        return
    top = math.floor(end)
    small = top <= 4
    step = 1 if top <= 10 else math.ceil(top / 10)
    ax.xaxis.set_major_locator(FixedLocator(range(0, top + 1, step)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{10**d:,.0f}" if small else words.power(int(d))))
    minor = [d + math.log10(k) for d in range(top + 1) for k in range(2, 10)] if top <= 12 else []
    ax.xaxis.set_minor_locator(FixedLocator([m for m in minor if m <= end]))


def _draw_spread(ax: Any, y: int, row: Row, along: Callable[[float], float]) -> None:
    """The interval of a bar, and its draws."""
    if row.low is not None and row.high is not None and math.isfinite(row.high):
        ends = [along(row.low), along(row.high)]
        ax.plot(ends, [y, y], color=style.INK, linewidth=0.9, solid_capstyle="butt", clip_on=False)
        ax.plot(
            ends, [y, y], color=style.INK, linestyle="", marker="|", markersize=6, markeredgewidth=0.9, clip_on=False
        )
    finite = [along(value) for value in row.draws if math.isfinite(value)]
    if len(row.draws) > 1:
        ax.plot(finite, [y + 0.2] * len(finite), "o", color=style.INK, markersize=1.6, markeredgewidth=0, clip_on=False)


def _name(name: str) -> str:
    """An intervention in words: "random_set=5" is "Random entries set to 5"."""
    done = in_words(name.removeprefix("random_"))
    if done is None:
        done = name.replace("_", " ")
    elif name.startswith("random_"):
        done = f"random entries {done}"
    return done[:1].upper() + done[1:]


def _times(ratio: float) -> str:
    return words.number(float(f"{ratio:.3g}"), 3)


def _change(value: float, original: float) -> str:
    """How a perplexity compares with the original."""
    if not (math.isfinite(value) and math.isfinite(original)):
        return ""
    if value >= 2 * original:
        return f"× {_times(value / original)}"
    percent = 100 * (value / original - 1)
    if abs(percent) < 0.005:
        return "± 0.00 %"
    return f"{'+' if percent > 0 else '−'}{abs(percent):.{2 if abs(percent) < 1 else 1}f} %"


def _words(found: Intervention) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    notes = [_places(found), words.conditions(found)]
    return _title(found, words.model_name(found)), [*notes, about_intervals(found)] if found.effects else notes


def _title(found: Intervention, model: str) -> str:
    zero, original = found.measured.get("zero"), found.measured.get("original", math.nan)
    if zero is None:
        what = "Perplexity" if found.metric == "perplexity" else "Features"
        return f"{what} of {model} under interventions"
    edited, also, one = words.count(len(found.sites), "activation"), "", found.carrier
    if one is not None and one.operation == "zero":
        edited, all_of_them = _named(one), zero
        zero = one.effects["zero"].value
        together = f"× {_times(all_of_them / original)}" if found.metric == "perplexity" else f"{all_of_them:.3f}"
        others = "other" if len(found.sites) == 2 else f"{len(found.sites) - 1} others"
        also = f" (with the {others} too: {together})"
    if found.metric == "top1_agreement":
        return f"{model}: zeroing {edited}, {100 * zero:.1f} % of the classes stay"
    if found.metric == "cosine_similarity":
        return f"{model}: zeroing {edited}, cosine {zero:.3f}"
    if not math.isfinite(original):
        return f"Perplexity of {model} under interventions"
    if not math.isfinite(zero):
        finding = "makes it infinite" if math.isinf(zero) else "leaves it undefined"
    elif zero >= 2 * original:
        finding = f"multiplies it by {_times(zero / original)}"
    elif abs(zero / original - 1) < 0.01:
        finding = "changes it by less than 1 %"
    else:
        finding = f"changes it by {_change(zero, original)}"
    return f"Perplexity of {model}: zeroing {edited} {finding}{also}"


def _named(place: AloneEffect) -> str:
    return f"dim {place.dim} of position {str(place.position).replace('_', ' ')} alone"


def _places(found: Intervention) -> str:
    """Where was edited; with few places there is room for the values."""
    places: dict[str, list[str]] = {}
    for site in found.sites:
        mean = f" (mean {words.number(site.value_mean, 3)})" if len(found.sites) <= 6 else ""
        places.setdefault(str(site.position).replace("_", " "), []).append(f"{site.dim}{mean}")
    listed = [
        f"position {words.plain(position)}: dim{'s' * (len(dims) > 1)} {', '.join(dims[:6])}"
        + (f" and {len(dims) - 6} more" if len(dims) > 6 else "")
        for position, dims in places.items()
    ]
    if not listed:
        return "No place was edited"
    more = f"; and {len(listed) - 4} more positions" if len(listed) > 4 else ""
    at = f"every layer (found at layer {found.found_at})" if found.layer == "all" else f"layer {found.layer}"
    return f"Edited at {at}, " + "; ".join(listed[:4]) + more
