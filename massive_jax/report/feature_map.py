"""The paper's three-dimensional picture: magnitudes of one layer's hidden state over tokens and dimensions.

Drawn in an oblique projection of its own: dimensions run to the right, tokens from the back (the first) to
the front, magnitudes up. Unlike a perspective view it keeps every direction measurable, and its labels can be
placed exactly.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.records import as_record
from massive_jax.report.results import FeatureMap, MassiveActivation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches, as are these: how far the floor goes back (right, up), and how high the walls are
BACK, DEPTH, WALL = 0.9, 1.4, 2.0
COLUMNS = 700  # the most points of a ridge; more could not be told apart on paper
MOST_DIMS, MOST_VALUES = 10, 8  # the most labels


def plot_feature_map(
    result: FeatureMap | Mapping[str, Any],
    magnitudes: np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws |hidden state| of one layer over tokens × dimensions (the paper's 3D figure).

    Each token is a ridge over all dimensions. Where there are more dimensions than can be drawn, a point
    stands for the largest of its neighbours, so no spike is lost. Massive activations are stems with their
    values.

    Args:
      result: the layer's massive activations, or what feature_map.json holds.
      magnitudes: [T, D], at least 0; not finite is drawn as the largest finite one.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: shapes that do not fit, or a position or dimension outside them; or another suffix.
    """
    return style.plot(lambda: draw(result, magnitudes), path, axes=axes, dark=dark)


