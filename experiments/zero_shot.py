"""Accuracy in the tasks of EleutherAI's lm-evaluation-harness, with massive activations set to zero or their mean.

  python -m experiments.zero_shot --tasks=paper --edits=none,zero,mean
  python -m experiments.zero_shot --tasks=my_task --include_path=FOLDER --limit=100

Needs the package lm_eval (`pip install 'massive_jax[harness]'`). Writes zero_shot.json and zero_shot.png. Tasks are
names that the harness knows, whose data comes from the hub, or those of --include_path, which may be made of local
files; "paper" is BoolQ, PIQA, WinoGrande, ARC-easy and ARC-challenge. On 48 questions of four answers made of the
default text, the default model takes about a minute an edit on two cores; expect far above 0.25 for none and mean, and
0.25 (guessing) for zero (paper, section 3.1).

An edit is made of the output of block --layer at all places at once, in every prompt: none; zero; mean: each place's
own mean over windows of --text; set=X; scale=X; add=X; noise=X; shuffle. A prompt has other tokens at a place than the
text, so 'auto' takes those places that a prompt has, too: at position 0 as they are, and what else is massive where it
is massive at a window's first delimiter, as the rule 'delim'.

BOS is in front of every prompt where the tokenizer was made to add it; --bos and --nobos say otherwise.
--quantized_bits rounds weights and what enters linear maps, one scale for each tensor. Answers are kept in --cache, by
model, edits and options, and asked for there first. Intervals are 95 % of a percentile bootstrap over items.

zero_shot.json: `massive_jax.report.results.ZeroShot`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common, intervene
from experiments.flags import definition, layer, paths, seed, text
from experiments.flags import model as model_flags
from massive_jax.analysis import FIRST_DELIMITER, Thresholds
from massive_jax.data import Windows, cut_windows, load_text
from massive_jax.evaluate import (
    KNOWN,
    Operation,
    Place,
    edits_at,
    find_places,
    mean_scores,
    parse_places,
    place_means,
    quantized_inputs,
    quantized_weights,
    task_scores,
)
from massive_jax.files import is_remote, write_json
from massive_jax.report import as_json, effect_of, plot_zero_shot, zero_shot_rows, zero_shot_title
from massive_jax.report.results import EditedPlace, TaskResult, ZeroShot

NONE = "none"

_TASKS = flags.DEFINE_list("tasks", ["paper"], "Tasks of the harness, or files of tasks (.yaml); 'paper': its five.")
paths.look_at(_TASKS)
_EDITS = flags.DEFINE_list("edits", [NONE, "zero", "mean"], f"Any of {NONE}, {KNOWN}.")
_INCLUDE = paths.define("include_path", None, "A directory with tasks of your own.")
_FEWSHOT = flags.DEFINE_integer("num_fewshot", None, "Examples in front of each item (default: a task's).", 0)
_LIMIT = flags.DEFINE_integer("limit", None, "Most items of a task, from its start.", lower_bound=1)
_CACHE = paths.define("cache", None, "A directory of this machine that keeps answers.")
flags.register_validator(_CACHE, lambda path: not is_remote(path or ""), "give a directory of this machine.")
_CHAT = flags.DEFINE_bool("chat", False, "Puts items by the model's chat template.")
_BITS = flags.DEFINE_integer(
    "quantized_bits", None, "Rounds weights and what enters linear maps to so many bits.", lower_bound=2, upper_bound=16
)


def _parse_edits(names: Sequence[str]) -> list[Operation | None]:
    found = [None if name.strip() == NONE else Operation.parse(name.strip()) for name in names]
    if not found:
        raise ValueError(f"name at least one edit: {NONE}, say.")
    return list(dict.fromkeys(found))


flags.register_validator(_EDITS, intervene.reads(_parse_edits))

if __name__ == "__main__":
    for module in (common, model_flags, text, layer, definition, seed):
        flags.adopt_module_key_flags(module)
    for name in ("places", "sites"):
        flags.declare_key_flag(name)


def prompt_places(
    model: mj.Model, windows: Windows, number: int | None, places: Sequence[Place] | None, thresholds: Thresholds
) -> tuple[int, list[Place]]:
    """Gives the layer and the places, in any prompt, that are edited: as given, or what is massive in `windows`.

    Raises:
      ValueError: as `find_places`; nothing is massive at a place that a prompt has.
    """
    number, found = find_places(model, windows, number, places, thresholds=thresholds)
    if places is not None:
        return number, found
    first = [place for place in found if place.position == 0]
    rest = [Place(FIRST_DELIMITER, dim) for dim in dict.fromkeys(p.dim for p in found if p.position != 0)]
    if rest and (mj.TextModel.of(model).first_delimiter(windows.tokens) >= 0).any():
        means = place_means(model, windows, number, rest)
        first += [place for place, mean in zip(rest, means, strict=True) if abs(mean) > thresholds.magnitude]
    if not first:
        raise ValueError(
            f"what is massive at layer {number} is neither at position 0 nor at a window's first delimiter; "
            "give --places (also --sites)."
        )
    return number, first


def run(
    model: mj.TextModel,
    windows: Windows | None,
    names: Sequence[Operation | None],
    workdir: pathlib.Path,
    **options: Any,
) -> ZeroShot:
    """Measures, writes zero_shot.json and zero_shot.png, and returns what was written."""
    from massive_jax.evaluate import lm_eval

    number: int | None = None
    places: list[Place] = []
    means: list[float] = []
    if windows is not None:
        number, places = prompt_places(
            *(model, windows, layer.parse_layer(model.config.num_layers), _parse_places(), definition.thresholds())
        )
        means = place_means(model, windows, number, places)
    inputs = []
    if _BITS.value is not None:
        model = mj.TextModel.of(quantized_weights(model, _BITS.value))
        inputs = quantized_inputs(model.config, _BITS.value)
    found: dict[str, Mapping[str, Any]] = {}
    for operation in names:
        edits = []
        if operation is not None and number is not None:
            edits = edits_at((number,), places, operation, [means], seed.SEED.value)
        found[NONE if operation is None else str(operation)] = lm_eval.evaluate_tasks(
            model,
            _tasks(),
            [*edits, *inputs],
            include_path=_INCLUDE.value,
            num_fewshot=_FEWSHOT.value,
            limit=_LIMIT.value,
            cache=None if _CACHE.value is None else f"{_CACHE.value}/answers",
            chat=_CHAT.value,
            seed=seed.SEED.value,
            **options,
        )
    first = next(iter(found.values()))
    scores = {
        name: {edit: task_scores(its["samples"][name]) for edit, its in found.items()} for name in first["samples"]
    }
    by_edit = {edit: [one for its in scores.values() if (one := its[edit]) is not None] for edit in found}
    result = ZeroShot(
        **_header(model, windows),
        edits=tuple(found),
        layer=number,
        sites=tuple(
            EditedPlace(position=place.position, dim=place.dim, value_mean=mean)
            for place, mean in zip(places, means, strict=True)
        ),
        prompt_bos=first["config"]["bos"],
        chat=_CHAT.value,
        quantized_bits=_BITS.value,
        limit=_LIMIT.value,
        seed=seed.SEED.value,
        lm_eval=str(first["lm_eval_version"]),
        tasks={name: _task(name, its, found) for name, its in scores.items()},
        mean_accuracy={edit: mean for edit, its in by_edit.items() if (mean := mean_scores(its)) is not None},
    )
    write_json(workdir / "zero_shot.json", as_json(result))
    if zero_shot_rows(result):
        plot_zero_shot(result, workdir / "zero_shot.png")
    return result


def _header(model: mj.Model, windows: Windows | None) -> dict[str, Any]:
    """The fields of a `Run`; without edits there is no text."""
    if windows is None:
        return common.header(model, np.zeros((0, 0)), bos=False)
    return common.header(model, windows.inputs, text.name(), windows.bos)


def _task(name: str, scores: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> TaskResult:
    """What came of one task under every edit."""
    first = next(iter(found.values()))
    original = next(iter(scores.values()))
    effects = {} if original is None else {edit: effect_of(its.scores, original.scores) for edit, its in scores.items()}
    return TaskResult(
        version=str(first["versions"].get(name)),
        items=int(first["n-samples"][name]["effective"]),
        num_fewshot=int(first["n-shot"].get(name) or 0),
        metric=None if original is None else original.metric,
        chance=None if original is None else original.chance,
        effects=effects,
        harness={
            edit: {
                metric: float(value)
                for metric, value in its["results"][name].items()
                if "," in metric and "_stderr" not in metric and not isinstance(value, str)
            }
            for edit, its in found.items()
        },
    )


def _tasks() -> list[str]:
    return [name.strip() for name in _TASKS.value]


def _parse_places() -> list[Place] | None:
    given = str(flags.FLAGS["places"].value)
    return None if given == "auto" else parse_places(given)


def show(result: ZeroShot) -> None:
    """Prints the places and what the edits did."""
    if result.sites:
        places = ", ".join(f"{site} (mean {site.value_mean:.4g})" for site in result.sites)
        print(f"layer {result.layer}, places position:dim {places}")
    for kind, rows in zero_shot_rows(result).items():
        common.print_table(("task, edit", kind, "95 % interval"), [(row.key, row.value, row.interval) for row in rows])
    print(zero_shot_title(result))


def main() -> None:
    """Runs the binary."""
    operations = _parse_edits(_EDITS.value)
    layer.check_one()
    edited = any(operation is not None for operation in operations)
    if not edited:
        names = ("text", "context", "windows", "layer", "places", "massive_magnitude", "massive_ratio")
        common.without_effect(names, "without --edits")
    content = load_text(text.name()) if edited else ""
    out = common.workdir()
    from massive_jax.evaluate import lm_eval

    lm_eval.task_manager(_tasks(), _INCLUDE.value)  # that they are there
    model = mj.TextModel.of(common.load_model())
    asked = flags.FLAGS["bos"].value if flags.FLAGS["bos"].present else None
    bos = lm_eval.HarnessLM(model, bos=asked).bos
    windows = None
    if edited:
        context = text.context(model.config.context_length - bos)
        windows = cut_windows(model, content, context=context, windows=text.windows(), bos=bos)
    show(run(model, windows, operations, out, bos=bos))
    print(f"wrote {out / 'zero_shot.json'} and {out / 'zero_shot.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
