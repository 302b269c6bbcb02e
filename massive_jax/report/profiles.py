"""Several models side by side: each layer's largest activation, and the share of attention on the sink."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style
from massive_jax.report.curves import Chart, Curve, draw_charts, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    """Draws the figure of `plot_profiles`; call it under `style.context()`."""
    import matplotlib

    models = result["models"]
    if not models:
        raise ValueError('result["models"] is empty: there is nothing to draw')
    colours = [style.MASSIVE, style.BLUE, style.GREEN, *matplotlib.color_sequences["tab10"]]
    num_layers = max(len(model["largest"]) for model in models)

    def curve(key: str, index: int) -> Curve:
        values = numbers(models[index][key])
        layers, name = np.arange(1, len(values) + 1), style.shorten(str(models[index]["name"]), 22)
        marker = float(np.clip(100 / len(values), 2, 4))
        return Curve(layers, values, colours[index % len(colours)], name, width=1.4, marker=marker)

    largest, sink = ([curve(key, i) for i in range(len(models))] for key in ("largest", "sink_rate"))
    medians = [curve("median", i)._replace(name="", width=0.7, marker=0, style=":") for i in range(len(models))]
    return draw_charts(
        result["title"],
        result["conditions"],
        [
            Chart("Largest magnitude", True, largest + medians),
            Chart(f"Attention on {result.get('sink', 'position 0')}", False, sink),
        ],
        height=2.3,
        x_label="Layer (output of block)",
        x_limits=(0.5, num_layers + 0.5),
        x_ticks=style.layer_ticks(1, num_layers),
    )
