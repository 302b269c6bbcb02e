"""The census of a model, layer by layer: how large, how much attended to, how constant, against what chance gives."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.curves import Band, Chart, Curve, draw_charts
from massive_jax.report.records import as_record
from massive_jax.report.results import ModelCensus, ModelCensusLayer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_census(
    result: ModelCensus | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws against the layers the largest dim of position 0, its attention, constancy and values, and entropy.

    Shaded are 95 % intervals, and what random tokens give in position 0's place.

    Args:
      result: the census, or what census.json holds. A number that is not finite is a gap.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there are no layers; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: ModelCensus | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_census`; call it under `style.context()`."""
    census = as_record(ModelCensus, result)
    layers = census.layers
    if not layers:
        raise ValueError("the census has no layers: there is nothing to draw")
    x = np.array([layer.layer for layer in layers])
    mark = float(np.clip(100 / len(x), 2, 4))

    def curve(of: Callable[[ModelCensusLayer], float], colour: Any, name: str, **how: Any) -> Curve:
        return Curve(x, np.array([of(layer) for layer in layers]), colour, name, **{"marker": mark, **how})

    def between(of: Callable[[ModelCensusLayer], tuple[float, float]], colour: Any) -> Band:
        low, high = np.array([of(layer) for layer in layers], float).T
        return Band(x, low, high, colour)

    def interval(name: str, colour: Any) -> Band:
        return between(lambda layer: (layer.intervals[name][0], layer.intervals[name][1]), colour)

    first = style.MASSIVE
    plain: dict[str, Any] = {"marker": 0.0, "width": 0.9, "style": ":"}
    charts = [
        Chart(
            "Magnitude",
            True,
            [
                curve(lambda layer: abs(layer.first[0].mean), first, "first token's largest"),
                curve(lambda layer: layer.median, style.GREY, "median", **plain),
            ],
        ),
        Chart(
            "Attention",
            False,
            [
                curve(lambda layer: layer.sink_mass, first, "on the first token"),
                curve(lambda layer: layer.sink_rate, style.BLUE, "heads above 0.3"),
                curve(lambda layer: layer.sink_mass_uniform, style.GREY, "uniform", **plain),
            ],
            [interval("sink_mass", first)],
        ),
        Chart(
            "Spread of updates",
            False,
            [
                curve(lambda layer: layer.bias_spread, first, "first token's"),
                curve(lambda layer: layer.rest_spread, style.BLUE, "the others'"),
                curve(lambda layer: layer.random_spread.mean, style.GREY, "a random token's", **plain),
            ],
            [
                interval("bias_spread", first),
                between(lambda layer: (layer.random_spread.low, layer.random_spread.high), style.GREY),
            ],
        ),
        Chart(
            "Norm of values",
            False,
            [
                curve(lambda layer: layer.value_norm_ratio, first, "first token's"),
                curve(lambda layer: layer.random_value_norm_ratio.mean, style.GREY, "a random token's", **plain),
            ],
            [
                interval("value_norm_ratio", first),
                between(
                    lambda layer: (layer.random_value_norm_ratio.low, layer.random_value_norm_ratio.high), style.GREY
                ),
            ],
        ),
        Chart(
            "Entropy",
            False,
            [curve(lambda layer: layer.entropy, first, "of the output")],
            [interval("entropy", first)],
        ),
    ]
    title = f"{words.model_name(census)}: {census.finding}"
    return draw_charts(
        title,
        words.conditions(census),
        charts,
        height=1.25,
        x_label="Layer (output of block)",
        x_limits=(0.5, len(x) + 0.5),
        x_ticks=style.layer_ticks(1, len(x)),
    )
