"""A picture of a report for those who link to it, as wide as social pages ask for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from massive_jax.report import style
from massive_jax.report.curves import number_logarithmic
from massive_jax.report.results import Explorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 4.0, 2.1  # inches: 1200 × 630 pixels
_LEFT, _SIZE, _LINES = 0.15, 7.5, 6  # of the headline: its margin, points, most lines


def plot_preview(explorer: Explorer, title: str, path: str | os.PathLike[str]) -> None:
    """Draws a report's title and headline over the largest and the median magnitude by layer, 1200 × 630 pixels.

    Args:
      explorer: what is explored; its first input is drawn.
      title: of the report.
      path: where the picture goes.
    """
    with style.context():
        style.save(draw(explorer, title), path)


def draw(explorer: Explorer, title: str) -> Figure:
    """Draws the figure of `plot_preview`; call it under `style.context()`."""
    layers = explorer.inputs[0].layers
    numbers = [layer.layer for layer in layers]
    made = style.figure(_WIDTH, _HEIGHT)
    (name,) = _lines(title, 7, 1)
    style.text(made, _LEFT, _HEIGHT - 0.24, name, size=7, color=style.GREY)
    y = _HEIGHT - 0.45
    for line in _lines(explorer.headline, _SIZE, _LINES, weight="bold"):
        style.text(made, _LEFT, y, line, size=_SIZE, weight="bold")
        y -= style.text_height(_SIZE)
    ax = style.axes(made, 0.5, 0.31, _WIDTH - 0.65, max(0.4, y - 0.28))
    ax.set_yscale("log")
    mark = {"marker": "o" if len(layers) == 1 else "", "markersize": 3}
    ax.plot(numbers, [max(map(abs, layer.values)) for layer in layers], color=style.MASSIVE, label="largest", **mark)
    ax.plot(numbers, [layer.median for layer in layers], color=style.GREY, label="median", **mark)
    ax.set_xticks(style.layer_ticks(numbers[0], numbers[-1], most=8))
    low, high = ax.get_ylim()
    number_logarithmic(ax.yaxis, low, high, 4, powers=high > 100 * low)
    ax.tick_params(labelsize=5.5)
    ax.set_ylabel("magnitude", fontsize=6)
    style.text(made, _WIDTH / 2, 0.06, "layer", size=6, ha="center")
    ax.legend(fontsize=6, frameon=False, loc="center right")
    return made


def _lines(words: str, size: float, most: int, *, weight: str = "normal") -> list[str]:
    """At most so many lines, as wide as the picture."""
    found = style.wrap(style.plain(words), _WIDTH - 2 * _LEFT - 0.1, size, weight)
    return found if len(found) <= most else [*found[: most - 1], f"{found[most - 1]} …"]
