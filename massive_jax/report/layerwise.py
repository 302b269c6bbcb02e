"""The paper's layer-wise figure: the largest magnitudes and the median of each layer's hidden state."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, PLOT_HEIGHT = 7.0, 3.0  # inches
_COLOURS = (style.MASSIVE, style.BLUE, style.GREEN)  # of top 1, 2, 3


def plot_layerwise(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws top-1, top-2, top-3 and median magnitude against layer (the paper's layer-wise figure).

    Magnitudes are on a log axis. A filled marker, in the shaded region, meets both criteria of a massive
    activation (magnitude and ratio to the layer’s median); an open one does not. The largest is annotated.

    Args:
      result: what layerwise.json holds: "model", "dtype", "bos", "windows", "context", "layers" (one a layer:
        "layer", 1-based; "top", the largest first, each with "value", signed, "position", "dim", "token";
        "median"), "massive" (each with "layer", "meets_magnitude", "meets_ratio" and what "top" has) and
        "thresholds" ("magnitude", "ratio"). A value that is null or not finite is left out and named
        under the title.
      path: where the figure goes: .png, .pdf or .svg. Written whole or not at all.

    Raises:
      ValueError: there are no layers, or one without a largest value; or another suffix.
    """
    with style.context():
        style.save(draw(result), path)


