"""The paper's layer-wise figure: the largest magnitudes and the median of each layer's hidden state."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.curves import number_logarithmic
from massive_jax.report.records import as_record
from massive_jax.report.results import ImageSource, Layerwise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, PLOT_HEIGHT = 7.0, 3.0  # inches
_LEFT, _BOTTOM = 0.82, 0.45  # inches: where the plot's corner is


def plot_layerwise(
    result: Layerwise | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws top-1, top-2, top-3 and median magnitude against layer (the paper's layer-wise figure).

    Top k is the mean, over windows or images, of the k-th largest magnitude of a layer, wherever it is (paper, section
    2). Magnitudes are on a log axis. A filled marker, in the shaded region, meets both criteria of a massive
    activation (magnitude and ratio to the layer’s median); an open one does not. The largest is annotated.

    Args:
      result: the layers, or what layerwise.json holds. A value that is not finite is left out and named under the
        title.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there are no layers, or one without a largest value; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: Layerwise | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_layerwise`; call it under `style.context()`."""
    found = as_record(Layerwise, result)
    curves = _curves(found)
    header = style.Header(*_words(found, curves.broken), WIDTH)
    made = style.figure(WIDTH, header.height + PLOT_HEIGHT + 0.5)
    header.draw(made)
    ends = curves.ends(found)
    right = max((style.text_width(name) for name, *_ in ends), default=0.0) + 0.3 + style.MARGIN
    peak = _peak(found, curves)
    callout = style.wrap(peak[2], 4.6) if peak else []
    panel = _Panel.of(made, curves, WIDTH - _LEFT - right, lines=len(callout))
    panel.draw(curves)
    panel.name_ends(ends)
    if peak:
        panel.call_out(curves, peak[:2], callout)
    else:
        nothing = "No finite value to draw"
        style.text(made, panel.middle, _BOTTOM + PLOT_HEIGHT / 4, nothing, color=style.GREY, ha="center")
    return made


@dataclasses.dataclass(frozen=True)
class _Curves:
    """What is drawn; what cannot be is NaN: a logarithmic axis has no place for zeros.

    Attributes:
      x: layers, int [L].
      tops: largest magnitudes, [L, ranks].
      median: median magnitudes, [L].
      criterion: the ratio's threshold, [L]; NaN where everything meets it.
      limit: the magnitude's threshold; NaN where everything meets it.
      broken: layers with a number that is not finite.
    """

    x: np.ndarray
    tops: np.ndarray
    median: np.ndarray
    criterion: np.ndarray
    limit: float
    broken: np.ndarray

    @property
    def floor(self) -> np.ndarray:
        """Above it both criteria are met: [L]."""
        return np.fmax(self.limit, self.criterion)

    @property
    def values(self) -> np.ndarray:
        """Every number that the axis has to show, one at least."""
        values = np.concatenate([self.tops.ravel(), self.median, self.criterion, [self.limit]])
        return values[np.isfinite(values)] if np.isfinite(values).any() else np.ones(1)

    def ends(self, found: Layerwise) -> list[tuple[str, float, str]]:
        """Name, last number and colour of each curve."""
        limits = found.thresholds
        curves = [(f"Top {k + 1}", top, _colours()[k]) for k, top in enumerate(self.tops.T)]
        curves += [
            ("Median", self.median, style.INK),
            (f"{words.number(limits.ratio, 1)} × median", self.criterion, style.GREY),
            (f"Threshold {words.number(limits.magnitude, 1)}", np.array([self.limit]), style.GREY),
        ]
        return [(name, float(y[np.isfinite(y)][-1]), colour) for name, y, colour in curves if np.isfinite(y).any()]


def _colours() -> tuple[str, str, str]:
    """Of top 1, 2, 3."""
    return style.MASSIVE, style.BLUE, style.GREEN


