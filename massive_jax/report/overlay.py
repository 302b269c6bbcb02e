"""Patches of an image: which of them stand out, drawn on the image, and maps over them before and after."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.results import Named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, GAP = 1.9, 0.18  # inches: a panel's longer side, and what is between panels


class Panel(NamedTuple):
    """Describes one picture of the image.

    Attributes:
      caption: what it shows.
      values: float [rows, columns], a map over the patches drawn on the image, without what is not finite; None for
        the image alone.
      scale: panels with the same scale share their colours, so that they compare.
      marked: (row, column) of the patches to outline.
    """

    caption: str
    values: np.ndarray | None = None
    scale: str = ""
    marked: Sequence[tuple[int, int]] = ()


def plot_overlay(
    result: Named | Mapping[str, Any],
    title: str,
    note: str,
    image: np.ndarray,
    grid: tuple[int, int],
    panels: Sequence[Panel],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws panels of one image side by side: maps over its patches, and outlines of those that stand out.

    The smaller a value, the more of the image is seen through it; a bar of each scale has the numbers. A map that is
    the same everywhere, within 1 %, is said so instead of drawn.

    Args:
      result: any result, or what its JSON file holds; the model's name is under the title.
      title: what the figure shows.
      note: beside the name: what the figure holds for.
      image: uint8 [H, W, 3], as the model sees it.
      grid: rows and columns of patches.
      panels: from left to right.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: a map or a mark that does not fit the grid; no panels; or another suffix.
    """
    return style.plot(lambda: draw(result, title, note, image, grid, panels), path, axes=axes, dark=dark)


def draw(
    result: Named | Mapping[str, Any],
    title: str,
    note: str,
    image: np.ndarray,
    grid: tuple[int, int],
    panels: Sequence[Panel],
) -> "Figure":
    """Draws the figure of `plot_overlay`; call it under `style.context()`."""
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    if not panels:
        raise ValueError("an overlay needs one panel or more")
    for panel in panels:
        outside = [mark for mark in panel.marked if not all(0 <= i < n for i, n in zip(mark, grid, strict=True))]
        if outside or (panel.values is not None and panel.values.shape != grid):
            shape = "" if panel.values is None else f" has shape {panel.values.shape} and"
            raise ValueError(f"panel {panel.caption!r}{shape} marks {list(panel.marked)}: the patches are {grid}")

    H, W = image.shape[:2]
    patch = min(H // grid[0], W // grid[1])
    width, height = SIDE * W / max(H, W), SIDE * H / max(H, W)
    scales = _scales(panels)
    lines = [style.wrap(_caption(panel), width, style.SMALL) for panel in panels]
    below = max(len(rows) for rows in lines) * style.text_height(style.SMALL) + 0.06
    last = {_last(panels, scale): style.bar_width(style.bar_ticks(*ends)) for scale, ends in scales.items()}
    after = [last.get(i, 0.0) for i in range(len(panels))]  # a scale's bar is beside its last map
    total = max(2 * style.MARGIN + len(panels) * (width + GAP) - GAP + sum(after), 4.5)
    header = style.Header(title, [f"{words.model_name(result)} · {note}"], total)
    made = style.figure(total, style.MARGIN + below + height + header.height)
    header.draw(made)

    grey = np.repeat(np.asarray(image, float).mean(axis=-1, keepdims=True), 3, axis=-1) / 255
    left, bottom, bars = style.MARGIN, style.MARGIN + below, []
    for panel, rows, room in zip(panels, lines, after, strict=True):
        ax = style.axes(made, left, bottom, width, height)
        ax.set_axis_off()
        ax.imshow(image if panel.values is None else grey, interpolation="nearest")
        if panel.values is not None and _is_drawn(panel):
            extent = (-0.5, grid[1] * patch - 0.5, grid[0] * patch - 0.5, -0.5)
            values, norm = np.ma.masked_invalid(panel.values), Normalize(*scales[panel.scale])
            drawn = ax.imshow(values, cmap=_see_through(), norm=norm, extent=extent, interpolation="nearest")
            if room:
                bars.append((drawn, left + width))
        for row, column in panel.marked:
            corner = (column * patch - 0.5, row * patch - 0.5)
            ax.add_patch(Rectangle(corner, patch, patch, fill=False, edgecolor=style.MASSIVE, linewidth=1.4))
        ax.set_xlim(-0.5, W - 0.5)
        ax.set_ylim(H - 0.5, -0.5)
        for line, row_words in enumerate(rows):
            y = bottom - 0.05 - line * style.text_height(style.SMALL)
            style.text(made, left, y, row_words, size=style.SMALL, va="top")
        left += width + GAP + room
    for drawn, x in bars:  # after the panels, which use given axes first
        style.bar(made, drawn, x, bottom, height, style.bar_ticks(drawn.norm.vmin, drawn.norm.vmax))
    return made


def _is_drawn(panel: Panel) -> bool:
    return panel.values is not None and not words.nothing_to_see(panel.values)


def _caption(panel: Panel) -> str:
    nothing = "" if panel.values is None else words.nothing_to_see(panel.values)
    return f"{panel.caption}: {nothing}" if nothing else panel.caption


def _scales(panels: Sequence[Panel]) -> dict[str, tuple[float, float]]:
    """Name of each scale -> its least and its largest value."""
    found: dict[str, list[np.ndarray]] = {}
    for panel in panels:
        if panel.values is not None and _is_drawn(panel):
            found.setdefault(panel.scale, []).append(panel.values[np.isfinite(panel.values)])
    return {name: (float(min(map(np.min, maps))), float(max(map(np.max, maps)))) for name, maps in found.items()}


def _last(panels: Sequence[Panel], scale: str) -> int:
    return max(i for i, panel in enumerate(panels) if _is_drawn(panel) and panel.scale == scale)


def _see_through() -> Any:
    """Colours of which the lower let more of the image through."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))
    colours[:, 3] = np.linspace(0.35, 0.85, 256)
    return ListedColormap(colours)
