"""Variants of a training: sinks against spikes, how the spikes emerged, and the table."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.analysis import SINK, SINK_OF_HEADS, SPIKE_RATIO, emergence_curve
from massive_jax.report import style, words
from massive_jax.report.curves import Chart, Curve, draw_chart, number_logarithmic
from massive_jax.report.records import as_record
from massive_jax.report.results import Bounds, VariantResult, Variants

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Box = tuple[float, float, float, float]  # left, bottom, right, top, in inches
_Point = tuple[float, float, str, str]  # x, y in inches, name, colour
_Given = Variants | Mapping[str, Any]

WIDTH, HEIGHT = 7.0, 4.6  # inches: of a figure, of the axes of sinks against spikes
_LEFT, _BOTTOM = 0.75, 0.5
_COLUMNS, _ROW, _GAP = 4, 1.05, 0.34  # of the curves: charts a row, their height, what is between rows
_CROWD = 4  # points whose names are put in a column
_KINDS = {
    "with a sink and a spike": (True, True),
    "with a sink only": (True, False),
    "with a spike only": (False, True),
    "with neither": (False, False),
}
_LEAST = 1.0  # of the ratios that are drawn: nothing is below the median


def plot_variants(
    result: _Given,
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws each variant as a point, heads with a sink against largest over median, and its seeds as small ones.

    Heads of the middle block that has most of them. The lines are what is called a sink, and what a spike.

    Args:
      result: variants, or what emergence_variants.json holds.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there are no variants; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def plot_variant_curves(
    result: _Given,
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws a chart a variant: the first token's largest over the median by step, its seeds, and the curve through it.

    Args:
      result: as for `plot_variants`.
      path: likewise.
      axes: likewise.
      dark: likewise.

    Returns:
      The figure.

    Raises:
      ValueError: there are no variants; or another suffix.
    """
    return style.plot(lambda: draw_curves(result), path, axes=axes, dark=dark)


def variant_rows(result: _Given) -> tuple[tuple[str, ...], list[tuple[str | None, ...]]]:
    """Gives the table of variants: the names of its columns, and a row a variant, numbers with their intervals."""
    found = _checked(result)
    columns = (
        *("variant", "sink", "spike", "heads with a sink", "in one block", "attention on it", "on slots"),
        *("largest / median", "of others", "of a typical one", "kurtosis", "loss", "int8 adds", "R²", "seeds"),
    )
    rows = []
    for variant in found.variants:
        mean = variant.means.get
        curve = variant.curve
        rows.append(
            (
                variant.name,
                *(None if verdict is None else ("no", "yes")[verdict] for verdict in (variant.sink, variant.spike)),
                *(_share(mean(name)) for name in ("sink_heads", "block_heads", "first_share", "slot_share")),
                *(_number(mean(name), 3) for name in ("ratio", "others_ratio", "typical_ratio", "kurtosis")),
                *(_number(mean(name), 4) for name in ("loss", "int8_rise")),
                None if curve is None or curve.r_squared is None else f"{curve.r_squared:.3f}",
                _seeds(variant),
            )
        )
    return columns, rows


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """Writes a table as Markdown, numbers to the right; what there is not is a dash."""
    right = [any(row[i] and row[i][0] in "−0123456789" for row in rows) for i in range(len(columns))]  # type: ignore[index]
    lines = [columns, ["---:" if side else "---" for side in right], *rows]
    return "".join(f"| {' | '.join('–' if cell is None else cell for cell in line)} |\n" for line in lines)


