"""Charts one above the other over one x axis, each curve named at its right end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from massive_jax.report import style, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, GAP = 7.0, 0.3  # inches: the figure, and what is between charts
_LEFT, _BOTTOM = 0.95, 0.45
_LEADER = 0.3  # from the axes to a name


class Curve(NamedTuple):
    """Describes one curve.

    Attributes:
      x, y: numbers; a y that is not finite, or not positive on a logarithmic axis, is a gap.
      colour: of the curve and its name.
      name: what is written at its end; "" for nothing.
      width: of the line, in points.
      marker: size of the marks, in points; 0 for none.
      style: of the line, as matplotlib writes it.
    """

    x: np.ndarray
    y: np.ndarray
    colour: Any
    name: str = ""
    width: float = 1.2
    marker: float = 0.0
    style: str = "-"


class Band(NamedTuple):
    """Describes a shaded band behind the curves, from `low` to `high`: an interval."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: Any


class Chart(NamedTuple):
    """Describes one chart.

    Attributes:
      name: of its y axis.
      logarithmic: whether that is; otherwise it begins at 0, or below it where there is something.
      curves: what is drawn.
      bands: what is shaded behind them.
    """

    name: str
    logarithmic: bool
    curves: Sequence[Curve]
    bands: Sequence[Band] = ()


def draw_charts(
    title: str,
    note: str,
    charts: Sequence[Chart],
    *,
    height: float,
    x_label: str,
    x_limits: tuple[float, float] | None,
    x_ticks: Sequence[float] | None = None,
    x_mark: float | None = None,
) -> "Figure":
    """Draws the figure; call it under `style.context()`.

    Args:
      title: the finding.
      note: what it holds for.
      charts: from top to bottom.
      height: of each chart, in inches.
      x_label: of the shared axis.
      x_limits: its ends; None for those of the data.
      x_ticks: where its ticks are; None for matplotlib's choice.
      x_mark: where a vertical line is; None for nowhere.
    """
    header = style.Header(title, [note], WIDTH)
    made = style.figure(WIDTH, _BOTTOM + len(charts) * (height + GAP) - GAP + header.height)
    header.draw(made)
    right = max(style.text_width(curve.name, style.SMALL) for chart in charts for curve in chart.curves)
    edge = WIDTH - right - _LEADER - style.MARGIN
    for row, chart in enumerate(charts):
        base = _BOTTOM + (len(charts) - 1 - row) * (height + GAP)
        ax = draw_chart(made, chart, (_LEFT, base, edge - _LEFT, height), x_limits=x_limits, x_ticks=x_ticks)
        if x_mark is not None:
            ax.axvline(x_mark, color=style.MASSIVE, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
        style.text(made, style.MARGIN, base + height / 2, chart.name, rotation=90, va="center", size=style.SMALL)
        if row < len(charts) - 1:
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xlabel(x_label)
    return made


def draw_chart(
    made: "Figure",
    chart: Chart,
    box: tuple[float, float, float, float],
    *,
    x_limits: tuple[float, float] | None,
    x_ticks: Sequence[float] | None = None,
) -> Any:
    """Draws one chart into a figure, with its curves' names to the right of it, and gives its axes.

    Args:
      made: the figure.
      chart: what is drawn; its own name is left to who calls.
      box: left, bottom, width and height of the axes, in inches.
      x_limits: as for `draw_charts`.
      x_ticks: as for `draw_charts`.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    _, logarithmic, curves, bands = chart
    left, base, width, height = box
    ax = style.axes(made, *box)
    if logarithmic:
        ax.set_yscale("log")
    drawn = [np.where(np.isfinite(c.y) & ((c.y > 0) | (not logarithmic)), c.y, np.nan) for c in curves]
    for band in bands:
        ax.fill_between(band.x, band.low, band.high, color=band.colour, alpha=0.2, linewidth=0)
    for curve, y in zip(curves, drawn, strict=True):
        ax.plot(
            curve.x,
            y,
            color=curve.colour,
            linewidth=curve.width,
            linestyle=curve.style,
            marker="o" if curve.marker else "",
            markersize=curve.marker,
        )
    if x_limits is not None:
        ax.set_xlim(*x_limits)
    if logarithmic:
        low, high = ax.get_ylim()
        ax.set_ylim(low, high)  # fixed here: what follows asks where curves end
        number_logarithmic(ax.yaxis, low, high)
    else:
        all_of_it = [*drawn, *(bound for band in bands for bound in (band.low, band.high))]
        top = 1.05 * max((np.nanmax(y, initial=0.0) for y in all_of_it), default=0.0)
        bottom = 1.05 * min((np.nanmin(y, initial=0.0) for y in all_of_it), default=0.0)
        top = max(1e-3, top) if top > 0 or bottom < 0 else 1.0
        nil = 1e-9 * (top - bottom)  # a tick at 0 may be off by a rounding
        ax.set_ylim(bottom, top)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: words.on_axis(v if abs(v) > nil else 0.0)))
        if bottom < 0:
            ax.axhline(0, color=style.RULE, linewidth=0.6, zorder=0)
    if x_ticks is None and x_limits is None and len(points := np.unique([x for c in curves for x in c.x])) == 1:
        ax.set_xlim(points[0] - 0.5, points[0] + 0.5)
        x_ticks = points.tolist()
    whole = MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True)
    ax.xaxis.set_major_locator(whole if x_ticks is None else FixedLocator(list(x_ticks)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: words.on_axis(v)))
    if not any(np.isfinite(y).any() for y in drawn):
        middle = {"ha": "center", "va": "center", "size": style.SMALL, "color": style.GREY}
        style.text(made, left + width / 2, base + height / 2, "No finite value to draw", **middle)
    _name_ends(made, ax, [(c, y) for c, y in zip(curves, drawn, strict=True) if c.name], left + width, base, height)
    return ax


def number_logarithmic(axis: Any, low: float, high: float, most: int = 12, *, powers: bool = False) -> None:
    """Numbers a logarithmic axis from `low` to `high` at two places or more, `most` at most.

    Small or large numbers are `powers` of ten, as all are then.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    ticks = logarithmic_ticks(low, high, most)
    powers = powers or not 1e-4 <= ticks[0] <= ticks[-1] < 1e6
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: words.on_axis(value, powers)))
    axis.set_minor_formatter(NullFormatter())


