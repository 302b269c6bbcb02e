"""What the same edits do at each layer: curves with their intervals, below the bars of an intervention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from massive_jax.report import style
from massive_jax.report.curves import Band, Chart, Curve, draw_chart
from massive_jax.report.results import Intervention

_BOTTOM, _TOP, _AIR = 0.42, 0.45, 0.12  # inches


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
    others = ("#8C939B", style.GREEN, style.INK)
    layers, curves, bands = np.array([at.layer for at in found.sweep]), [], []
    for i, op in enumerate(found.sweep[0].effects):
        colour = colours.get(op, others[i % len(others)])
        effects = [at.effects[op] for at in found.sweep]
        value, low, high = (np.array([getattr(e, name) for e in effects], float) for name in ("value", "low", "high"))
        curves.append(Curve(layers, value, colour, names.get(op, op), 1.3, 2.4))
        if np.isfinite(low).all() and np.isfinite(high).all():
            bands.append(Band(layers, low, high, colour))
    largest = max((float(c.y[np.isfinite(c.y)].max(initial=1.0)) for c in curves), default=1.0)
    left = style.MARGIN + 0.25 + style.text_width(f"{largest:,.0f}" if largest >= 100 else "0.000", style.SMALL)
    right = max(style.text_width(curve.name, style.SMALL) for curve in curves) + 0.3 + style.MARGIN
    box = (left, _BOTTOM, made.get_size_inches()[0] - left - right, height - _BOTTOM - _TOP)
    limits, ticks = (layers[0] - 0.5, layers[-1] + 0.5), style.layer_ticks(int(layers[0]), int(layers[-1]))
    chart = Chart("", found.metric == "perplexity", curves, bands)
    ax = draw_chart(made, chart, box, x_limits=limits, x_ticks=ticks)
    if (original := found.measured.get("original")) is not None:
        ax.axhline(original, color=style.INK, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    ax.set_xlabel("Layer whose output is edited")
    metric = found.metric.replace("_", " ").capitalize()
    style.text(made, style.MARGIN, height - _TOP + _AIR, f"{metric} with the same edit at one layer; dashed: without")
