"""Attention before and after the softmax, and how much of it lands on the tokens with massive activations."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.report import style, words
from massive_jax.report.records import as_record
from massive_jax.report.results import AttentionMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, SHARES, GAP = 2.3, 1.85, 0.68  # inches: a heat map, the right panel's width, and what is between panels
MASKED = -1e30  # a logit at or below this is a mask, not a score


def plot_attention(
    result: AttentionMap | Mapping[str, Any],
    logits: np.ndarray,
    probs: np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws one layer's attention and, over all layers, its share on the massive tokens where there are some.

    Args:
      result: the layer, its tokens and the shares of all layers, or what attention_map.json holds.
      logits: [T, S], before the softmax. Masked entries (NaN, infinite, or at most -1e30) are left blank.
      probs: [T, S], after the softmax; blank where `logits` is, and where NaN.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: shapes that do not fit, or a massive position outside them; or another suffix.
    """
    return style.plot(lambda: draw(result, logits, probs), path, axes=axes, dark=dark)


def draw(result: AttentionMap | Mapping[str, Any], logits: np.ndarray, probs: np.ndarray) -> "Figure":
    """Draws the figure of `plot_attention`; call it under `style.context()`."""
    from matplotlib.colors import Normalize

    logits, probs = np.array(logits, np.float64), np.array(probs, np.float64)
    attention = as_record(AttentionMap, result)
    queries, keys, massive = attention.tokens, attention.keys, sorted(set(attention.massive_positions))
    if logits.shape != (len(queries), len(keys)) or probs.shape != logits.shape or not logits.size:
        raise ValueError(
            f"logits {logits.shape} and probs {probs.shape} must both be [T, S] with T = {len(queries)} "
            f"(tokens) and S = {len(keys)} ({'key_tokens' if attention.key_tokens else 'tokens'})"
        )
    if any(not 0 <= position < len(keys) for position in massive):
        raise ValueError(f"massive_positions {massive} are outside the {len(keys)} keys")
    logits[~np.isfinite(logits) | (logits <= MASKED)] = np.nan
    probs[np.isnan(logits)] = np.nan

    query_names = _names(queries, set(massive) & set(range(len(queries))))
    key_names = _names(keys, set(massive))
    margin = max(style.text_width(name, style.SMALL) for _, name in query_names)
    below = max(style.text_width(name, style.SMALL) for _, name in key_names)
    left, bottom = style.MARGIN + 0.22 + margin + 0.06, style.MARGIN + 0.2 + below + 0.1
    third = bool(massive) and np.isfinite(np.array(attention.shares, float)).any()
    limit = float(np.nanmax(np.abs(logits))) if np.isfinite(logits).any() else 0.0
    most = float(np.nanmax(probs)) if np.isfinite(probs).any() else 0.0
    maps = (
        (_titled("Logit (before softmax)", logits), logits, style.diverging(), (-(limit or 1), limit or 1)),
        (_titled("Probability (after softmax)", probs), probs, style.shares(), (0, most or 1)),
    )
    scales = [style.bar_ticks(*ends) for *_, ends in maps]
    gaps = [
        max(GAP, style.bar_width(ticks) + 0.12, style.text_width(title) - SIDE + 0.15)
        for (title, *_), ticks in zip(maps, scales, strict=True)
    ]
    width = left + 2 * SIDE + sum(gaps) + (0.35 + SHARES + 0.08 if third else 0.0) + style.MARGIN
    header = style.Header(*_words(attention, massive), width)
    made = style.figure(width, bottom + SIDE + 0.34 + header.height)
    header.draw(made)

    x = left
    for i, (title, values, colours, ends) in enumerate(maps):
        ax = style.axes(made, x, bottom, SIDE, SIDE)
        image = ax.imshow(values, cmap=colours, norm=Normalize(*ends), aspect="auto", interpolation="nearest")
        ax.spines[["top", "right"]].set_visible(True)
        ax.tick_params(length=0)
        ax.set_xticks([], [])
        ax.set_yticks([], [])
        for position, name in key_names:
            at = x + SIDE * (position + 0.5) / len(keys)
            colour = style.MASSIVE if position in massive else style.INK
            options = {"size": style.SMALL, "rotation": 90, "ha": "center", "va": "top", "color": colour}
            style.text(made, at, bottom - 0.06, name, **options)
        if i == 0:
            for position, name in query_names:
                at = bottom + SIDE * (1 - (position + 0.5) / len(queries))
                colour = style.MASSIVE if position in massive else style.INK
                options = {"size": style.SMALL, "ha": "right", "va": "center_baseline", "color": colour}
                style.text(made, x - 0.06, at, name, **options)
            style.text(made, style.MARGIN, bottom + SIDE / 2, "Query token", rotation=90, va="center")
        for position in massive:  # an outline round the column, and a pointer above it
            ax.axvspan(
                position - 0.5,
                position + 0.5,
                facecolor="none",
                edgecolor=style.MASSIVE,
                linewidth=1.2 if len(keys) <= 24 else 0.5,
                clip_on=False,
                zorder=5,
            )
            at = x + SIDE * (position + 0.5) / len(keys)
            style.line(made, [at], [bottom + SIDE + 0.06], marker="v", markersize=4, color=style.MASSIVE)
        style.text(made, x, bottom + SIDE + 0.14, title)
        style.text(made, x + SIDE / 2, style.MARGIN, "Key token", ha="center", va="bottom")
        style.bar(made, image, x + SIDE, bottom, SIDE, scales[i])
        x += SIDE + gaps[i]
    if third:
        _shares(made, attention, x + 0.35, bottom)
    return made


