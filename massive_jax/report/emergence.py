"""Emergence curves: each layer's largest activation, kurtosis and attention sink as training goes on."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.curves import Chart, Curve, draw_charts
from massive_jax.report.records import as_record
from massive_jax.report.results import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHARTS = (  # key of a layer's record, name of the axis, whether it is logarithmic
    ("largest", "Largest magnitude", True),
    ("kurtosis", "Kurtosis", True),
    ("sink_rate", "Attention on {sink}", False),
)


def plot_emergence(result: Training | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws a line a layer against the steps: largest magnitude, kurtosis, share of attention on the sink.

    Where there is an attention bias with slots, the share of attention on those is a fourth panel. A number that is
    not finite, or not positive on a logarithmic axis, is a gap.

    Args:
      result: a training, or a mapping with its fields.
      path: where the figure goes: .png, .pdf or .svg. Written whole or not at all.

    Raises:
      ValueError: there is no census; or another suffix.
    """
    with style.context():
        style.save(draw(result), path)


def draw(result: Training | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_emergence`; call it under `style.context()`."""
    import matplotlib

    training = as_record(Training, result)
    records = training.census
    if not records:
        raise ValueError("the census is empty: there is nothing to draw")
    steps = np.array([record.step for record in records])
    shown = list(_CHARTS)
    if any(layer.slot_rate > 0 for record in records for layer in record.layers):
        shown.append(("slot_rate", "Attention on the bias", False))
    num_layers = len(records[0].layers)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, num_layers))
    named = style.layer_ticks(1, num_layers, most=8)

    def curve(key: str, layer: int) -> Curve:
        values = np.array([getattr(record.layers[layer - 1], key) for record in records])
        name, marker = f"Layer {layer}" if layer in named else "", 3.0 * (len(steps) == 1)
        return Curve(steps, values, colours[layer - 1], name, marker=marker)

    return draw_charts(
        *_words(training),
        [
            Chart(name.format(sink=training.sink), log, [curve(key, layer) for layer in range(1, num_layers + 1)])
            for key, name, log in shown
        ],
        height=1.7,
        x_label="Step",
        x_limits=(steps[0], steps[-1]) if steps[-1] > steps[0] else None,
    )


def _words(training: Training) -> tuple[str, str]:
    """The title, which is the finding, and the line under it."""
    last = training.census[-1]
    peak = max(last.layers, key=lambda layer: layer.largest)
    ratio = peak.largest / max(peak.median, 1e-30)
    sink = max(layer.sink_rate for layer in last.layers)
    title = (
        f"After {words.count(last.step, 'step')}: largest activation {words.number(peak.largest, 3)}, "
        f"{words.number(ratio, 3)} times the median; up to {100 * sink:.0f} % of attention on {training.sink}"
    )
    data = f"text: {_short(training.text)}" if training.text is not None else f"dataset: {_short(training.dataset)}"
    note = (
        f"{training.model} with {words.count(training.parameters, 'parameter')} · "
        f"attention bias: {training.attention_bias} · {training.dtype} · {data}"
    )
    return title, note


def _short(name: str | None) -> str:
    return words.shorten(words.plain(str(name)), 30)
