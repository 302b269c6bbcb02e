"""A picture of a report for those who link to it, as wide as social pages ask for."""

from __future__ import annotations

import math
import os
import textwrap

from massive_jax.report import style
from massive_jax.report.results import Explorer

_WIDTH, _HEIGHT = 4.0, 2.1  # inches: 1200 × 630 pixels
_CHARACTERS, _LINES = 52, 5


def plot_preview(explorer: Explorer, title: str, path: str | os.PathLike[str]) -> None:
    """Draws a report's title and headline over the largest and the median magnitude by layer, 1200 × 630 pixels.

    Args:
      explorer: what is explored; its first input is drawn.
      title: of the report.
      path: where the picture goes.
    """
    headline = textwrap.wrap(style.plain(explorer.headline), _CHARACTERS, max_lines=_LINES, placeholder=" …")
    one = explorer.inputs[0]
    layers = [layer.layer for layer in one.layers]
    with style.context():
        made = style.figure(_WIDTH, _HEIGHT)
        name = style.shorten(style.plain(title), 70)
        style.text(made, 0.15, _HEIGHT - 0.24, name, size=7, color=style.GREY)
        y = _HEIGHT - 0.45
        for line in headline:
            style.text(made, 0.15, y, line, size=8.5, weight="bold")
            y -= style.text_height(8.5)
        drawn = style.axes(made, 0.45, 0.28, _WIDTH - 0.6, max(0.4, y - 0.25))
        drawn.set_yscale("log")
        drawn.plot(layers, [max(map(abs, layer.values)) for layer in one.layers], color=style.MASSIVE, label="largest")
        drawn.plot(layers, [layer.median for layer in one.layers], color=style.GREY, label="median")
        drawn.yaxis.set_major_formatter(lambda size, _: style.power(round(math.log10(size))) if size > 0 else "")
        drawn.tick_params(labelsize=5.5)
        drawn.set_ylabel("magnitude", fontsize=6)
        style.text(made, _WIDTH / 2, 0.06, "layer", size=6, ha="center")
        drawn.legend(fontsize=6, frameon=False, loc="center right")
        style.save(made, path)
