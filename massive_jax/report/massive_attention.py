"""Attention to massive tokens over a corpus: how much, how it comes about, how constant what it adds is."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.curves import Band, Chart, Curve, draw_charts
from massive_jax.report.records import as_record
from massive_jax.report.results import AttentionOfLayer, MassiveAttention

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_massive_attention(
    result: MassiveAttention | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws against the layers: attention on massive tokens, logits, how constant updates are, how alike vectors.

    Small dots are heads. Shaded are 95 % intervals, and what random tokens give. The vertical line is where the
    activations have reached full size; dotted are a uniform attention, random tokens, and tokens that are not massive.

    Args:
      result: what was measured, or what attention.json holds. A number that is not finite is a gap.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there are no layers; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: MassiveAttention | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_massive_attention`; call it under `style.context()`."""
    attention = as_record(MassiveAttention, result)
    layers = attention.layers
    if not layers:
        raise ValueError("there are no massive tokens: there is nothing to draw")
    x = np.array([layer.layer for layer in layers])
    mark = float(np.clip(100 / len(x), 2, 4))

    def curve(of: Callable[[AttentionOfLayer], float], colour: Any, name: str, **how: Any) -> Curve:
        return Curve(x, np.array([of(layer) for layer in layers]), colour, name, **{"marker": mark, **how})

    def between(of: Callable[[AttentionOfLayer], tuple[float, float]], colour: Any) -> Band:
        low, high = np.array([of(layer) for layer in layers], float).T
        return Band(x, low, high, colour)

    def interval(name: str, colour: Any) -> Band:
        return between(lambda layer: (layer.intervals[name][0], layer.intervals[name][1]), colour)

    def of_head(head: int) -> Callable[[AttentionOfLayer], float]:
        return lambda layer: layer.heads[head].concentration

    def cosine(site: str, group: str) -> Callable[[AttentionOfLayer], float]:
        return lambda layer: float(getattr(layer.vectors[site], group).cosine)

    plain: dict[str, Any] = {"marker": 0.0, "width": 0.9, "style": ":"}
    heads = [
        curve(of_head(head), (style.MASSIVE, 0.4), "", width=0.0, marker=0.6 * mark)
        for head in range(len(layers[0].heads))
    ]
    concentration = [
        *heads,
        curve(lambda layer: layer.concentration, style.MASSIVE, "on massive tokens"),
        curve(lambda layer: layer.baseline, style.GREY, "uniform", **plain),
    ]
    if layers[0].slots is not None:
        concentration.append(curve(lambda layer: layer.slots or 0.0, style.BLUE, "on the bias"))
    sites = (
        ("attn_norm", style.MASSIVE, "normed input"),
        ("key", style.BLUE, "keys"),
        ("value", style.GREEN, "values"),
    )
    alike = []
    for site, colour, name in sites:
        alike.append(curve(cosine(site, "massive"), colour, f"massive {name}"))
        alike.append(curve(cosine(site, "others"), colour, "", **plain))
    charts = [
        Chart("Attention", False, concentration, [interval("concentration", style.MASSIVE)]),
        Chart(
            "Logit",
            False,
            [
                curve(lambda layer: layer.logit_massive, style.MASSIVE, "massive keys"),
                curve(lambda layer: layer.logit_others, style.BLUE, "other keys"),
            ],
            [interval("logit_massive", style.MASSIVE), interval("logit_others", style.BLUE)],
        ),
        Chart(
            "Spread of updates",
            False,
            [
                curve(lambda layer: layer.spread, style.MASSIVE, "massive tokens'"),
                curve(lambda layer: layer.rest_spread, style.BLUE, "the others'"),
                curve(lambda layer: layer.random_spread.mean, style.GREY, "random tokens'", **plain),
            ],
            [
                interval("spread", style.MASSIVE),
                between(lambda layer: (layer.random_spread.low, layer.random_spread.high), style.GREY),
            ],
        ),
        Chart("Mean cosine", False, alike),
    ]
    return draw_charts(
        f"{words.model_name(attention)}: {attention.finding}",
        f"{words.conditions(attention)} · small dots: heads · at the bottom, dotted: other tokens",
        charts,
        height=1.35,
        x_label="Layer",
        x_limits=(0.5, len(x) + 0.5),
        x_ticks=style.layer_ticks(1, len(x)),
        x_mark=None if attention.birth is None else attention.birth + 0.5,
    )
