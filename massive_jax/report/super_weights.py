"""Super weights: perplexity without each, and where the weights alone would look for them."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.bars import BAR, WIDTH, Row, draw_bars, times
from massive_jax.report.curves import Chart, Curve, draw_chart
from massive_jax.report.records import as_record
from massive_jax.report.results import SuperWeightsOf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from massive_jax.analysis import FromWeights, SuperWeight

_BY_LAYER = 2.75  # inches
_OTHERS = "#8C939B"


def plot_super_weights(
    result: SuperWeightsOf | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws the perplexity without each weight that was tested, and by layer what MLPs write and what they could.

    Args:
      result: what was measured, or what super_weights.json holds.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.
    """
    return style.plot(lambda: draw(as_record(SuperWeightsOf, result)), path, axes=axes, dark=dark)


def super_weight_rows(result: SuperWeightsOf) -> list[Row]:
    """Lists the perplexities: of the whole model, without each weight, without the largest others of its matrix."""
    found = result.found
    whole = found.perplexity
    rows = [Row("original", "Whole model", whole.value, whole.low, whole.high, colour=style.GREY)]
    for weight in found.tested:
        colour = style.MASSIVE if weight.confirmed else style.BLUE
        one, rest = weight.without.perplexity, weight.without_others.perplexity
        key = f"layer {weight.layer}, {weight.unit} → {weight.dim}"
        rows.append(Row(f"without {key}", f"Without {key}", one.value, one.low, one.high, colour=colour))
        name = f"without the {weight.without_others.weights:,} largest others"
        rows.append(Row(f"{name}, layer {weight.layer}", name, rest.value, rest.low, rest.high, colour=_OTHERS))
    return rows


def super_weight_title(result: SuperWeightsOf) -> str:
    """Says in a sentence what was found."""
    found, model = result.found, words.model_name(result)
    if not found.tested:
        return f"{model} has no super weight: nothing that one of its MLPs adds is massive"
    first = found.tested[0]
    if not found.confirmed:
        return f"No super weight of {model} is confirmed by pruning; the likeliest is {_named(first)}"
    first = found.confirmed[0]
    more = "" if len(found.confirmed) == 1 else f", the first of {len(found.confirmed)} super weights"
    worse = times(first.without.perplexity.value / found.perplexity.value)
    others = first.without_others
    return (
        f"One weight of {model}, {_named(first)}{more}: without it perplexity is × {worse}, without the "
        f"{others.weights:,} largest others × {times(others.perplexity.value / found.perplexity.value)}"
    )


def told_in_words(told: "FromWeights") -> str:
    """Says in a sentence whether the weights alone tell where the massive activation is born."""
    right = f"as the activations show (by gain block {told.birth_layer} is number {told.birth_rank})"
    if told.names_birth:
        found = f"The weights alone name block {told.named_layer} for the birth, {right}"
    else:
        found = (
            f"The weights alone name block {told.named_layer} for the birth; the activations show block "
            f"{told.birth_layer}, number {told.birth_rank} by gain"
        )
    weight = "the same weight there" if told.names_weight else "another weight there than the activations"
    return f"{found}; they name {weight}."


def _named(weight: "SuperWeight") -> str:
    return f"{weight.unit} → {weight.dim} of the down projection of block {weight.layer}"


def draw(result: SuperWeightsOf) -> "Figure":
    """Draws the figure of `plot_super_weights`; call it under `style.context()`."""
    rows = super_weight_rows(result)
    found = result.found
    notes = [words.conditions(result), told_in_words(found.from_weights)]
    if found.tested:
        weight = (found.confirmed or found.tested)[0]
        value = words.number(weight.value, 3)
        notes.insert(
            0, f"Value {value}, number {weight.rank} by magnitude of {weight.size:,}; intervals: 95 %, bootstrap"
        )
    header = style.Header(super_weight_title(result), notes, WIDTH)
    bottom, height = _BY_LAYER + 0.45, BAR * len(rows) + 0.1
    made = style.figure(WIDTH, bottom + height + header.height)
    header.draw(made)
    draw_bars(made, rows, found.perplexity.value, "perplexity", bottom, height)
    _draw_layers(made, result)
    return made


def _draw_layers(made: Any, result: SuperWeightsOf) -> None:
    """By layer the largest number that the MLP adds, and the most that one unit could write."""
    found, left, base, room = result.found, 0.85, 0.42, 0.45
    told = found.from_weights
    layers = np.array([signature.layer for signature in found.signatures])
    written = np.array([abs(signature.output) for signature in found.signatures])
    most = np.array([gain.gain for gain in told.gains])
    curves = (
        Curve(layers, written, style.MASSIVE, "what an MLP adds", 1.3, 2.4),
        Curve(layers, most, style.BLUE, "one unit, by weights", 1.3, 2.4),
    )
    width = WIDTH - left - max(style.text_width(curve.name, style.SMALL) for curve in curves) - 0.3 - style.MARGIN
    limits, ticks = (layers[0] - 0.5, layers[-1] + 0.5), style.layer_ticks(int(layers[0]), int(layers[-1]))
    box = (left, base, width, _BY_LAYER - base - room)
    ax = draw_chart(made, Chart("", True, curves), box, x_limits=limits, x_ticks=ticks)
    ax.axvline(told.birth_layer, color=style.INK, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    ax.set_xlabel("Layer")
    title = f"Largest number that an MLP adds; dashed: block {told.birth_layer}, where the largest activation is born"
    style.text(made, style.MARGIN, _BY_LAYER - room + 0.12, title)