def draw(result: _Given) -> "Figure":
    """Draws the figure of `plot_variants`; call it under `style.context()`."""
    found = _checked(result)
    shown = [variant for variant in found.variants if variant.sink is not None]
    verdicts = [(variant.sink, variant.spike) for variant in shown]
    said = [f"{verdicts.count(kind)} {name}" for name, kind in _KINDS.items() if kind in verdicts]
    title = f"Of {words.count(len(shown), 'variant')}: {', '.join(said)}" if said else _no_end(found)
    lost = [variant.name for variant in found.variants if variant.sink is None]
    notes = [
        _about(found),
        "Large points: means over seeds, small ones: seeds; each of the middle block with most. Lines: half of its "
        f"heads give the first token more than {SINK:g} of their attention; that token's largest is {SPIKE_RATIO:g} "
        "times the median.",
        f"Without a result, as every training diverged: {', '.join(lost)}." if lost else "",
    ]
    header = style.Header(title, notes, WIDTH)
    made = style.figure(WIDTH, _BOTTOM + HEIGHT + header.height)
    header.draw(made)
    width = WIDTH - _LEFT - style.MARGIN
    ax = style.axes(made, _LEFT, _BOTTOM, width, HEIGHT)
    ratios = [one.ratio for variant in shown for one in variant.trainings if one.ratio and math.isfinite(one.ratio)]
    low = min([*ratios, SPIKE_RATIO / 10], default=_LEAST) / 1.6
    high = max([*ratios, SPIKE_RATIO * 3]) * 1.6
    ax.set_yscale("log")
    ax.set_xlim(-0.04, 1.04)
    ax.set_ylim(low, high)
    _number_axes(ax, low, high)
    line = {"color": style.GREY, "linewidth": 0.8, "linestyle": (0, (4, 2)), "zorder": 0}
    ax.axvline(SINK_OF_HEADS, **line)
    ax.axhline(SPIKE_RATIO, **line)
    ax.set_xlabel("Share of a block's heads with a sink on the first token")
    style.text(
        made, style.MARGIN, _BOTTOM + HEIGHT / 2, "First token's largest / median", rotation=90, va="center",
        size=style.BODY,
    )  # fmt: skip

    def place(x: float, y: float) -> tuple[float, float]:
        return style.inches(made, ax, x, y)

    taken = _corners(made, (_LEFT, _BOTTOM, _LEFT + width, _BOTTOM + HEIGHT))
    points = []
    for variant in shown:
        colour = _colour(variant)
        for one in variant.trainings:
            if one.ratio is not None and one.block_heads is not None:
                ax.plot(one.block_heads, one.ratio, "o", markersize=2.5, color=colour, alpha=0.45, clip_on=False)
                taken.append(_around_mark(*place(one.block_heads, one.ratio), 0.025))
        at = variant.means["block_heads"].mean, variant.means["ratio"].mean
        if np.isfinite(at).all() and at[1] > 0:
            ax.plot(
                *at, "o", markersize=6, color=colour, markeredgecolor=style.PAPER, markeredgewidth=0.6, clip_on=False
            )
            points.append((*place(*at), _named(variant), colour))
    _name_points(made, points, taken, (_LEFT, _BOTTOM, _LEFT + width, _BOTTOM + HEIGHT))
    return made


def draw_curves(result: _Given) -> "Figure":
    """Draws the figure of `plot_variant_curves`; call it under `style.context()`."""
    found = _checked(result)
    shown = [(variant, variant.curve) for variant in found.variants if variant.curve is not None]
    explained = [curve.r_squared for _, curve in shown if curve.r_squared is not None]
    title = f"How the first token's largest grew over the median in {words.count(len(shown), 'variant')}"
    if not shown:
        title = _no_end(found)
    if explained:
        title += f"; curves through {len(explained)}, R² {min(explained):.3f} to {max(explained):.3f}"
    notes = [
        _about(found),
        "Thin: seeds; thick: their geometric mean; dashed: A e^(−λx) log x + K, x = γt + t₀ (arXiv 2508.03616, eq. 9); "
        f"dotted: {SPIKE_RATIO:g}. Of the middle block with the largest.",
    ]
    header = style.Header(title, notes, WIDTH)
    rows = math.ceil(len(shown) / _COLUMNS)
    made = style.figure(WIDTH, _BOTTOM + rows * (_ROW + _GAP) - _GAP / 2 + header.height)
    header.draw(made)
    across = (WIDTH - _LEFT - style.MARGIN) / _COLUMNS
    every = np.array([r for _, curve in shown for one in curve.ratios for r in one if math.isfinite(r) and r > 0])
    low, high = min(every, default=_LEAST), max([*every, SPIKE_RATIO])
    for number, (variant, curve) in enumerate(shown):
        row, column = divmod(number, _COLUMNS)
        base = _BOTTOM + (rows - 1 - row) * (_ROW + _GAP)
        box = (_LEFT + column * across, base, across - 0.15, _ROW)
        ax = _draw_curve(made, curve, _colour(variant), box, (low, high))
        below = number + _COLUMNS >= len(shown)
        ax.tick_params(labelleft=column == 0, labelbottom=below)
        if below:
            ax.set_xlabel("Step", size=style.SMALL)
        r_squared = "" if curve.r_squared is None else f"R² {curve.r_squared:.3f}"
        top = base + _ROW + 0.06
        room = box[2] - style.text_width(r_squared, style.SMALL) - 0.08
        style.text(made, box[0], top, _named(variant, room), size=style.SMALL, weight="bold", color=_colour(variant))
        style.text(made, box[0] + box[2], top, r_squared, size=style.SMALL, color=style.GREY, ha="right")
    middle = _BOTTOM + rows * (_ROW + _GAP) / 2
    if shown:
        name = "First token's largest / median" if rows > 1 else "Largest / median"  # as there is room for
        style.text(made, style.MARGIN, middle, name, rotation=90, va="center")
    return made


