"""Register tokens block by block: the largest activation of each, and the median magnitude."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, PLOT_HEIGHT = 6.0, 2.6  # inches


def plot_registers(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws each register's largest mean magnitude against the layer, on a log axis.

    Args:
      result: what vit_registers.json holds: "model", "layers" (one a layer: "layer", from 0, the embedding; "median";
        "largest", one a register: "register", from 1, "dim", "value") and "massive" (each with "layer", "register",
        "dim", "value").
      path: where the figure goes: .png, .pdf or .svg. Written whole or not at all.

    Raises:
      ValueError: another suffix.
    """
    with style.context():
        style.save(draw(result), path)


def draw(result: Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_registers`; call it under `style.context()`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    rows = result["layers"]
    x = np.array([row["layer"] for row in rows])
    largest = np.abs([[style.as_float(entry["value"]) for entry in row["largest"]] for row in rows])  # [L, R]
    median = np.array([style.as_float(row["median"]) for row in rows])
    header = style.Header(*_words(result), WIDTH)
    height = header.height + PLOT_HEIGHT + 0.5
    made = style.figure(WIDTH, height)
    header.draw(made)

    peak = int(np.argmax(largest.max(axis=0)))  # the register of the largest activation
    curves = [
        (f"reg{i + 1}", largest[:, i], style.MASSIVE if i == peak else style.BLUE) for i in range(largest.shape[1])
    ]
    curves.append(("median", median, style.INK))
    curves = [curve for curve in curves if (curve[1] > 0).any()]
    left, bottom = 0.7, 0.45
    right = max(style.text_width(name) for name, *_ in curves) + 0.3
    ax = style.axes(made, left, bottom, WIDTH - left - right, PLOT_HEIGHT)
    ax.set_yscale("log")
    for name, y, colour in curves:
        line = "--" if name == "median" else "-"
        ax.plot(x, np.where(y > 0, y, np.nan), line, color=colour, linewidth=1.4 if colour == style.MASSIVE else 1)
    ax.set_xlim(x[0] - 0.3, x[-1] + 0.3)
    ax.xaxis.set_major_locator(FixedLocator(style.layer_ticks(int(x[0]), int(x[-1]))))
    ax.yaxis.set_major_locator(LogLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda size, _: style.number(size, 1)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color=style.RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel("Layer (0: embedding; layer l is the input of block l + 1)")
    ax.set_ylabel("Magnitude of the mean")
    low, high = np.log10(ax.get_ylim())
    ends = [PLOT_HEIGHT * (np.log10(y[y > 0][-1]) - low) / (high - low) for _, y, _ in curves]
    places = style.spread(ends, [style.text_height() * 0.9] * len(ends), 0, PLOT_HEIGHT)
    for (name, _, colour), at in zip(curves, places, strict=True):
        style.text(made, WIDTH - right + 0.1, bottom + at, name, color=colour, va="center_baseline")
    return made


def _words(result: Mapping[str, Any]) -> tuple[str, list[str]]:
    model = style.model_name(result)
    found = result["massive"]
    if not found:
        return f"Registers of {model}: none has a massive activation", [_source(result)]
    first = max(found, key=lambda entry: abs(style.as_float(entry["value"])))
    where = f"reg{first['register']}, dim {first['dim']}"
    value = style.number(style.as_float(first["value"]))
    return f"Registers of {model}: massive at {where} ({value} in layer {first['layer']})", [_source(result)]


def _source(result: Mapping[str, Any]) -> str:
    if result["means"] == "collected":
        return f"Largest activation of each register's mean over {style.count(result['count'], 'image')}"
    return f"Largest activation of each register's mean, from {style.plain(os.path.basename(result['means']))}"
