"""Emergence curves: each layer's largest activation, kurtosis and attention sink as training goes on."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.analysis import emergence_curve
from massive_jax.report import style, words
from massive_jax.report.curves import Chart, Curve, draw_charts
from massive_jax.report.records import as_record
from massive_jax.report.results import Census, Emergence, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Shown = tuple[str, str, bool]  # key of a layer's record, name of the axis, whether it is logarithmic
_LARGEST: _Shown = ("largest", "Largest magnitude", True)
_KURTOSIS: _Shown = ("kurtosis", "Kurtosis", True)
_SINK: _Shown = ("sink_rate", "Attention on {sink}", False)
_SLOTS: _Shown = ("slot_rate", "Attention on the bias", False)


def plot_emergence(
    result: Training | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws a line a layer against the steps: largest magnitude, kurtosis, share of attention on the sink.

    Where there is an attention bias with slots, the share of attention on those is a fourth panel. A number that is
    not finite, or not positive on a logarithmic axis, is a gap.

    Args:
      result: a training, or a mapping with its fields.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there is no census; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: Training | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_emergence`; call it under `style.context()`."""
    training = as_record(Training, result)
    return _draw(*_words(training), training.census, training.sink, [], [_LARGEST, _KURTOSIS, _SINK])


def plot_fits(
    result: Emergence | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws each layer's largest over its median against the steps, points and the curve through them.

    Under it largest magnitude and share of attention on the sink, and on the bias where one has slots. What is not
    finite is a gap.

    Args:
      result: an emergence, or what emergence.json holds.
      path: as for `plot_emergence`.
      axes: likewise.
      dark: likewise.

    Returns:
      The figure.

    Raises:
      ValueError: there is no census; or another suffix.
    """
    return style.plot(lambda: draw_fits(result), path, axes=axes, dark=dark)


def draw_fits(result: Emergence | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_fits`; call it under `style.context()`."""
    found = as_record(Emergence, result)
    if not found.census:
        raise ValueError("the census is empty: there is nothing to draw")
    last = found.census[-1]
    steps = np.linspace(found.census[0].step, last.step, 300)
    through = [
        (fit.layer, steps, emergence_curve(steps, **{name: one.value for name, one in fit.parameters.items()}))
        for fit in found.fits
        if fit.parameters is not None
    ]
    peak = max(last.layers, key=lambda layer: layer.ratio if np.isfinite(layer.ratio) else 0.0)
    curves = f"curves through {len(through)} of {len(found.fits)} layers"
    title = (
        f"After {words.count(last.step, 'step')}, layer {peak.layer}'s largest is {words.number(peak.ratio, 3)} "
        + (
            f"times its median; {curves}"
            + ("" if found.r_squared is None else f", R² {found.r_squared:.3f} on average")
        )
    )
    note = [words.model_name(found), words.count(len(found.census), "checkpoint")]
    if found.images is not None:
        note.append(words.count(len(found.images), "image"))
    elif found.text is not None:
        note.append(f"text: {_short(found.text)}")
    note.append("A e^(−λx) log x + K, x = γt + t₀ (arXiv 2508.03616, eq. 9)")
    return _draw(
        title,
        " · ".join(note),
        found.census,
        found.sink,
        through,
        [("ratio", "Largest / median", True), _LARGEST, _SINK],
    )


def _draw(
    title: str,
    note: str,
    census: Sequence[Census],
    sink: str,
    through: Sequence[tuple[int, np.ndarray, np.ndarray]],
    shown: Sequence[_Shown],
) -> "Figure":
    """Charts of what is `shown` of each layer; `through` the points of the first, curves (layer, x, y)."""
    if not census:
        raise ValueError("the census is empty: there is nothing to draw")
    if any(layer.slot_rate > 0 for record in census for layer in record.layers):
        shown = [*shown, _SLOTS]
    steps = np.array([record.step for record in census])
    num_layers = len(census[0].layers)
    colours = style.ordered(num_layers)
    named = style.layer_ticks(1, num_layers, most=8)

    def curve(key: str, layer: int, points: bool) -> Curve:
        values = np.array([getattr(record.layers[layer - 1], key) for record in census])
        name = f"Layer {layer}" if layer in named else ""
        marker, line = 3.0 * (points or len(steps) == 1), "" if points else "-"
        return Curve(steps, values, colours[layer - 1], name, marker=marker, style=line)

    drawn = {layer for layer, _, _ in through}
    charts = [
        Chart(
            name.format(sink=sink),
            log,
            [curve(key, layer, points=not row and layer in drawn) for layer in range(1, num_layers + 1)],
        )
        for row, (key, name, log) in enumerate(shown)
    ]
    fitted = [Curve(x, y, colours[layer - 1]) for layer, x, y in through]
    charts[0] = charts[0]._replace(curves=[*fitted, *charts[0].curves])
    limits = (steps[0], steps[-1]) if steps[-1] > steps[0] else None
    return draw_charts(title, note, charts, height=1.7, x_label="Step", x_limits=limits)


def _words(training: Training) -> tuple[str, str]:
    """The title, which is the finding, and the line under it."""
    if not training.census:
        raise ValueError("the census is empty: there is nothing to draw")
    last = training.census[-1]
    peak = max(last.layers, key=lambda layer: layer.largest)
    ratio = peak.largest / max(peak.median, 1e-30)
    sink = max(layer.sink_rate for layer in last.layers)
    title = (
        f"After {words.count(last.step, 'step')}: largest activation {words.number(peak.largest, 3)}, "
        f"{words.number(ratio, 3)} times the median"
    )
    if np.isfinite(sink):
        title += f"; up to {100 * sink:.0f} % of attention on {training.sink}"
    data = f"text: {_short(training.text)}" if training.text is not None else f"dataset: {_short(training.dataset)}"
    note = (
        f"{training.model} with {words.count(training.parameters, 'parameter')} · "
        f"attention bias: {training.attention_bias} · {training.dtype} · {data}"
    )
    return title, note


def _short(name: str | None) -> str:
    return words.shorten(words.plain(str(name)), 30)
