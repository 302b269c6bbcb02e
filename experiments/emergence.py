"""How massive activations emerge in training: every layer's largest over its median, by step, and a curve through it.

  python -m experiments.emergence --variants=none,kv,softmax1 --seeds=3 --preset=emergence --workdir=results/variants
  python -m experiments.emergence --checkpoints=results/gpt2_none --workdir=results
  python -m experiments.emergence --checkpoints=FOLDER --text=FILE
  python -m experiments.emergence --model=EleutherAI/pythia-70m --revisions=step0,step512,step1000,…,step143000
  python -m experiments.emergence --models=A,B,C,D,E,F --at_steps=0,100,200,400,800,1600

--checkpoints is the --workdir of a training, whose own census.jsonl is read (a line every --census_every steps; no
model runs), or a folder of models, each in a directory with its step at the end of its name, as step1000. Models, those
and of --models and --revisions, are loaded one after another and run on windows of the text, or on --images; the step
is the number at the end of the name where --at_steps does not say it.

The curve is A e^(−λx) log x + K with x = γt + t₀, fitted by least squares (arXiv 2508.03616, equation 9, where Pythia's
layers have an R² of 0.98 on average). It has five parameters: a layer with fewer than six checkpoints, or whose ratio
does not change, has none, and says so. On --preset=backcopy, 21 checkpoints, expect the ratio to rise from about
6 to 14 in layer 1 and to 8 or 9 in the others, and an R² of 0.94 to 0.97.

Writes emergence.json (`massive_jax.report.results.Emergence`) and emergence.png.

--variants trains the preset's model, as experiments.train_gpt2 does and with its flags, once for each variant of
`massive_jax.train.VARIANTS` (--variants=all for all) and seed, in WORKDIR/VARIANT/seed_N. Killed, the same command goes
on; a training that has ended is read, one whose loss is no number is a row that says so. Several processes may train
different variants in one WORKDIR; the command with all of them then makes the table. Every model is measured on 32
held-out windows, in float32: attention on the first token and the share of heads that rest on it (the sink), that
token's largest over the median in the middle blocks (the spike), beside it what is usual of other tokens, loss, and
loss with inputs and weights of every linear map in int8. Writes emergence_variants.json
(`massive_jax.report.results.Variants`), the table as emergence_variants.md, emergence_variants.png, sinks against
spikes, and emergence_variants_curves.png, the ratio by step.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import common, train_gpt2, variants
from experiments.flags import images, model, models, paths, seed, text, training
from massive_jax.data import load_text
from massive_jax.files import Path, is_file, read_json, user_path, write_json
from massive_jax.report import as_json, as_record, plot_fits
from massive_jax.report.results import Census, Emergence, EmergenceOfLayer
from massive_jax.train import take_census

_CHECKPOINTS = paths.define("checkpoints", None, "A training's --workdir, or a folder of models by step.")
_REVISIONS = flags.DEFINE_list("revisions", [], "Revisions of --model, a hub id, in order of training.")
_STEPS = flags.DEFINE_list("at_steps", [], "The step of each of those, where their names do not end in it.")
_VARIANTS = flags.DEFINE_list("variants", [], "Variants to train, or all; see massive_jax.train.VARIANTS.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each variant, from --seed on.", lower_bound=1)
_KINDS = {"checkpoints": _CHECKPOINTS, "models": models.MODELS, "revisions": _REVISIONS, "variants": _VARIANTS}

if __name__ == "__main__":
    for module in (common, model, models, text, images, seed, training, train_gpt2):
        flags.adopt_module_key_flags(module)


def steps_of(names: Sequence[str]) -> list[int]:
    """The step of each model: --at_steps, or the number at the end of its name; ValueError where they do not rise."""
    given = _STEPS.value or [match[1] if (match := re.search(r"(\d+)/*$", name)) else "" for name in names]
    if len(given) != len(names):
        raise ValueError(f"--at_steps has {len(given)} steps for {len(names)} checkpoints; give one for each.")
    if not all(re.fullmatch(r"\d{1,15}", step) for step in given):
        raise ValueError("give --at_steps, a whole number for each checkpoint; the names do not all end in one.")
    steps = [int(step) for step in given]
    if any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"the checkpoints' steps do not rise: {', '.join(map(str, steps))}; put them in order.")
    return steps


def models_in(folder: Path) -> list[str]:
    """The models in a folder, by the numbers at the end of their names; ValueError where there are none."""
    found = [(int(match[1]), str(path)) for path in folder.iterdir() if (match := re.search(r"(\d+)$", path.name))]
    if not found:
        raise ValueError(
            f"--checkpoints={folder} has neither the census.jsonl of a training nor models with a step at the end of "
            "their names, as step1000."
        )
    return [path for _, path in sorted(found)]


def of_training(workdir: Path) -> dict[str, Any]:
    """What the training in `workdir` wrote of itself: the fields of an `Emergence` but the curves."""
    path = workdir / "census.jsonl"
    census = training.census(workdir)
    if not census:
        raise ValueError(f"{path} is empty: the training has not come to its first census.")
    about = next(filter(is_file, (workdir / f"train_{kind}.json" for kind in ("gpt2", "vit"))), None)
    found = {} if about is None else read_json(about)
    sink = {"sink": "one token"} if "dataset" in found else {}
    return {"model": str(workdir), **sink, "dtype": found.get("dtype"), "text": found.get("text"), "census": census}


def of_models(names: Sequence[str], revisions: Sequence[str | None], steps: Sequence[int]) -> dict[str, Any]:
    """The same of models, each loaded, measured and dropped."""
    content = "" if images.IMAGES.value is not None else load_text(text.name())
    census: list[Census] = []
    about: dict[str, Any] = {}
    with common.progress(len(steps), "checkpoints", "checkpoint") as progress:
        for name, revision, step in zip(names, revisions, steps, strict=True):
            found = common.load_model(name, revision)
            seen = common.images(found) if common.takes_images(found) else None
            inputs = common.windows(found, content).tokens if seen is None else seen.inputs
            layers = take_census(found.module, found.params, inputs)
            if census and len(layers) != len(census[0].layers):
                raise ValueError(f"{found.name} has {len(layers)} layers, the first of them {len(census[0].layers)}.")
            census.append(as_record(Census, {"step": step, "layers": layers}, found.name))
            source = common.header(found, inputs, text.name() if seen is None else seen.names)["source"]
            about = {**as_json(source), "sink": "position 0" if seen is None else "one token"}
            about["dtype"] = found.config.dtype
            progress(1)
    called = [
        name if revision is None else f"{name}@{revision}" for name, revision in zip(names, revisions, strict=True)
    ]
    return {**about, "model": called[-1], "checkpoints": tuple(called), "census": tuple(census)}


def through(census: Sequence[Census]) -> tuple[EmergenceOfLayer, ...]:
    """A curve through each layer's ratio, or why there is none."""
    steps = [record.step for record in census]
    found = []
    for layers in zip(*(record.layers for record in census), strict=True):
        found.append(EmergenceOfLayer(layer=layers[0].layer, **common.fitted(steps, [layer.ratio for layer in layers])))
    return tuple(found)