def logarithmic_ticks(low: float, high: float, most: int = 12) -> list[float]:
    """Gives values to label between `low` and `high`: powers of ten, or rounder numbers where those are few.

    There are two or more, and `most` at most.
    """
    from matplotlib.ticker import MaxNLocator

    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    if high / low > 100:
        ticks, most = 10.0**decades, min(most, 8)
    elif high / low > 5:
        ticks = (10.0 ** decades[:, None] * np.array([1, 2, 5])).ravel()
    else:
        ticks = np.asarray(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    inside = [float(tick) for tick in ticks if low <= tick <= high]
    return inside[:: -(-len(inside) // most) or 1]


def _name_ends(
    made: Any, ax: Any, curves: Sequence[tuple[Curve, np.ndarray]], x: float, base: float, height: float
) -> None:
    """Writes the names of curves beside their last points, apart from each other."""
    ends = [(curve, np.flatnonzero(np.isfinite(y))[-1:], y) for curve, y in curves]
    ends = [(curve, last, y) for curve, last, y in ends if last.size]
    targets = [style.inches(made, ax, curve.x[last[0]], y[last[0]])[1] for curve, last, y in ends]
    places = style.spread(targets, [style.text_height(style.SMALL)] * len(ends), base, base + height)
    for (curve, _, _), target, place in zip(ends, targets, places, strict=True):
        style.line(made, [x + 0.03, x + 0.2], [target, place], color=curve.colour, linewidth=0.7)
        style.text(made, x + 0.25, place, curve.name, color=curve.colour, size=style.SMALL, va="center_baseline")