def draw(result: FeatureMap | Mapping[str, Any], magnitudes: np.ndarray) -> "Figure":
    """Draws the figure of `plot_feature_map`; call it under `style.context()`."""
    mapped = as_record(FeatureMap, result)
    heights = np.abs(np.asarray(magnitudes, np.float32))
    T, D = _check(mapped, heights)
    finite = heights[np.isfinite(heights)]
    largest = float(finite.max()) if finite.size else 0.0
    broken = ~np.isfinite(heights)
    heights = np.nan_to_num(heights, nan=0.0, posinf=largest or 1.0)
    ticks, top = _scale(largest)

    massive = sorted(mapped.massive, key=lambda found: -heights[found.position, found.dim])
    title, notes = _words(mapped, massive)
    header = style.Header(title, [*notes, _not_finite(broken)], WIDTH)
    names = [words.label(token, limit=18) for token in mapped.tokens]
    marked = {found.position for found in massive}
    shown = _thin(T, marked)
    # Layout, in inches: the floor's front left corner is at (left, bottom) and it is `wide` across.
    left = style.MARGIN + 0.3 + max(style.text_width(_tick(tick), style.SMALL) for tick in ticks)
    bottom = 0.58
    right = max(style.text_width(f"{t}  {names[t]}", style.SMALL) for t in shown) + 0.14 + style.MARGIN
    wide = WIDTH - left - BACK - right
    made = style.figure(WIDTH, bottom + DEPTH + WALL + 0.16 + header.height)
    header.draw(made)
    ax = style.axes(made, 0, 0, *made.get_size_inches())
    ax.set(xlim=(0, WIDTH), ylim=(0, made.get_size_inches()[1]))
    ax.axis("off")

    def place(dim: Any, back: Any, height: Any) -> tuple[Any, Any]:
        """Inches from a dimension, a depth (0 front, 1 back) and a magnitude."""
        x = left + wide * (np.asarray(dim) + 0.5) / D + BACK * np.asarray(back)
        return x, bottom + DEPTH * np.asarray(back) + WALL * np.asarray(height) / top

    def depth(position: int) -> float:
        return 1 - (position + 0.5) / T

    # The floor, the walls, and a line for each labelled dimension and massive token.
    first, last = -0.5, D - 0.5
    floor = np.transpose(place([first, last, last, first], [0, 0, 1, 1], 0))
    ax.add_patch(_polygon(floor, facecolor=style.FLOOR, edgecolor=style.GREY, linewidth=0.6, zorder=1))
    for tick in ticks:
        xs, ys = place([first, first, last], [0, 1, 1], tick)
        ax.plot(xs, ys, color=style.RULE, linewidth=0.5, zorder=0)
        if tick:
            style.text(made, xs[0] - 0.07, ys[0], _tick(tick), size=style.SMALL, ha="right", va="center_baseline")
    for dim, back in ((first, 0), (first, 1), (last, 1)):
        ax.plot(*place([dim, dim], back, [0, top]), color=style.RULE, linewidth=0.5, zorder=0)
    found_dims = {found.dim for found in massive}
    dims = _dims(mapped.dims, found_dims, heights)
    for dim in dims:
        colour = style.MASSIVE if dim in found_dims else style.GREY
        ax.plot(*place([dim, dim], [0, 1], 0), color=colour, linewidth=0.4, alpha=0.55, zorder=2)

    # The ridges, back to front; each hides what is behind it. Then the stems of its token.
    edges = np.unique(np.linspace(0, D, min(D, COLUMNS) + 1).astype(int))[:-1]
    centre = edges + (np.diff(np.append(edges, D)) - 1) / 2
    for t in range(T):
        ridge = np.maximum.reduceat(heights[t], edges)
        xs, ys = place(centre, depth(t), ridge)
        base = place(centre, depth(t), 0)[1]
        ax.fill_between(xs, base, ys, color=style.PALE, linewidth=0, zorder=3 + t)
        colour, width = (style.MASSIVE, 0.6) if t in marked else (style.BLUE, 0.4 if T <= 24 else 0.25)
        ax.plot(xs, ys, color=colour, linewidth=width, alpha=0.75, solid_joinstyle="round", zorder=3 + t)
        for found in massive:
            if found.position == t:
                xs, ys = place([found.dim] * 2, depth(t), [0, heights[t, found.dim]])
                ax.plot(xs, ys, color=style.MASSIVE, linewidth=1.6, solid_capstyle="round", zorder=3 + t)
                ax.plot(xs[1], ys[1], "o", color=style.MASSIVE, markersize=2.6, zorder=3 + t)

    stems = []
    for found in massive:
        xs, ys = place([found.dim] * 2, depth(found.position), [0, heights[found.position, found.dim]])
        stems.append((float(xs[1]), float(ys[0]), float(ys[1])))
    _value_labels(made, massive, stems)
    _dim_labels(made, dims, found_dims, D, left, bottom, wide)
    for t in shown:
        x, y = place(last, depth(t), 0)
        colour = style.MASSIVE if t in marked else style.INK
        ax.plot([x, x + 0.05], [y, y], color=style.GREY, linewidth=0.5, zorder=2)
        style.text(made, x + 0.09, y, f"{t}  {names[t]}", size=style.SMALL, color=colour, va="center_baseline")
    middle = bottom + WALL / 2
    style.text(made, style.MARGIN, middle, "Magnitude", rotation=90, va="center")
    style.text(made, left + wide / 2, style.MARGIN, "Dimension", ha="center", va="bottom")
    x, y = place(last, 1, 0)
    style.text(made, x + 0.09, y + 0.08, "Token", va="bottom")
    return made


def _not_finite(broken: np.ndarray) -> str:
    """Says how many values are not finite, and of which tokens."""
    positions = np.flatnonzero(broken.any(axis=1)).tolist()
    if not positions:
        return ""
    count = words.count(int(broken.sum()), "value")
    where = f"position{'s' * (len(positions) > 1)} {words.spans(positions, 6)}"
    return f"Not finite: {count} at {where}; inf is drawn as high as the largest, nan as 0"


def _check(mapped: FeatureMap, heights: np.ndarray) -> tuple[int, int]:
    tokens = mapped.tokens
    if heights.ndim != 2 or not heights.size or heights.shape[0] != len(tokens):
        raise ValueError(f"magnitudes has shape {heights.shape}, but there are {len(tokens)} tokens: give [T, D]")
    T, D = heights.shape
    places = [(found.position, found.dim) for found in mapped.massive] + [(0, d) for d in mapped.dims]
    outside = [place for place in places if not (0 <= place[0] < T and 0 <= place[1] < D)]
    if outside:
        raise ValueError(f"(position, dim) {outside} are outside magnitudes of shape {heights.shape}")
    return T, D


