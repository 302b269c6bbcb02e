"""Register tokens block by block: the largest activation of each, and the median magnitude."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.curves import number_logarithmic
from massive_jax.report.records import as_record
from massive_jax.report.results import RegisterLayers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, PLOT_HEIGHT = 6.0, 2.6  # inches


def plot_registers(
    result: RegisterLayers | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws each register's largest mean magnitude against the layer, on a log axis.

    Args:
      result: the registers' layers, or what vit_registers.json holds.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: RegisterLayers | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_registers`; call it under `style.context()`."""
    from matplotlib.ticker import FixedLocator

    registers = as_record(RegisterLayers, result)
    rows = registers.layers
    x = np.array([row.layer for row in rows])
    largest = np.abs([[entry.value for entry in row.largest] for row in rows])  # [L, R]
    median = np.array([row.median for row in rows])
    header = style.Header(*_words(registers), WIDTH)
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
        mark = "o" if len(x) == 1 else ""
        wide = 1.4 if colour == style.MASSIVE else 1
        ax.plot(x, np.where(y > 0, y, np.nan), line, marker=mark, color=colour, linewidth=wide)
    ax.set_xlim(x[0] - 0.3, x[-1] + 0.3)
    ax.xaxis.set_major_locator(FixedLocator(style.layer_ticks(int(x[0]), int(x[-1]))))
    ax.set_ylim(*ax.get_ylim())  # fixed here: what follows asks where curves end
    number_logarithmic(ax.yaxis, *ax.get_ylim())
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


def _words(registers: RegisterLayers) -> tuple[str, list[str]]:
    """The title, which is the finding, and the line under it."""
    model, notes = words.model_name(registers), [_source(registers)]
    if not registers.massive:
        return f"Registers of {model}: none has a massive activation", notes
    first = max(registers.massive, key=lambda entry: abs(entry.value))
    where = f"reg{first.register}, dim {first.dim}"
    return f"Registers of {model}: massive at {where} ({words.number(first.value)} in layer {first.layer})", notes


def _source(registers: RegisterLayers) -> str:
    if registers.means == "collected":
        return f"Largest activation of each register's mean over {words.count(registers.count, 'image')}"
    return f"Largest activation of each register's mean, from {words.plain(os.path.basename(registers.means))}"
