"""What removing massive activations does to the perplexity, or to a vision model's agreement with itself."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from massive_jax.probe.operations import in_words
from massive_jax.report import style, words
from massive_jax.report.records import as_record
from massive_jax.report.results import Intervention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, BAR = 7.0, 0.36  # inches; BAR is a bar with its share of the gaps

# What is measured -> the label of its axis.
METRICS = {
    "perplexity": "Perplexity (log scale; lower is better)",
    "top1_agreement": "Images whose most likely class stays",
    "cosine_similarity": "Cosine similarity of the features with the unedited ones",
}
_COLOURS = {"original": style.GREY, "zero": style.MASSIVE, "mean": style.BLUE}


def plot_intervention(result: Intervention | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws perplexity, or what there is in its place, as bars, one an intervention, each with its number.

    The axis of a perplexity is logarithmic and starts at 1, the least a perplexity can be, so a bar's length is the
    cross entropy. A perplexity that is not finite is an open bar to the end of the axis.

    Args:
      result: what the model is judged by under each operation ("original" is what the others are compared with), or
        what intervene.json holds.
      path: where the figure goes: .png, .pdf or .svg. Written whole or not at all.

    Raises:
      ValueError: there is no perplexity at all, or one below 1; or another suffix.
    """
    with style.context():
        style.save(draw(result), path)