def _scale(largest: float) -> tuple[list[float], float]:
    """Round magnitudes for the wall's lines, and the magnitude at the wall's top."""
    from matplotlib.ticker import MaxNLocator

    top = largest if largest > 0 else 1.0
    ticks = [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top)]
    return [tick for tick in ticks if tick <= 1.02 * top], 1.02 * top


def _tick(tick: float) -> str:
    return words.on_axis(tick)


def _thin(T: int, marked: set[int]) -> list[int]:
    """The tokens to name: all that fit along the floor's edge, the massive ones first."""
    need = style.text_height(style.SMALL) * 0.95
    shown: list[int] = []
    step = max(1, int(np.ceil(need / (DEPTH / T))))
    for t in [*sorted(marked), 0, *range(0, T, step), T - 1]:
        if all(abs(t - other) * DEPTH / T >= need * 0.999 for other in shown):
            shown.append(t)
    return sorted(shown)


def _dims(wanted: Any, found: set[int], heights: np.ndarray) -> list[int]:
    """The dimensions to label: the massive ones, then the largest, as many as there is room for."""
    ordered = sorted({int(d) for d in wanted} | found, key=lambda d: (d not in found, -heights[:, d].max()))
    return ordered[:MOST_DIMS]


def _polygon(corners: np.ndarray, **options: Any) -> Any:
    from matplotlib.patches import Polygon

    return Polygon(corners.tolist(), closed=True, **options)


def _value_labels(
    made: "Figure", massive: Sequence[MassiveActivation], stems: list[tuple[float, float, float]]
) -> None:
    """Writes the largest values at their stems' heads, where there is room beside those written before."""
    height, taken = style.text_height(style.SMALL), list[tuple[float, float, float, float]]()
    for x, foot, head in stems:  # the stems themselves are kept clear
        taken.append((x - 0.03, foot, x + 0.03, head + 0.03))
    written = 0
    for found, (x, _, y) in zip(massive, stems, strict=True):
        value = words.magnitude(found.value, 3)
        width = style.text_width(value, style.SMALL)
        beside = ((x - width / 2, y + 0.05), (x + 0.06, y - height / 2), (x - 0.06 - width, y - height / 2))
        for x0, y0 in beside:
            box = (x0, y0, x0 + width, y0 + height)
            clear = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
            if clear and x0 > style.MARGIN and box[2] < WIDTH - style.MARGIN:
                taken.append(box)
                options = {"size": style.SMALL, "color": style.INK, "zorder": 200}
                style.text(made, x0, y0 + 0.03, value, va="baseline", **options)
                written += 1
                break
        if written == MOST_VALUES:
            return


def _dim_labels(
    made: "Figure", dims: list[int], found: set[int], D: int, left: float, bottom: float, wide: float
) -> None:
    """Writes the labelled dimensions, the first and the last under the floor's front edge."""
    shown = sorted({*dims, 0, D - 1})
    widths = [style.text_width(str(d), style.SMALL) + 0.08 for d in shown]
    targets = [left + wide * (d + 0.5) / D for d in shown]
    places = style.spread(targets, widths, left - 0.3, left + wide + 0.5)
    for d, target, place in zip(shown, targets, places, strict=True):
        colour = style.MASSIVE if d in found else style.INK if d in dims else style.GREY
        xs, ys = [target, target, place], [bottom, bottom - 0.04, bottom - 0.15]
        style.line(made, xs, ys, color=colour, linewidth=0.6)
        options = {"size": style.SMALL, "color": colour, "ha": "center", "va": "top"}
        style.text(made, place, bottom - 0.18, str(d), **options)


def _words(mapped: FeatureMap, massive: Sequence[MassiveActivation]) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    model, layer = words.model_name(mapped), mapped.layer
    if massive:
        n = len(massive)
        title = f"{n} massive activation{'s' * (n > 1)} in layer {layer} of {model}"
        tokens = {found.position: words.label(found.token, limit=18) for found in massive}
        named = [f"{position} “{token}”" for position, token in sorted(tokens.items())]
        listed = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
        where = f"At position{'s' * (len(named) > 1)} {listed}; marked in orange"
    else:
        title, where = f"No massive activation in layer {layer} of {model}", ""
    median = f"median magnitude {words.number(mapped.median)}"
    return title, [f"{words.conditions(mapped)} · {median}", where]
