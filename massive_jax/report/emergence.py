"""Emergence curves: each layer's largest activation, kurtosis and attention sink as training goes on."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, PANEL, GAP = 7.0, 1.7, 0.28  # inches
_PANELS = (  # key of a layer's record, name of the axis, whether it is logarithmic
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
    """The figure of `plot_emergence`; call it under `style.context()`."""
    import matplotlib
    from matplotlib.ticker import FuncFormatter, NullFormatter

    records = result["census"]
    if not records:
        raise ValueError('result["census"] is empty: there is nothing to draw')
    steps = np.array([record["step"] for record in records])
    panels = list(_PANELS)
    if any(style.as_float(layer["slot_rate"]) > 0 for record in records for layer in record["layers"]):
        panels.append(("slot_rate", "Attention on the bias", False))
    num_layers = len(records[0]["layers"])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, num_layers))

    header = style.Header(*_words(result, records), WIDTH)
    left, bottom = 0.95, 0.45
    height = bottom + len(panels) * (PANEL + GAP) - GAP + header.height
    made = style.figure(WIDTH, height)
    header.draw(made)
    labels = style.layer_ticks(1, num_layers, most=8)
    right = style.text_width(f"Layer {num_layers}") + 0.3 + style.MARGIN
    for row, (key, name, logarithmic) in enumerate(panels):
        base = bottom + (len(panels) - 1 - row) * (PANEL + GAP)
        ax = style.axes(made, left, base, WIDTH - left - right, PANEL)
        values = np.array([[style.as_float(layer[key]) for layer in record["layers"]] for record in records])
        values = np.where(np.isfinite(values) & ((values > 0) | (not logarithmic)), values, np.nan)
        if logarithmic:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        for layer in range(num_layers):
            marker = "o" if len(steps) == 1 else ""
            ax.plot(steps, values[:, layer], color=colours[layer], linewidth=1.2, marker=marker, markersize=3)
        if steps[-1] > steps[0]:
            ax.set_xlim(steps[0], steps[-1])
        if not logarithmic:
            ax.set_ylim(0, max(1e-3, 1.05 * np.nanmax(values, initial=0.0)))
        name = name.format(sink=_sink(result))
        style.text(made, style.MARGIN, base + PANEL / 2, name, rotation=90, va="center", size=style.SMALL)
        if row < len(panels) - 1:
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xlabel("Step")
        shown = [layer for layer in labels if np.isfinite(values[-1, layer - 1])]
        ends = [ax.transData.transform((steps[-1], values[-1, layer - 1]))[1] / style.DPI for layer in shown]
        places = style.spread(ends, [style.text_height(style.SMALL)] * len(ends), base, base + PANEL)
        for layer, end, place in zip(shown, ends, places, strict=True):
            x, colour = WIDTH - right, colours[layer - 1]
            style.line(made, [x + 0.03, x + 0.2], [end, place], color=colour, linewidth=0.7)
            style.text(made, x + 0.25, place, f"Layer {layer}", color=colour, size=style.SMALL, va="center_baseline")
    return made


def _words(result: Mapping[str, Any], records: Any) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    last = records[-1]
    peak = max(last["layers"], key=lambda layer: style.as_float(layer["largest"]))
    ratio = style.as_float(peak["largest"]) / max(style.as_float(peak["median"]), 1e-30)
    sink = max(style.as_float(layer["sink_rate"]) for layer in last["layers"])
    largest = style.number(style.as_float(peak["largest"]), 3)
    title = (
        f"After {style.count(last['step'], 'step')}: largest activation {largest}, "
        f"{style.number(ratio, 3)} times the median; up to {100 * sink:.0f} % of attention on {_sink(result)}"
    )
    notes = [
        f"{result['model']} with {style.count(result['parameters'], 'parameter')} · "
        f"attention bias: {result['attention_bias']} · {result['dtype']} · {_data(result)}"
    ]
    return title, notes


def _sink(result: Mapping[str, Any]) -> str:
    return str(result.get("sink", "position 0"))


def _data(result: Mapping[str, Any]) -> str:
    kind = "text" if "text" in result else "dataset"
    return f"{kind}: {style.shorten(style.plain(str(result[kind])), 30)}"
