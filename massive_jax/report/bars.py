"""Bars side by side, each with its number, its interval and its draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from massive_jax.report import style, words

WIDTH, BAR = 7.0, 0.36  # inches: of the figure, of a bar with its share of the gaps

# What is measured -> the label of its axis.
METRICS = {
    "perplexity": "Perplexity (log scale; lower is better)",
    "accuracy": "Accuracy",
    "top1_agreement": "Images whose most likely class stays",
    "cosine_similarity": "Cosine similarity of the features with the unedited ones",
}


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


def draw_bars(made: Any, rows: Sequence[Row], original: float, metric: str, bottom: float, height: float) -> None:
    """Draws a bar a row, with its number, interval and draws, across a figure.

    Args:
      made: the figure.
      rows: from top to bottom.
      original: what the others are compared with; a dashed line.
      metric: what is drawn, of `METRICS`; the axis of a perplexity is logarithmic.
      bottom: where the axes begin, in inches from the figure's lower edge.
      height: of the axes, in inches.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    logarithmic = metric == "perplexity"

    def along(value: float) -> float:
        return max(0.0, math.log10(value) if value > 0 else 0.0) if logarithmic else value

    names = [words.shorten(words.plain(row.name), 34) for row in rows]
    left = max(map(style.text_width, names)) + style.MARGIN + 0.12
    numbers = [words.number(row.value) for row in rows]
    changes = [change(row.value, original) if logarithmic and i else "" for i, row in enumerate(rows)]
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
            open_bar = {"facecolor": style.PAPER, "edgecolor": row.colour, "linewidth": 1, "linestyle": "--"}
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


def times(ratio: float) -> str:
    """Writes a ratio with three digits."""
    return words.number(float(f"{ratio:.3g}"), 3)


def change(value: float, original: float) -> str:
    """How a perplexity compares with the original."""
    if not (math.isfinite(value) and math.isfinite(original)):
        return ""
    if value >= 2 * original:
        return f"× {times(value / original)}"
    percent = 100 * (value / original - 1)
    if abs(percent) < 0.005:
        return "± 0.00 %"
    return f"{'+' if percent > 0 else '−'}{abs(percent):.{2 if abs(percent) < 1 else 1}f} %"
