"""Several models side by side: each layer's largest activation, and the share of attention on the sink."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.curves import Chart, Curve, draw_charts
from massive_jax.report.records import as_record
from massive_jax.report.results import Profiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_profiles(
    result: Profiles | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws a line a model against the layers: the largest magnitude (and the median, thin) and the sink rate.

    Args:
      result: the figure's words and its models, or a mapping with its fields. A number that is not finite, or not
        positive on the logarithmic axis, is a gap.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there is no model; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: Profiles | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_profiles`; call it under `style.context()`."""
    import matplotlib

    profiles = as_record(Profiles, result)
    models = profiles.models
    if not models:
        raise ValueError("there are no models: there is nothing to draw")
    colours = [style.MASSIVE, style.BLUE, style.GREEN, *matplotlib.color_sequences["tab10"]]
    num_layers = max(len(model.largest) for model in models)

    def curve(key: str, index: int) -> Curve:
        values = np.array(getattr(models[index], key))
        layers, name = np.arange(1, len(values) + 1), words.shorten(words.plain(models[index].name), 22)
        marker = float(np.clip(100 / len(values), 2, 4))
        return Curve(layers, values, colours[index % len(colours)], name, width=1.4, marker=marker)

    largest, sink = ([curve(key, i) for i in range(len(models))] for key in ("largest", "sink_rate"))
    medians = [curve("median", i)._replace(name="", width=0.7, marker=0, style=":") for i in range(len(models))]
    return draw_charts(
        profiles.title,
        profiles.conditions,
        [
            Chart("Largest magnitude", True, largest + medians),
            Chart(f"Attention on {words.shorten(words.plain(profiles.sink), 24)}", False, sink),
        ],
        height=2.3,
        x_label="Layer (output of block)",
        x_limits=(0.5, num_layers + 0.5),
        x_ticks=style.layer_ticks(1, num_layers),
    )
