"""What an edit does in each layer at each position, as a map; beside it what gradients say."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.records import as_record
from massive_jax.report.results import SweepResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL, _LEAST, _MOST, _GAP = 0.19, 1.9, 4.4, 0.3  # inches: a cell; a map, its least and its most; between


def plot_sweep(
    result: SweepResult | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws the change of a metric by layer and position, and what gradients say of it, on one scale.

    Args:
      result: what was measured, or what sweep.json holds. A number that is not finite is left blank.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: values that are not L × T; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: SweepResult | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_sweep`; call it under `style.context()`."""
    from matplotlib.colors import Normalize

    found = as_record(SweepResult, result)
    maps = [("Change", np.array(found.values, float) - found.unedited)]
    if found.approximate is not None:
        maps.append(("To first order, by gradients", np.array(found.approximate, float)))
    L, T = len(found.values), len(found.tokens)
    for name, values in maps:
        if values.shape != (L, T) or not values.size:
            raise ValueError(f"{name.lower()} has shape {values.shape}; expected layers × {T} tokens")
    wide, high = (float(np.clip(_CELL * size, _LEAST, _MOST)) for size in (T, L))
    names = _names(found.tokens, wide)
    below = max(style.text_width(name, style.SMALL) for _, name in names)
    left, bottom = style.MARGIN + 0.62, style.MARGIN + 0.2 + below + 0.1
    limit = float(np.nanmax(np.abs(np.where(np.isfinite(maps[0][1]), maps[0][1], 0)))) or 1.0
    ticks = [(value, words.number(value, 3)) for value in (-limit, -limit / 2, 0.0, limit / 2, limit)]
    scale = style.bar_width(ticks)
    width = max(left + len(maps) * (wide + _GAP) - _GAP + 0.02 + scale + style.MARGIN, 5.2)
    header = style.Header(*_words(found, maps[0][1]), width)
    made = style.figure(width, bottom + high + 0.34 + header.height)
    header.draw(made)
    x = left
    for i, (name, values) in enumerate(maps):
        ax = style.axes(made, x, bottom, wide, high)
        ax.set_facecolor(style.RULE)
        image = ax.imshow(
            np.where(np.isfinite(values), values, np.nan),
            cmap=style.diverging(),
            norm=Normalize(-limit, limit),
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, T - 0.5, L + 0.5, 0.5),
        )
        ax.spines[["top", "right"]].set_visible(True)
        ax.tick_params(length=0)
        ax.set_xticks([], [])
        ax.set_yticks(style.layer_ticks(1, L, max(2, int(high / 0.2))) if i == 0 else [])
        for position, token in names:
            at = x + wide * (position + 0.5) / T
            style.text(made, at, bottom - 0.06, token, size=style.SMALL, rotation=90, ha="center", va="top")
        style.text(made, x, bottom + high + 0.14, name)
        style.text(made, x + wide / 2, style.MARGIN, "Edited token", ha="center", va="bottom")
        x += wide + _GAP
    style.text(made, style.MARGIN, bottom + high / 2, "Layer", rotation=90, va="center")
    style.bar(made, image, x - _GAP + 0.02, bottom, high, ticks)
    return made


def _names(tokens: Sequence[str], wide: float) -> list[tuple[int, str]]:
    """(position, text) of as many tokens as can be named along a side."""
    step = max(1, int(np.ceil(style.text_height(style.SMALL) * 0.95 * len(tokens) / wide)))
    return [(position, words.label(tokens[position], limit=14)) for position in range(0, len(tokens), step)]


def _words(found: SweepResult, change: np.ndarray) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    metric = found.metric.replace("_", " ")
    layer, position = np.unravel_index(np.nanargmax(np.abs(np.where(np.isfinite(change), change, 0))), change.shape)
    token = words.label(found.tokens[position], limit=18)
    if not np.isfinite(change).any():
        said = f"the {metric} is no number under any edit"
    elif not change[np.isfinite(change)].any():
        said = f"no edit changes the {metric}, {words.number(found.unedited, 3)}"
    else:
        said = (
            f"the {metric} changes most ({words.number(found.unedited, 3)} → "
            f"{words.number(found.values[layer][position], 3)}) at layer {layer + 1}, token {position} “{token}”"
        )
    title = f"{words.model_name(found)}: {said}"
    of = (
        "" if not found.targets else " of " + " and ".join(f"“{words.label(text, limit=18)}”" for text in found.targets)
    )
    notes = [f"{metric}{of} under one edit each: {edit_in_words(found)} · {words.conditions(found)}"]
    if found.spearman is not None:
        notes.append(f"rank correlation of gradients with the truth (Spearman): {words.number(found.spearman, 3)}")
    return title, notes


def edit_in_words(found: SweepResult) -> str:
    """Says what the edit is: "block_out of a token set to 0"."""
    what = f"{found.site} of a token" + ("" if found.dim is None else f", dim {found.dim},")
    if found.patched_from is not None:
        return f"{what} set to that of “{words.shorten(words.plain(found.patched_from), 60)}”"
    verb = {"set": "set to", "scale": "times", "add": "plus"}[found.op]
    return f"{what} {verb} {words.number(found.value, 3)}"
