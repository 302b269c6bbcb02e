"""Emergence curves: each layer's largest activation, kurtosis and attention sink as training goes on."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style
from massive_jax.report.curves import Chart, Curve, draw_charts, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHARTS = (  # key of a layer's record, name of the axis, whether it is logarithmic
    ("largest", "Largest magnitude", True),
    ("kurtosis", "Kurtosis", True),
    ("sink_rate", "Attention on {sink}", False),
)


def plot_emergence(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws a line a layer against the steps: largest magnitude, kurtosis, share of attention on the sink.

    Where there is an attention bias with slots, the share of attention on those is a fourth panel. A number that is
    not finite, or not positive on a logarithmic axis, is a gap.

    Args:
      result: "model", "attention_bias", "text" or "dataset", "dtype", "parameters" and "census": one record a census,
        each with "step" and "layers" (as `massive_jax.train.take_census` gives them); and "sink", what that is called,
        "position 0" by default.
      path: where the figure goes: .png, .pdf or .svg. Written whole or not at all.

    Raises:
      ValueError: there is no census; or another suffix.
    """
    with style.context():
        style.save(draw(result), path)


def draw(result: Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_emergence`; call it under `style.context()`."""
    import matplotlib

    records = result["census"]
    if not records:
        raise ValueError('result["census"] is empty: there is nothing to draw')
    steps = np.array([record["step"] for record in records])
    shown = list(_CHARTS)
    if any(style.as_float(layer["slot_rate"]) > 0 for record in records for layer in record["layers"]):
        shown.append(("slot_rate", "Attention on the bias", False))
    num_layers = len(records[0]["layers"])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, num_layers))
    named = style.layer_ticks(1, num_layers, most=8)

    def curve(key: str, layer: int) -> Curve:
        values = numbers([record["layers"][layer - 1][key] for record in records])
        name, marker = f"Layer {layer}" if layer in named else "", 3.0 * (len(steps) == 1)
        return Curve(steps, values, colours[layer - 1], name, marker=marker)

    return draw_charts(
        *_words(result, records),
        [
            Chart(name.format(sink=_sink(result)), log, [curve(key, layer) for layer in range(1, num_layers + 1)])
            for key, name, log in shown
        ],
        height=1.7,
        x_label="Step",
        x_limits=(steps[0], steps[-1]) if steps[-1] > steps[0] else None,
    )


def _words(result: Mapping[str, Any], records: Any) -> tuple[str, str]:
    """The title, which is the finding, and the line under it."""
    last = records[-1]
    peak = max(last["layers"], key=lambda layer: style.as_float(layer["largest"]))
    ratio = style.as_float(peak["largest"]) / max(style.as_float(peak["median"]), 1e-30)
    sink = max(style.as_float(layer["sink_rate"]) for layer in last["layers"])
    largest = style.number(style.as_float(peak["largest"]), 3)
    title = (
        f"After {style.count(last['step'], 'step')}: largest activation {largest}, "
        f"{style.number(ratio, 3)} times the median; up to {100 * sink:.0f} % of attention on {_sink(result)}"
    )
    note = (
        f"{result['model']} with {style.count(result['parameters'], 'parameter')} · "
        f"attention bias: {result['attention_bias']} · {result['dtype']} · {_data(result)}"
    )
    return title, note


def _sink(result: Mapping[str, Any]) -> str:
    return str(result.get("sink", "position 0"))


def _data(result: Mapping[str, Any]) -> str:
    kind = "text" if "text" in result else "dataset"
    return f"{kind}: {style.shorten(style.plain(str(result[kind])), 30)}"
