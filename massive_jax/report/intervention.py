"""What removing massive activations does to the perplexity, or to a vision model's agreement with itself."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from massive_jax.probe.operations import in_words
from massive_jax.report import style, words
from massive_jax.report.bars import BAR, WIDTH, Row, change, draw_bars, times
from massive_jax.report.layer_sweep import draw_sweep
from massive_jax.report.records import as_record
from massive_jax.report.results import AloneEffect, DrawnEffect, Intervention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = 2.3  # inches, for the curves

_CONTROLS = {
    "median_sized": "Entries of median size",
    "same_position": "Same positions, other dims",
    "same_dim": "Same dims, other positions",
}


def intervention_rows(result: Intervention) -> list[Row]:
    """Lists what was measured: the operations, below the strongest each place alone, then the controls."""
    rows, drawn, colours = [], _draws(result), _colours()
    for name, value in result.measured.items():
        op = name.removeprefix("random_")
        if name != op and op in drawn:
            continue  # the first of several draws, which have a row of their own
        effect = result.effects.get(name)
        interval = (effect.low, effect.high) if effect is not None else (None, None)
        rows.append(Row(name, _name(name), value, *interval, colour=colours.get(name, Row.colour)))
        for one in result.alone:
            if name == one.operation:
                alone = one.effects[name]
                place = f"{str(one.position).replace('_', ' ')}, dim {one.dim}"
                colour = colours.get(name, Row.colour)
                names = (f"{name} at {one} only", f"only position {place}")
                rows.append(Row(*names, alone.value, alone.low, alone.high, colour=colour))
    for op, kinds in drawn.items():
        for kind, found in kinds:
            many = f" × {len(found.values)}" if len(found.values) > 1 else ""
            names = (f"{op} at {kind.replace('_', ' ')}{many}", f"{_CONTROLS.get(kind, kind)}{many}")
            rows.append(Row(*names, found.mean, found.low, found.high, found.values))
    return rows


def _colours() -> dict[str, str]:
    return {"original": style.GREY, "zero": style.MASSIVE, "mean": style.BLUE}


def _draws(result: Intervention) -> dict[str, list[tuple[str, DrawnEffect]]]:
    """Operation -> the controls that were drawn for it, by kind; none where there is the usual one only."""
    found: dict[str, list[tuple[str, DrawnEffect]]] = {}
    for control in result.control_draws:
        for op, effect in control.effects.items():
            found.setdefault(op, []).append((control.kind, effect))
    return {op: kinds for op, kinds in found.items() if len(kinds) > 1 or len(kinds[0][1].values) > 1}


def about_intervals(result: Intervention) -> str:
    """Says in a sentence what the intervals are of."""
    what = "windows" if result.metric == "perplexity" else "images"
    if result.bootstrap_draws is None:
        return f"No intervals over {what}: there is only one of them, or they were not measured."
    drawn = "; of controls, of their draws" if _draws(result) else ""
    return f"Intervals: 95 %, {result.bootstrap_draws:,} bootstrap draws of the {what}{drawn}."


def plot_intervention(
    result: Intervention | Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
    dark: bool = False,
) -> "Figure":
    """Draws perplexity, or what there is in its place, as bars, one an intervention, each with its number.

    The axis of a perplexity is logarithmic and starts at 1, the least a perplexity can be, so a bar's length is the
    cross entropy. A perplexity that is not finite is an open bar to the end of the axis. A thin line is the 95 %
    interval; a dot is one of several draws. Where layers were edited one by one, curves below say what each does.

    Args:
      result: what the model is judged by under each operation ("original" is what the others are compared with), or
        what intervene.json holds.
      path: where the figure goes: .png, .pdf or .svg, written whole or not at all; None: to no file.
      axes: axes, an array of them, a subfigure or a figure to draw in, which grows if too small; None: a new figure.
      dark: whether it is for a dark page, which is seen behind it.

    Returns:
      The figure.

    Raises:
      ValueError: there is no perplexity at all, or one below 1; or another suffix.
    """
    return style.plot(lambda: draw(result), path, axes=axes, dark=dark)


def draw(result: Intervention | Mapping[str, Any]) -> "Figure":
    """Draws the figure of `plot_intervention`; call it under `style.context()`."""
    intervention = as_record(Intervention, result)
    metric, values = intervention.metric, intervention.measured
    logarithmic = metric == "perplexity"
    if not values:
        raise ValueError(f"the {metric} is empty: there is nothing to draw")
    wrong = {name: value for name, value in values.items() if value < 0.999}
    if wrong and logarithmic:
        raise ValueError(f"a perplexity is at least 1, but there is {wrong}")
    rows = intervention_rows(intervention)
    header = style.Header(*_words(intervention), WIDTH)
    below = SWEEP if intervention.sweep else 0.0
    bottom, height = below + 0.45, BAR * len(rows) + 0.1
    made = style.figure(WIDTH, bottom + height + header.height)
    header.draw(made)
    draw_bars(made, rows, values.get("original", math.nan), metric, bottom, height)
    if intervention.sweep:
        draw_sweep(made, intervention, {name: _name(name) for name in values}, _colours(), SWEEP)
    return made


def _name(name: str) -> str:
    """An intervention in words: "random_set=5" is "Random entries set to 5"."""
    done = in_words(name.removeprefix("random_"))
    if done is None:
        done = name.replace("_", " ")
    elif name.startswith("random_"):
        done = f"random entries {done}"
    return done[:1].upper() + done[1:]


def _words(found: Intervention) -> tuple[str, list[str]]:
    """The title, which is the finding, and the lines under it."""
    notes = [_places(found), words.conditions(found)]
    return _title(found, words.model_name(found)), [*notes, about_intervals(found)] if found.effects else notes


def _title(found: Intervention, model: str) -> str:
    zero, original = found.measured.get("zero"), found.measured.get("original", math.nan)
    if zero is None:
        what = "Perplexity" if found.metric == "perplexity" else "Features"
        return f"{what} of {model} under interventions"
    edited, also, one = words.count(len(found.sites), "activation"), "", found.carrier
    if one is not None and one.operation == "zero":
        edited, all_of_them = _named(one), zero
        zero = one.effects["zero"].value
        together = f"× {times(all_of_them / original)}" if found.metric == "perplexity" else f"{all_of_them:.3f}"
        others = "other" if len(found.sites) == 2 else f"{len(found.sites) - 1} others"
        also = f" (with the {others} too: {together})"
    if found.metric == "top1_agreement":
        return f"{model}: zeroing {edited}, {100 * zero:.1f} % of the classes stay"
    if found.metric == "cosine_similarity":
        return f"{model}: zeroing {edited}, cosine {zero:.3f}"
    if not math.isfinite(original):
        return f"Perplexity of {model} under interventions"
    if not math.isfinite(zero):
        finding = "makes it infinite" if math.isinf(zero) else "leaves it undefined"
    elif zero >= 2 * original:
        finding = f"multiplies it by {times(zero / original)}"
    elif abs(zero / original - 1) < 0.01:
        finding = "changes it by less than 1 %"
    else:
        finding = f"changes it by {change(zero, original)}"
    return f"Perplexity of {model}: zeroing {edited} {finding}{also}"


def _named(place: AloneEffect) -> str:
    return f"dim {place.dim} of position {str(place.position).replace('_', ' ')} alone"


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
    at = f"every layer (found at layer {found.found_at})" if found.layer == "all" else f"layer {found.layer}"
    return f"Edited at {at}, " + "; ".join(listed[:4]) + more