def _curves(found: Layerwise) -> _Curves:
    layers = _sorted(found)
    if not layers or not all(layer.top for layer in layers):
        raise ValueError("a layer-wise figure needs one layer or more, each with one or more of its largest values")
    ratio, threshold = found.thresholds.ratio, found.thresholds.magnitude
    ranks = min(3, *(len(layer.largest) for layer in layers), 3)
    x = np.array([layer.layer for layer in layers])
    tops = np.abs([layer.largest[:ranks] for layer in layers])
    median = np.abs([layer.median for layer in layers])
    broken = x[~(np.isfinite(tops).all(axis=1) & np.isfinite(median))]
    tops, median = (np.where(np.isfinite(a) & (a > 0), a, np.nan) for a in (tops, median))
    criterion = np.where(ratio * median > 0, ratio * median, np.nan)
    return _Curves(x, tops, median, criterion, threshold if threshold > 0 else np.nan, broken)


def _sorted(found: Layerwise) -> list[Any]:
    return sorted(found.layers, key=lambda layer: layer.layer)


@dataclasses.dataclass(frozen=True)
class _Panel:
    """The plot in its figure.

    Attributes:
      made: the figure.
      ax: the axes.
      width: of those, in inches.
      x: layers at their ends.
      low, high: of the magnitudes' axis, log10.
      band: inches at the top that are kept free for the callout.
    """

    made: "Figure"
    ax: Any
    width: float
    x: tuple[int, int]
    low: float
    high: float
    band: float

    @classmethod
    def of(cls, made: "Figure", curves: _Curves, width: float, *, lines: int) -> "_Panel":
        """Makes axes that show all of `curves` and have room for a callout of so many lines."""
        ax = style.axes(made, _LEFT, _BOTTOM, width, PLOT_HEIGHT, zorder=1)
        low, high = np.log10(curves.values.min()) - 0.15, np.log10(curves.values.max()) + 0.15
        band = lines * style.text_height() + 0.16 if lines else 0.0
        high += (high - low) * band / (PLOT_HEIGHT - band)
        first, last = int(curves.x[0]), int(curves.x[-1])
        ax.set_yscale("log")
        ax.set_ylim(10**low, 10**high)
        ax.set_xlim(first - 0.5, last + 0.5)
        panel = cls(made, ax, width, (first, last), low, high, band)
        panel._number_axes()
        return panel

    @property
    def middle(self) -> float:
        """Its centre, in inches from the left."""
        return _LEFT + self.width / 2

    def across(self, layer: Any) -> Any:
        """Inches from the left of a layer."""
        first, last = self.x
        return _LEFT + self.width * (layer - first + 0.5) / (last - first + 1)

    def up(self, value: Any) -> Any:
        """Inches from below of a magnitude."""
        return _BOTTOM + PLOT_HEIGHT * (np.log10(value) - self.low) / (self.high - self.low)

    def _number_axes(self) -> None:
        from matplotlib.ticker import FixedLocator, LogLocator

        self.ax.yaxis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=99))
        number_logarithmic(self.ax.yaxis, 10**self.low, 10**self.high)
        self.ax.xaxis.set_major_locator(FixedLocator(style.layer_ticks(*self.x)))
        self.ax.set_xlabel("Layer (output of block)")
        style.text(self.made, style.MARGIN, _BOTTOM + PLOT_HEIGHT / 2, "Magnitude", rotation=90, va="center")

    def draw(self, curves: _Curves) -> None:
        """Draws the curves, their markers, and the region in which both criteria are met."""
        ax, x, colours = self.ax, curves.x, _colours()
        edges = np.concatenate([[x[0] - 0.5], x, [x[-1] + 0.5]])
        region = np.pad(np.fmax(curves.floor, 10**self.low), 1, "edge")
        ax.fill_between(edges, region, 10**self.high, color=style.TINT, linewidth=0, zorder=0)
        ax.axhline(curves.limit, color=style.GREY, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
        criterion = np.pad(curves.criterion, 1, "edge")
        ax.plot(edges, criterion, color=style.GREY, linewidth=0.9, linestyle=":", zorder=1)
        ax.plot(x, curves.median, color=style.INK, linewidth=1.6, marker="" if len(x) > 1 else "o", zorder=2)
        massive = curves.tops > np.nan_to_num(curves.floor)[:, None]
        size = float(np.clip(130 / len(x), 2.2, 4.5))
        for k, (top, full) in enumerate(zip(curves.tops.T, massive.T, strict=True)):
            ax.plot(x, top, color=colours[k], linewidth=1.2, zorder=5 - k)
            for chosen, face in ((full, colours[k]), (~full, style.PAPER)):
                marks = {"marker": "os^"[k], "markersize": size, "markerfacecolor": face}
                edge = {"markeredgewidth": 0.8, "markeredgecolor": colours[k]}
                ax.plot(x[chosen], top[chosen], linestyle="", zorder=5.5 - k, **marks, **edge)

    def name_ends(self, ends: Sequence[tuple[str, float, str]]) -> None:
        """Writes the curves' names at the right, one a line, each led to its curve's end."""
        edge, targets = _LEFT + self.width, [self.up(y) for _, y, _ in ends]
        heights = [style.text_height()] * len(ends)
        places = style.spread(targets, heights, _BOTTOM, _BOTTOM + PLOT_HEIGHT)
        for (name, _, colour), target, place in zip(ends, targets, places, strict=True):
            leader = ([edge + 0.03, edge + 0.2], [target, place])
            style.line(self.made, *leader, color=colour, linewidth=0.7, alpha=0.8)
            style.text(self.made, edge + 0.25, place, name, color=colour, va="center_baseline")

    def call_out(self, curves: _Curves, peak: tuple[int, float], rows: Sequence[str]) -> None:
        """Writes `rows` above the peak (layer, magnitude): as near as no line is in the way, at most in the band."""
        tip, top = self.across(peak[0]), self.up(peak[1])
        half = max(style.text_width(row) for row in rows) / 2
        centre = float(np.clip(tip, _LEFT + half + 0.08, _LEFT + self.width - half - 0.08))
        base, tall = top + 0.2, self.band - 0.16
        near = np.abs(self.across(curves.x) - centre) < half + 0.3
        lines = [self.up(y) for y in [curves.limit, *curves.criterion[near]] if np.isfinite(y)]
        while any(base - 0.06 < y < base + tall + 0.06 for y in lines):
            base += 0.02
        base = min(base, _BOTTOM + PLOT_HEIGHT - self.band + 0.1)
        style.line(self.made, [tip, tip], [base, top + 0.05], color=style.INK, linewidth=0.7, zorder=9)
        for i, row in enumerate(reversed(rows)):
            style.text(self.made, centre, base + i * style.text_height() + 0.04, row, ha="center", zorder=9)


def _words(found: Layerwise, broken: np.ndarray) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    model, limits = words.model_name(found), found.thresholds
    layers = {entry.layer for entry in found.massive if entry.massive}
    if layers:
        title = f"Massive activations in {model}: layer{'s' * (len(layers) > 1)} {words.spans(sorted(layers))}"
    else:
        title = f"No massive activation in {model}"
    meant = f"> {words.number(limits.magnitude, 1)} and > {words.number(limits.ratio, 1)} × the layer’s median"
    notes = [f"{words.conditions(found)} · shaded, filled markers: massive ({meant})"]
    if len(broken):
        notes.append(f"Not finite, so left out: layer{'s' * (len(broken) > 1)} {words.spans(broken.tolist(), 6)}")
    return title, notes


def _peak(found: Layerwise, curves: _Curves) -> tuple[int, float, str] | None:
    """Layer, magnitude and description of the largest value; None when no value can be drawn."""
    if not np.isfinite(curves.tops).any():
        return None
    i, k = np.unravel_index(np.nanargmax(curves.tops), curves.tops.shape)
    layer = _sorted(found)[i]
    top, drawn = layer.top[k], float(curves.tops[i, k])
    token = "" if top.token is None else f" “{words.label(top.token, limit=24)}”"  # None: it differs between windows
    where = f"position {str(top.position).replace('_', ' ')}{token}, dim {top.dim}"
    number, value = words.number(drawn), words.magnitude(top.value)
    if top.share == 1 and value.strip("|−") == number:  # the largest of every window
        return layer.layer, drawn, f"{value} at layer {layer.layer}, {where}"
    often = f" in {100 * top.share:.0f} % of {_inputs(found)}" if top.share < 1 else ""
    return layer.layer, drawn, f"{number} on average at layer {layer.layer}; {value} at {where}{often}"


def _inputs(found: Layerwise) -> str:
    return "the images" if isinstance(found.source, ImageSource) else "the windows"
