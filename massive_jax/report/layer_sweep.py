"""What the same edits do at each layer: curves with their intervals, below the bars of an intervention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from massive_jax.report import style
from massive_jax.report.results import Intervention

_LEFT, _BOTTOM, _TOP, _GAP = 0.75, 0.42, 0.45, 0.12  # inches


def draw_sweep(
    made: Any, found: Intervention, names: Mapping[str, str], colours: Mapping[str, str], height: float
) -> None:
    """Draws the curves into the lowest `height` inches of a figure.

    Args:
      made: the figure.
      found: what was measured; its `sweep` is not empty.
      names: of the operations, in words.
      colours: of some of them.
      height: in inches.
    """
    from matplotlib.ticker import FixedLocator

    layers = [at.layer for at in found.sweep]
    operations = list(found.sweep[0].effects)
    right = max(style.text_width(names.get(op, op), style.SMALL) for op in operations) + 0.35
    width = made.get_size_inches()[0] - _LEFT - right - style.MARGIN
    ax = style.axes(made, _LEFT, _BOTTOM, width, height - _BOTTOM - _TOP)
    logarithmic = found.metric == "perplexity"
    if logarithmic:
        ax.set_yscale("log")
    ends = []
    for i, op in enumerate(operations):
        colour = colours.get(op, ("#8C939B", style.GREEN, style.INK)[i % 3])
        effects = [at.effects[op] for at in found.sweep]
        values = np.array([effect.value for effect in effects], float)
        values[~np.isfinite(values)] = np.nan
        ax.plot(layers, values, color=colour, linewidth=1.3, marker="o", markersize=2.4)
        if all(effect.low is not None for effect in effects):
            low, high = (np.array([getattr(e, end) for e in effects], float) for end in ("low", "high"))
            ax.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
        last = values[np.isfinite(values)][-1:]
        ends.append((op, colour, float(last[0]) if last.size else 1.0))
    original = found.measured.get("original")
    if original is not None:
        ax.axhline(original, color=style.INK, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    ax.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    ax.xaxis.set_major_locator(FixedLocator(style.layer_ticks(layers[0], layers[-1])))
    ax.set_xlabel("Layer whose output is edited")
    what = {"perplexity": "Perplexity"}.get(found.metric, found.metric.replace("_", " "))
    style.text(made, style.MARGIN, height - _TOP + _GAP, f"{what} with the same edit at one layer", size=style.BODY)
    made.canvas.draw()
    targets = [float(ax.transData.transform((layers[-1], y))[1]) / style.DPI for _, _, y in ends]
    sizes = [style.text_height(style.SMALL)] * len(ends)
    places = style.spread(targets, sizes, _BOTTOM, height - _TOP)
    x = _LEFT + width
    for (op, colour, _), target, place in zip(ends, targets, places, strict=True):
        style.line(made, [x + 0.03, x + 0.2], [target, place], color=colour, linewidth=0.7)
        style.text(made, x + 0.25, place, names.get(op, op), color=colour, size=style.SMALL, va="center_baseline")