def show(result: Emergence) -> None:
    """Prints a line a layer."""
    rows = [
        (fit.layer, first.ratio, last.ratio, fit.r_squared, fit.peak)
        for fit, first, last in zip(result.fits, result.census[0].layers, result.census[-1].layers, strict=True)
    ]
    ends = (f"ratio at {result.census[0].step:,}", f"at {result.census[-1].step:,}")
    common.print_table(("layer", *ends, "R² of the curve", "its extremum"), rows)
    for problem in dict.fromkeys(fit.problem for fit in result.fits if fit.problem is not None):
        layers = [str(fit.layer) for fit in result.fits if fit.problem == problem]
        print(f"no curve through {'layer' if len(layers) == 1 else 'layers'} {', '.join(layers)}: {problem}")


def main() -> None:
    """Runs the binary."""
    given = [name for name, flag in _KINDS.items() if flag.value]
    if len(given) != 1:
        said = f"{' and '.join(f'--{name}' for name in given)} are given" if given else "nothing to look at"
        raise ValueError(
            f"{said}; give one of --checkpoints=DIR, --models=A,B,…, --revisions=A,B,… (of --model), --variants=A,B,…."
        )
    if given == ["variants"]:
        unread = ("model", "revision", "at_steps", "text", "windows", "bos", "images", "num_images", "image_size")
        common.without_effect((*unread, "allow_nonfinite", "attention_bias", "slots"), "beside --variants")
        variants.run([name.strip() for name in _VARIANTS.value], _SEEDS.value)
        return
    of_trainings = [flag.name for m in (training, train_gpt2, seed) for flag in flags.FLAGS.get_key_flags_for_module(m)]
    common.without_effect((*of_trainings, "seeds"), "without --variants")
    if given != ["revisions"]:
        common.without_effect(("model", "revision"), f"beside --{given[0]}")
    common.without_effect(("revision",), "beside --revisions")
    common.check_inputs()
    folder = None if _CHECKPOINTS.value is None else user_path(_CHECKPOINTS.value)
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--checkpoints={folder}: there is no such directory.")
    if folder is not None and (folder / "census.jsonl").is_file():
        unread = ("at_steps", "text", "windows", "context", "bos", "images", "dtype", "num_images", "image_size")
        common.without_effect(unread, "with a training, whose own census is read")
        out, found = common.workdir(), of_training(folder)
    else:
        names = models_in(folder) if folder is not None else list(models.MODELS.value or _REVISIONS.value)
        steps, out = steps_of(names), common.workdir()
        if _REVISIONS.value:
            found = of_models([model.MODEL.value] * len(names), names, steps)
        else:
            models.check_all(names)
            found = of_models(names, [None] * len(names), steps)
    fits = through(found["census"])
    explained = [fit.r_squared for fit in fits if fit.r_squared is not None]
    result = Emergence(**found, fits=fits, r_squared=sum(explained) / len(explained) if explained else None)
    write_json(out / "emergence.json", as_json(result))
    plot_fits(result, out / "emergence.png")
    show(result)
    print(f"wrote {out / 'emergence.json'} and {out / 'emergence.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