def _draw_curve(made: Any, curve: Any, colour: str, box: _Box, limits: tuple[float, float]) -> Any:
    """One variant's chart; all have the same limits."""
    steps = np.array(curve.steps, float)
    marker = 3.0 if len(steps) == 1 else 0.0
    curves = [Curve(steps[:1].repeat(2), np.array(limits), colour, width=0.0)]  # nothing but the limits
    curves += [Curve(steps, np.array(one, float), colour, width=0.5, marker=marker / 2) for one in curve.ratios]
    curves.append(Curve(steps, np.array(curve.mean, float), colour, width=1.6, marker=marker))
    if curve.parameters is not None:
        x = np.linspace(steps[0], steps[-1], 200)
        y = emergence_curve(x, **{name: one.value for name, one in curve.parameters.items()})
        inside = np.where((y >= limits[0]) & (y <= limits[1]), y, np.nan)
        curves.append(Curve(x, inside, style.INK, width=0.8, style="--"))
    ends = (steps[0], steps[-1]) if len(steps) > 1 else None
    ax = draw_chart(made, Chart("", True, curves), box, x_limits=ends, x_ticks=ends)
    ax.axhline(SPIKE_RATIO, color=style.GREY, linewidth=0.7, linestyle=":", zorder=0)
    ax.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    for label, side in zip(ax.get_xticklabels(), ("left", "right"), strict=False):
        label.set_horizontalalignment(side)  # the chart beside it begins close by
    return ax


def _named(variant: VariantResult, room: float = math.inf) -> str:
    """A variant's name, as much of it as there is room for, in inches."""
    name, limit = words.plain(variant.name), 18
    while limit > 3 and style.text_width(words.shorten(name, limit), style.SMALL, "bold") > room:
        limit -= 1
    return words.shorten(name, limit)


def _number_axes(ax: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter

    number_logarithmic(ax.yaxis, low, high)
    ax.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))


def _corners(made: Any, box: _Box) -> list[_Box]:
    """Says in each corner what is there; gives the boxes of these words."""
    left, bottom, right, top = box
    taken = []
    for words_, x, y in (
        ("a spike, no sink", left, top),
        ("a sink and a spike", right, top),
        ("neither", left, bottom),
        ("a sink, no spike", right, bottom),
    ):
        wide, high = style.text_width(words_, style.SMALL), style.text_height(style.SMALL)
        x0 = left + 0.08 if x == left else right - wide - 0.08
        y0 = bottom + 0.05 if y == bottom else top - high - 0.05
        style.text(made, x0, y0, words_, size=style.SMALL, color=style.GREY, style="italic", va="bottom")
        taken.append((x0, y0, x0 + wide, y0 + high))
    return taken


def _name_points(made: Any, points: Sequence[_Point], taken: Sequence[_Box], box: _Box) -> list[_Box]:
    """Writes names beside points (x, y, name, colour), where nothing else is; a line leads to one that is far away.

    The names of points as close as where nothing emerged are put in a column.

    Args:
      made: the figure.
      points: places in inches.
      taken: where no name may be.
      box: that the names are in.
    """
    high, near = style.text_height(style.SMALL) * 0.9, 0.09
    marks = [_around_mark(x, y, 0.06) for x, y, _, _ in points]
    boxes: list[_Box] = []

    def write(point: _Point, found: _Box, beside: bool = False) -> None:
        x, y, name, colour = point
        boxes.append(found)
        end = min(max(x, found[0]), found[2]), min(max(y, found[1]), found[3])
        if beside:
            end = end[0], (found[1] + found[3]) / 2
        if math.dist((x, y), end) > 1.1 * near:
            style.line(made, [x, end[0]], [y, end[1]], color=colour, linewidth=0.5)
        style.text(
            made, found[0], (found[1] + found[3]) / 2, name, size=style.SMALL, color=colour, va="center_baseline"
        )

    def write_near(point: _Point) -> None:
        x, y, name, _ = point
        wide, busy = style.text_width(name, style.SMALL) + 0.04, [*taken, *marks, *boxes]
        found = next(
            (
                candidate
                for candidate in _around(x, y, wide, high, near)
                if _inside(candidate, box) and not any(_overlap(candidate, other) for other in busy)
            ),
            (x + near, y - high / 2, x + near + wide, y + high / 2),
        )
        write(point, found)

    crowds = _crowds(sorted(points, key=lambda point: (-point[1], point[0])), high)
    for crowd in sorted(crowds, key=lambda crowd: len(crowd) >= _CROWD):
        column = _column(crowd, high, boxes, [*taken, *marks], box) if len(crowd) >= _CROWD else []
        for i, point in enumerate(crowd):
            if column:
                write(point, column[i], beside=True)
            else:
                write_near(point)
    return boxes


