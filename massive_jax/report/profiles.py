"""Several models side by side: each layer's largest activation, and the share of attention on the sink."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, PANEL, GAP = 7.0, 2.3, 0.3  # inches
_PANELS = (  # key of a model's record, name of the axis, whether it is logarithmic
    ("largest", "Largest magnitude", True),
    ("sink_rate", "Attention on {sink}", False),
)


def plot_profiles(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws a line a model against the layers: the largest magnitude (and the median, thin) and the sink rate.

    Args:
      result: "title", "conditions" (a line under it) and "models": each with "name" and, a number a layer, "largest",
        "median" and "sink_rate". A number that is not finite, or not positive on the logarithmic axis, is a gap.
        And "sink", what that is called, "position 0" by default.
      path: where the figure goes: .png, .pdf or .svg. Written whole or not at all.

    Raises:
      ValueError: there is no model; or another suffix.
    """
    with style.context():
        style.save(draw(result), path)


def draw(result: Mapping[str, Any]) -> "Figure":
    """The figure of `plot_profiles`; call it under `style.context()`."""
    import matplotlib
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    models = result["models"]
    if not models:
        raise ValueError('result["models"] is empty: there is nothing to draw')
    colours = [style.MASSIVE, style.BLUE, style.GREEN, *matplotlib.color_sequences["tab10"]]
    num_layers = max(len(model["largest"]) for model in models)
    header = style.Header(result["title"], [result["conditions"]], WIDTH)
    left, bottom = 0.95, 0.45
    made = style.figure(WIDTH, bottom + len(_PANELS) * (PANEL + GAP) - GAP + header.height)
    header.draw(made)
    names = [style.shorten(str(model["name"]), 22) for model in models]
    right = max(style.text_width(name) for name in names) + 0.3 + style.MARGIN
    for row, (key, name, logarithmic) in enumerate(_PANELS):
        base = bottom + (len(_PANELS) - 1 - row) * (PANEL + GAP)
        ax = style.axes(made, left, base, WIDTH - left - right, PANEL)
        ax.set_xlim(0.5, num_layers + 0.5)
        if logarithmic:
            ax.set_yscale("log")
        ends = []
        for model, colour in zip(models, colours, strict=False):
            values = _positive(model[key]) if logarithmic else np.array([style.as_float(v) for v in model[key]])
            at = np.arange(1, len(values) + 1)
            ax.plot(at, values, color=colour, linewidth=1.4, marker="o", markersize=float(np.clip(100 / len(at), 2, 4)))
            if logarithmic:
                ax.plot(at, _positive(model["median"]), color=colour, linewidth=0.7, linestyle=":")
            ends.append(values[np.isfinite(values)][-1] if np.isfinite(values).any() else np.nan)
        ax.set_ylim(*((None, None) if logarithmic else (0, None)))  # fixed here: what follows asks where lines end
        if logarithmic:
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        label = name.format(sink=result.get("sink", "position 0"))
        style.text(made, style.MARGIN, base + PANEL / 2, label, rotation=90, va="center")
        ax.xaxis.set_major_locator(FixedLocator(style.layer_ticks(1, num_layers)))
        if row < len(_PANELS) - 1:
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xlabel("Layer (output of block)")
        shown = [i for i, end in enumerate(ends) if np.isfinite(end)]
        targets = [float(ax.transData.transform((num_layers, ends[i]))[1]) / style.DPI for i in shown]
        places = style.spread(targets, [style.text_height()] * len(shown), base, base + PANEL)
        for i, target, place in zip(shown, targets, places, strict=True):
            x = WIDTH - right
            style.line(made, [x + 0.03, x + 0.2], [target, place], color=colours[i], linewidth=0.7)
            style.text(made, x + 0.25, place, names[i], color=colours[i], va="center_baseline")
    return made


def _positive(values: Any) -> np.ndarray:
    array = np.array([style.as_float(value) for value in values])
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)
