"""Accuracy in zero-shot tasks, and perplexity by the word, under edits."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from massive_jax.probe.operations import in_words
from massive_jax.report import style, words
from massive_jax.report.bars import BAR, WIDTH, Row, draw_bars
from massive_jax.report.records import as_record
from massive_jax.report.results import ZeroShot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARES = ("acc", "exact_match")
_GAP = 0.45  # inches below a panel
_MOST = 24  # tasks that there is room for


def plot_zero_shot(
    result: ZeroShot | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws each task's accuracy under each edit as bars, with intervals; perplexities in a panel of their own.

    Args:
      result: what was measured, or what zero_shot.json holds. Of many tasks the first 24 are drawn.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there is neither an accuracy nor a perplexity; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def zero_shot_rows(result: ZeroShot) -> dict[str, list[Row]]:
    """Lists the bars: "accuracy" and "perplexity" -> a row for each task and edit, the mean over tasks first."""
    panels: dict[str, list[Row]] = {"accuracy": [], "perplexity": []}
    for edit, value in result.mean_accuracy.items():
        count = sum(task.metric in _SHARES for task in result.tasks.values())
        panels["accuracy"].append(_row(f"mean of {count} tasks", edit, value))
    for name, task in result.tasks.items():
        kind = "accuracy" if task.metric in _SHARES else "perplexity"
        if kind == "perplexity" and not (task.metric or "").endswith(kind):
            continue
        for edit, effect in task.effects.items():
            panels[kind].append(_row(name, edit, effect.value, effect.low, effect.high))
    return {kind: rows for kind, rows in panels.items() if rows}


def _row(name: str, edit: str, value: float, low: float | None = None, high: float | None = None) -> Row:
    colour = {"none": style.GREY, "zero": style.MASSIVE, "mean": style.BLUE}.get(edit, Row.colour)
    return Row(f"{name}, {edit}", f"{words.shorten(name, 20)}: {_name(edit)}", value, low, high, colour=colour)


def _name(edit: str) -> str:
    return "unedited" if edit == "none" else in_words(edit) or edit.replace("_", " ")


def draw(result: ZeroShot | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_zero_shot`; call it under `style.context()`."""
    found = as_record(ZeroShot, result)
    panels = {kind: rows[: _MOST * len(found.edits)] for kind, rows in zero_shot_rows(found).items()}
    if not panels:
        raise ValueError("no task has an accuracy or a perplexity: there is nothing to draw")
    header = style.Header(zero_shot_title(found), _notes(found), WIDTH)
    heights = {kind: BAR * len(rows) + 0.1 for kind, rows in panels.items()}
    made = style.figure(WIDTH, sum(heights.values()) + _GAP * len(panels) + header.height)
    header.draw(made)
    bottom = sum(heights.values()) + _GAP * len(panels)
    for kind, rows in panels.items():
        bottom -= heights[kind] + _GAP
        draw_bars(made, rows, math.nan, kind, bottom + _GAP, heights[kind])
    return made


def zero_shot_title(result: ZeroShot) -> str:
    """Says in a sentence what came of it."""
    model, tasks = words.model_name(result), result.tasks
    accurate = {name: task for name, task in tasks.items() if task.metric in _SHARES and task.effects}
    if not accurate:
        return f"{model} in {words.count(len(tasks), 'task')} of the lm-evaluation-harness"
    first = next(iter(accurate))
    values = result.mean_accuracy or {edit: effect.value for edit, effect in accurate[first].effects.items()}
    where = f"mean accuracy in {len(accurate)} tasks" if result.mean_accuracy else f"accuracy in {first}"
    edited = [f"{values[edit]:.1%} with massive activations {_name(edit)}" for edit in result.edits if edit != "none"]
    start = f"{values['none']:.1%} as it is" if "none" in values else ""
    return f"{model}, {where}: {'; '.join(filter(None, [start, *edited]))}".replace("%", " %")


def _notes(found: ZeroShot) -> list[str]:
    """What it holds for."""
    sites = ", ".join(f"{str(site.position).replace('_', ' ')}:{site.dim}" for site in found.sites[:8])
    more = f" and {len(found.sites) - 8} more" if len(found.sites) > 8 else ""
    guessing = [f"{name} {task.chance:.3g}" for name, task in found.tasks.items() if task.chance is not None][:6]
    items = sum(task.items for task in found.tasks.values())
    parts = [
        words.precision(found),
        "" if found.quantized_bits is None else f"rounded to {found.quantized_bits} bits",
        "BOS in front" if found.prompt_bos else "no BOS",
        "chat template" if found.chat else "",
        f"{words.count(items, 'item')} of lm_eval {found.lm_eval}",
    ]
    return [
        f"Edited at layer {found.layer}, position:dim {sites}{more}" if found.sites else "",
        " · ".join(filter(None, parts)),
        f"By guessing: {', '.join(guessing)}" if guessing else "",
        "Intervals: 95 %, bootstrap over items.",
    ]