def _crowds(points: Sequence[_Point], high: float) -> list[list[_Point]]:
    """Points, from above, in groups of which each is closer to the one before than two names can be."""
    found: list[list[_Point]] = []
    for point in points:
        group = next((g for g in found if abs(g[-1][0] - point[0]) < 0.3 and g[-1][1] - point[1] < high), None)
        if group is None:
            found.append([point])
        else:
            group.append(point)
    return found


def _column(
    crowd: Sequence[_Point], high: float, names: Sequence[_Box], marks: Sequence[_Box], box: _Box
) -> list[_Box]:
    """Boxes for the names of a crowd, one below the other, so that no line crosses a name; [] for no room."""
    widths = [style.text_width(name, style.SMALL) + 0.04 for _, _, name, _ in crowd]
    left, right = min(x for x, _, _, _ in crowd), max(x for x, _, _, _ in crowd)
    middle = (crowd[0][1] + crowd[-1][1] + len(crowd) * high) / 2
    for away, up, side in itertools.product(np.arange(0.35, 3.0, 0.1), np.arange(0.0, 2.0, 0.1), (1, -1)):
        edge = right + away if side > 0 else left - away
        tops = middle + up - high * np.arange(len(crowd))
        found = [
            (min(edge, edge + side * w), y - high, max(edge, edge + side * w), y)
            for y, w in zip(tops, widths, strict=True)
        ]
        lines = [np.linspace((x, y), (edge, top - high / 2), 30) for (x, y, _, _), top in zip(crowd, tops, strict=True)]
        if (
            all(_inside(one, box) and not any(_overlap(one, other) for other in (*names, *marks)) for one in found)
            and not any(((line > name[:2]) & (line < name[2:])).all(axis=1).any() for line in lines for name in names)
        ):  # fmt: skip
            return found
    return []


def _around_mark(x: float, y: float, size: float) -> _Box:
    return x - size, y - size, x + size, y + size


def _around(x: float, y: float, wide: float, high: float, near: float) -> Any:
    """Boxes for a name around a point, the nearest first; to the right, to the left, above and below."""
    yield x + near, y - high / 2, x + near + wide, y + high / 2
    yield x - near - wide, y - high / 2, x - near, y + high / 2
    for distance in np.arange(near, 3.0, 0.07):
        for angle in np.deg2rad([25, -25, 55, -55, 0, 90, -90, 125, -125, 155, -155, 180]):
            across, up = math.cos(angle), math.sin(angle)
            cx, cy = x + distance * across, y + distance * up
            left = cx if across > 0.1 else cx - wide if across < -0.1 else cx - wide / 2
            yield left, cy - high / 2, left + wide, cy + high / 2


def _inside(a: _Box, b: _Box) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _checked(result: _Given) -> Variants:
    found = as_record(Variants, result)
    if not found.variants:
        raise ValueError("there are no variants: there is nothing to draw")
    return found


def _colour(variant: VariantResult) -> str:
    if variant.spike:
        return style.MASSIVE
    return style.BLUE if variant.sink else style.GREEN


def _no_end(found: Variants) -> str:
    return f"Of {words.count(len(found.variants), 'variant')} none reached its end"


def _about(found: Variants) -> str:
    text = words.shorten(words.plain(found.text), 30)
    seeds = max(len(variant.trainings) for variant in found.variants)
    start = "" if found.bos is None else " with a start token"
    return (
        f"{found.model}, preset {words.plain(found.preset)} · {words.count(found.steps, 'step')} · "
        f"{words.count(seeds, 'seed')} each · {words.count(found.windows, 'held-out window')} of "
        f"{words.count(found.context, 'token')}{start} · text: {text}"
    )


def _number(bounds: Bounds | None, digits: int) -> str | None:
    if bounds is None:
        return None
    text = words.number(bounds.mean, digits)
    if bounds.low is None or bounds.high is None:
        return text
    return f"{text} [{words.number(bounds.low, digits)}, {words.number(bounds.high, digits)}]"


def _share(bounds: Bounds | None) -> str | None:
    if bounds is None:
        return None
    text = f"{100 * bounds.mean:.1f} %"
    if bounds.low is None or bounds.high is None:
        return text
    low, high = max(0.0, bounds.low), min(1.0, bounds.high)  # Student's t knows of no bounds
    return f"{text} [{100 * low:.1f}, {100 * high:.1f}]"


def _seeds(variant: VariantResult) -> str:
    lost = [f"seed {one.seed}: {one.problem}" for one in variant.trainings if one.problem is not None]
    total = len(variant.trainings)
    return f"{total - len(lost)} of {total}" + (f" ({'; '.join(lost)})" if lost else "")