def draw(result: Intervention | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_intervention`; call it under `style.context()`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    intervention = as_record(Intervention, result)
    metric, values = intervention.metric, intervention.measured
    logarithmic = metric == "perplexity"
    if not values:
        raise ValueError(f"the {metric} is empty: there is nothing to draw")
    wrong = {name: value for name, value in values.items() if value < 0.999}
    if wrong and logarithmic:
        raise ValueError(f"a perplexity is at least 1, but there is {wrong}")
    original = values.get("original", math.nan)

    names = {name: words.shorten(words.plain(_name(name)), 34) for name in values}
    header = style.Header(*_words(intervention), WIDTH)
    bottom, height = 0.45, BAR * len(values) + 0.1
    made = style.figure(WIDTH, bottom + height + header.height)
    header.draw(made)
    left = max(style.text_width(name) for name in names.values()) + style.MARGIN + 0.12
    numbers = {name: words.number(value) for name, value in values.items()}
    changes = {
        name: _change(value, original) if logarithmic and name != "original" else "" for name, value in values.items()
    }
    beside = {
        name: style.text_width(numbers[name])
        + (style.text_width(changes[name], style.SMALL) + 0.1 if changes[name] else 0)
        + 0.14
        for name in values
    }

    # The axis ends with the longest bar; the numbers have their room to the right of it.
    room = WIDTH - left - style.MARGIN - max(beside.values())
    finite = {name: max(0.0, math.log10(v) if logarithmic else v) for name, v in values.items() if math.isfinite(v)}
    end = max([*finite.values(), 1.0]) * (1.2 if len(finite) < len(values) else 1)
    ax = style.axes(made, left, bottom, room, height)
    ax.set_xlim(0, end)
    ax.set_ylim(len(values) - 0.5 + 0.1, -0.5 - 0.1)
    ax.spines["left"].set_visible(False)
    for row, name in enumerate(values):
        colour = _COLOURS.get(name, "#8C939B")
        if name in finite:
            length = finite[name]
            ax.barh(row, length, height=0.66, color=colour, linewidth=0)
        else:
            length = end
            ax.barh(
                row,
                length,
                height=0.66,
                facecolor="white",
                edgecolor=colour,
                linewidth=1,
                linestyle="--",
                clip_on=False,
            )
        y = bottom + height * (len(values) - 0.5 + 0.1 - row) / (len(values) + 0.2)
        x = left + room * length / end + 0.07
        style.text(made, left - 0.08, y, names[name], ha="right", va="center_baseline")
        style.text(made, x, y, numbers[name], va="center_baseline")
        if changes[name]:
            x += style.text_width(numbers[name]) + 0.1
            style.text(made, x, y, changes[name], size=style.SMALL, color=style.GREY, va="center_baseline")
    ax.axvline(0, color=style.GREY, linewidth=0.8)
    if math.isfinite(original):
        ax.axvline(finite["original"], color=style.INK, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)

    ax.yaxis.set_major_locator(NullLocator())
    ax.set_xlabel(METRICS[metric])
    if not logarithmic:
        return made
    top = math.floor(end)
    small = top <= 4
    step = 1 if top <= 10 else math.ceil(top / 10)
    ax.xaxis.set_major_locator(FixedLocator(range(0, top + 1, step)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{10**d:,.0f}" if small else words.power(int(d))))
    minor = [d + math.log10(k) for d in range(top + 1) for k in range(2, 10)] if top <= 12 else []
    ax.xaxis.set_minor_locator(FixedLocator([m for m in minor if m <= end]))
    return made


def _name(name: str) -> str:
    """An intervention in words: "random_set=5" is "Random entries set to 5"."""
    done = in_words(name.removeprefix("random_"))
    if done is None:
        done = name.replace("_", " ")
    elif name.startswith("random_"):
        done = f"random entries {done}"
    return done[:1].upper() + done[1:]


def _times(ratio: float) -> str:
    return words.number(float(f"{ratio:.3g}"), 3)


def _change(value: float, original: float) -> str:
    """How a perplexity compares with the original."""
    if not (math.isfinite(value) and math.isfinite(original)):
        return ""
    if value >= 2 * original:
        return f"× {_times(value / original)}"
    percent = 100 * (value / original - 1)
    if abs(percent) < 0.005:
        return "± 0.00 %"
    return f"{'+' if percent > 0 else '−'}{abs(percent):.{2 if abs(percent) < 1 else 1}f} %"


def _words(found: Intervention) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    edited = words.count(len(found.sites), "activation")
    return _title(found, words.model_name(found), edited), [_places(found), words.conditions(found)]


def _title(found: Intervention, model: str, edited: str) -> str:
    zero, original = found.measured.get("zero"), found.measured.get("original", math.nan)
    if zero is None:
        what = "Perplexity" if found.metric == "perplexity" else "Features"
        return f"{what} of {model} under interventions"
    if found.metric == "top1_agreement":
        return f"{model}: zeroing {edited}, {100 * zero:.1f} % of the classes stay"
    if found.metric == "cosine_similarity":
        return f"{model}: zeroing {edited}, cosine {zero:.3f}"
    if not math.isfinite(original):
        return f"Perplexity of {model} under interventions"
    if not math.isfinite(zero):
        finding = "makes it infinite" if math.isinf(zero) else "leaves it undefined"
    elif zero >= 2 * original:
        finding = f"multiplies it by {_times(zero / original)}"
    elif abs(zero / original - 1) < 0.01:
        finding = "changes it by less than 1 %"
    else:
        finding = f"changes it by {_change(zero, original)}"
    return f"Perplexity of {model}: zeroing {edited} {finding}"


def _places(found: Intervention) -> str:
    """Where was edited; with few places there is room for the values."""
    places: dict[str, list[str]] = {}
    for site in found.sites:
        mean = f" (mean {words.number(site.value_mean, 3)})" if len(found.sites) <= 6 else ""
        places.setdefault(str(site.position).replace("_", " "), []).append(f"{site.dim}{mean}")
    listed = [
        f"position {words.plain(position)}: dim{'s' * (len(dims) > 1)} {', '.join(dims[:6])}"
        + (f" and {len(dims) - 6} more" if len(dims) > 6 else "")
        for position, dims in places.items()
    ]
    if not listed:
        return "No place was edited"
    more = f"; and {len(listed) - 4} more positions" if len(listed) > 4 else ""
    return f"Edited at layer {found.layer}, " + "; ".join(listed[:4]) + more