def draw(result: Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_layerwise`; call it under `style.context()`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    rows = sorted(result["layers"], key=lambda row: row["layer"])
    if not rows or not all(row["top"] for row in rows):
        raise ValueError('result["layers"] needs one layer or more, each with one or more entries in "top"')
    ratio, threshold = float(result["thresholds"]["ratio"]), float(result["thresholds"]["magnitude"])
    ranks = min(3, *(len(row["top"]) for row in rows), 3)
    x = np.array([row["layer"] for row in rows])
    tops = np.abs([[style.as_float(entry["value"]) for entry in row["top"][:ranks]] for row in rows])  # [L, ranks]
    median = np.abs([style.as_float(row["median"]) for row in rows])
    broken = x[~(np.isfinite(tops).all(axis=1) & np.isfinite(median))]
    tops, median = (np.where(np.isfinite(a) & (a > 0), a, np.nan) for a in (tops, median))
    # A logarithmic axis has no place for zeros: criteria of 0, which everything meets, and the median of zeros.
    limit = threshold if threshold > 0 else np.nan
    criterion = np.where(ratio * median > 0, ratio * median, np.nan)
    floor = np.fmax(limit, criterion)  # above it both criteria are met
    massive = tops > np.where(np.isnan(floor), 0, floor)[:, None]

    header = style.Header(*_words(result, ratio, threshold, broken), WIDTH)
    peak = _peak(rows, tops)
    callout = style.wrap(peak[2], 4.6) if peak else []
    # One label a line, at its right end: (text, y, colour).
    curves: list[tuple[str, np.ndarray, str]] = [(f"Top {k + 1}", tops[:, k], _COLOURS[k]) for k in range(ranks)]
    curves += [
        ("Median", median, style.INK),
        (f"{style.number(ratio, 1)} × median", criterion, style.GREY),
        (f"Threshold {style.number(threshold, 1)}", np.array([limit]), style.GREY),
    ]
    ends = [(name, _last(y), colour) for name, y, colour in curves if np.isfinite(y).any()]

    height = header.height + PLOT_HEIGHT + 0.5
    made = style.figure(WIDTH, height)
    header.draw(made)
    left, bottom = 0.82, 0.45
    right = max((style.text_width(name) for name, *_ in ends), default=0.0) + 0.3 + style.MARGIN
    room = WIDTH - left - right
    ax = style.axes(made, left, bottom, room, PLOT_HEIGHT, zorder=1)

    values = np.concatenate([tops.ravel(), median, criterion, [limit]])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.ones(1)
    low, high = np.log10(values.min()) - 0.15, np.log10(values.max()) + 0.15
    band = len(callout) * style.text_height() + 0.16 if callout else 0.0  # kept free for the callout
    high += (high - low) * band / (PLOT_HEIGHT - band)
    ax.set_yscale("log")
    ax.set_ylim(10**low, 10**high)
    ax.set_xlim(x[0] - 0.5, x[-1] + 0.5)

    edge_x = np.concatenate([[x[0] - 0.5], x, [x[-1] + 0.5]])
    ax.fill_between(
        edge_x, np.pad(np.fmax(floor, 10**low), 1, "edge"), 10**high, color=style.TINT, linewidth=0, zorder=0
    )
    ax.axhline(limit, color=style.GREY, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
    ax.plot(edge_x, np.pad(criterion, 1, "edge"), color=style.GREY, linewidth=0.9, linestyle=":", zorder=1)
    ax.plot(x, median, color=style.INK, linewidth=1.6, marker="" if len(x) > 1 else "o", zorder=2)
    size = float(np.clip(130 / len(x), 2.2, 4.5))
    for k in range(ranks):
        colour = _COLOURS[k]
        ax.plot(x, tops[:, k], color=colour, linewidth=1.2, zorder=5 - k)
        for full in (True, False):
            chosen = massive[:, k] if full else ~massive[:, k]
            ax.plot(
                x[chosen],
                tops[chosen, k],
                linestyle="",
                marker="os^"[k],
                markersize=size,
                markeredgewidth=0.8,
                markeredgecolor=colour,
                markerfacecolor=colour if full else "white",
                zorder=5.5 - k,
            )

    decades = range(int(np.ceil(low)), int(np.floor(high)) + 1)
    ax.yaxis.set_major_locator(FixedLocator([10.0**d for d in decades][:: 1 + len(decades) // 9]))
    plain = all(-4 <= decade <= 6 for decade in decades)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}" if plain else style.power(round(np.log10(v)))))
    ax.yaxis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=99))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(FixedLocator(style.layer_ticks(int(x[0]), int(x[-1]))))
    ax.set_xlabel("Layer (output of block)")
    style.text(made, style.MARGIN, bottom + PLOT_HEIGHT / 2, "Magnitude", rotation=90, va="center")

    def to_inches(value: Any) -> Any:
        return bottom + PLOT_HEIGHT * (np.log10(value) - low) / (high - low)

    targets = [to_inches(y) for _, y, _ in ends]
    places = style.spread(targets, [style.text_height()] * len(ends), bottom, bottom + PLOT_HEIGHT)
    for (name, _, colour), target, place in zip(ends, targets, places, strict=True):
        style.line(
            made,
            [left + room + 0.03, left + room + 0.2],
            [target, place],
            color=colour,
            linewidth=0.7,
            alpha=0.8,
        )
        style.text(made, left + room + 0.25, place, name, color=colour, va="center_baseline")

    if not peak:
        words = "No finite value to draw"
        style.text(made, left + room / 2, bottom + PLOT_HEIGHT / 4, words, color=style.GREY, ha="center")
    else:
        at, value, _ = peak
        tip = left + room * (at - x[0] + 0.5) / (x[-1] - x[0] + 1)
        half = max(style.text_width(row) for row in callout) / 2
        centre = float(np.clip(tip, left + half + 0.08, left + room - half - 0.08))
        # As near above the point as no line is in the way; at most in the band at the top.
        base, tall = to_inches(value) + 0.2, band - 0.16
        across = np.abs(left + room * (x - x[0] + 0.5) / (x[-1] - x[0] + 1) - centre) < half + 0.3
        lines = [to_inches(y) for y in [limit, *criterion[across]] if np.isfinite(y)]
        while any(base - 0.06 < y < base + tall + 0.06 for y in lines):
            base += 0.02
        base = min(base, bottom + PLOT_HEIGHT - band + 0.1)
        style.line(made, [tip, tip], [base, to_inches(value) + 0.05], color=style.INK, linewidth=0.7, zorder=9)
        for i, row in enumerate(reversed(callout)):
            style.text(made, centre, base + i * style.text_height() + 0.04, row, ha="center", zorder=9)
    return made


def _words(result: Mapping[str, Any], ratio: float, threshold: float, broken: np.ndarray) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    model = style.model_name(result)
    layers = {entry["layer"] for entry in result["massive"] if entry["meets_magnitude"] and entry["meets_ratio"]}
    if layers:
        title = f"Massive activations in {model}: layer{'s' * (len(layers) > 1)} {style.spans(sorted(layers))}"
    else:
        title = f"No massive activation in {model}"
    limits = f"> {style.number(threshold, 1)} and > {style.number(ratio, 1)} × the layer’s median"
    notes = [f"{style.conditions(result)} · shaded, filled markers: massive ({limits})"]
    if len(broken):
        notes.append(f"Not finite, so left out: layer{'s' * (len(broken) > 1)} {style.spans(broken.tolist(), 6)}")
    return title, notes


def _peak(rows: list[Mapping[str, Any]], tops: np.ndarray) -> tuple[int, float, str] | None:
    """Layer, magnitude and description of the largest value; None when no value can be drawn."""
    if not np.isfinite(tops).any():
        return None
    i, k = np.unravel_index(np.nanargmax(tops), tops.shape)
    row, entry = rows[i], rows[i]["top"][k]
    where = f"layer {row['layer']}, position {entry['position']}"
    if entry["token"] is not None:  # None: it differs between the windows
        where += f" “{style.label(entry['token'], limit=24)}”"
    return (
        row["layer"],
        float(tops[i, k]),
        f"{style.magnitude(entry['value'])} at {where}, dim {entry['dim']}",
    )


def _last(y: np.ndarray) -> float:
    """The last finite value of a line."""
    return float(y[np.isfinite(y)][-1])