def _shares(made: "Figure", attention: AttentionMap, left: float, bottom: float) -> None:
    """The right panel: the share of each layer's attention on the massive tokens."""
    width = SHARES
    from matplotlib.ticker import FixedLocator, FuncFormatter

    shares = np.array(attention.shares)
    style.text(made, left, bottom + SIDE + 0.14, "Share on massive tokens")
    ax = style.axes(made, left, bottom, width, SIDE)
    layers = np.arange(1, len(shares) + 1)
    size = float(np.clip(90 / len(shares), 1.8, 4))
    ax.plot(layers, shares, "o-", color=style.BLUE, markersize=size, linewidth=1.3, clip_on=False, zorder=3)
    ax.set_xlim(0.5, len(shares) + 0.5)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    ax.xaxis.set_major_locator(FixedLocator(style.layer_ticks(1, len(shares), 7)))
    ax.grid(axis="y", color=style.RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel("Layer")
    emergence = attention.emergence_layer
    if emergence is None:
        return
    ax.axvline(emergence, color=style.MASSIVE, linewidth=1, linestyle=(0, (4, 2)), zorder=2)
    ax.axvspan(emergence, len(shares) + 0.5, color=style.TINT, linewidth=0, zorder=0)
    # The note goes to the emptier of the two lower corners beside the line, or the upper ones.
    note = ["massive from", f"layer {emergence} on"]
    need = max(style.text_width(row, style.SMALL) for row in note)
    at = left + width * (emergence - 0.5) / len(shares)
    inches = left + width * (layers - 0.5) / len(shares)
    tall = 2 * style.text_height(style.SMALL) + 0.08
    best = None
    for x0 in (at + 0.06, at - 0.06 - need):
        if not left <= x0 <= left + width - need:
            continue
        under = np.interp(np.linspace(x0 - 0.04, x0 + need + 0.04, 50), inches, np.nan_to_num(shares)) * SIDE
        for y0 in np.linspace(0.06, SIDE - tall, 24):
            gap = min(np.abs(under - (y0 + tall / 2)).min() - tall / 2, 0.1)
            if best is None or gap > best[0] + 1e-6:
                best = (gap, x0, bottom + y0)
    if best:
        for row, word in enumerate(note):
            y = best[2] + (1 - row) * style.text_height(style.SMALL) + 0.03
            style.text(made, best[1], y, word, size=style.SMALL, color=style.MASSIVE)


def _titled(title: str, values: np.ndarray) -> str:
    nothing = words.nothing_to_see(values)
    return f"{title}: {nothing}" if nothing else title


def _names(tokens: Sequence[str], marked: set[int]) -> list[tuple[int, str]]:
    """(position, text) of the tokens to name: all that fit along a side, the massive ones first."""
    need = style.text_height(style.SMALL) * 0.95
    pitch = SIDE / len(tokens)
    shown: list[int] = []
    step = max(1, int(np.ceil(need / pitch)))
    for position in [*sorted(marked), *range(0, len(tokens), step)]:
        if all(abs(position - other) * pitch >= need * 0.999 for other in shown):
            shown.append(position)
    return [(position, words.label(tokens[position], limit=12)) for position in sorted(shown)]


def _words(attention: AttentionMap, massive: list[int]) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    model, layer, shares = words.model_name(attention), attention.layer, attention.shares
    head = "mean over heads" if attention.head == "mean" else f"head {attention.head}"
    note = f"Heat maps: layer {layer}, {head} · {words.conditions(attention)}"
    title = f"Attention in layer {layer} of {model}"
    if not massive:
        return f"{title}: no massive token", [note]
    share = shares[layer - 1] if 0 < layer <= len(shares) else np.nan
    if np.isfinite(share):
        title += f": {100 * share:.0f} % lands on the massive token{'s' * (len(massive) > 1)}"
    named = [f"{position} “{words.label(attention.keys[position], limit=18)}”" for position in massive[:5]]
    listed = ", ".join(named) + (f" and {len(massive) - 5} more" if len(massive) > 5 else "")
    return title, [f"{note} · massive token{'s' * (len(massive) > 1)} (orange): {listed}"]
