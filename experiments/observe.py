"""All of it, of one model or several, without BOS and with it, and one comparison.

  python -m experiments.observe --models=smollm2_135m,gemma3_270m_q4_k_m --workdir=results

What a researcher asks of a model, over windows of a text (32 of 64 tokens unless said otherwise): which tokens carry
massive activations, how constant, where born and by which weights, what attention does with them, and what becomes of
the model without them. Writes observatory.json (`massive_jax.report.results.Observatory`), observatory.png,
report.html, a page to explore the first window of each model, and report.png, a picture for links to it; for each
model, without BOS and with it, a directory with census.json, attention.json, intervene.json, super_weights.json and
their figures. The default model takes 3 to 4 minutes on two cores. `reproduce` is the quick look, at one prompt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
from absl import flags

import massive_jax as mj
from experiments import attention, census, common, intervene, page, super_weights
from experiments.flags import definition, models, seed, text
from massive_jax.analysis import Thresholds
from massive_jax.data import Windows, cut_windows, load_text
from massive_jax.evaluate import Closer, Operation, Place
from massive_jax.files import Path, write_json
from massive_jax.report import (
    Section,
    Summary,
    Table,
    as_json,
    attention_metrics,
    census_metrics,
    intervention_metrics,
    metric_rows,
    plot_observatory,
    plot_preview,
    weight_metrics,
    write_report,
)
from massive_jax.report.results import ExploredInput, Explorer, Intervention, ModelCensus, Observatory, Observed, WhatIf

_WINDOWS, _CONTEXT = 32, 64
_EDITED = 16  # windows on which the model is changed
_DRAWS = 2  # of controls of each kind
_PLACES = 5  # of each layer, in observatory.json

if __name__ == "__main__":
    for module in (common, models, text, definition, seed):
        flags.adopt_module_key_flags(module)
    for name in ("model", "revision", "dtype", "allow_nonfinite", "workdir"):  # BOS is off and on
        flags.declare_key_flag(name)


def observe(
    model: mj.Model, data: Windows, workdir: Path, thresholds: Thresholds, *, source: str, seed: int = 0
) -> Observed:
    """Measures everything of a model on `data`, writes the files of each part into `workdir`, and returns it."""
    started = time.monotonic()
    counted = census.run(model, data, workdir, thresholds, source=source, seed=seed)
    attended = attention.run(model, data, workdir, thresholds, source=source, seed=seed)
    some = dataclasses.replace(data, tokens=data.tokens[:_EDITED])
    weights = None
    if model.config.mlp != "experts":  # of which a weight is one expert's
        weights = super_weights.run(model, some, workdir, thresholds, source=source)
    changed = _intervene(model, some, counted, workdir, source=source, seed=seed)
    layers = tuple(dataclasses.replace(layer, places=layer.places[:_PLACES]) for layer in counted.layers)
    return Observed(
        model=model.name,
        bos=data.bos,
        finding=counted.finding,
        metrics=census_metrics(counted)
        | attention_metrics(attended)
        | intervention_metrics(changed)
        | weight_metrics(weights),
        seconds=time.monotonic() - started,
        census=dataclasses.replace(counted, layers=layers),
        attention=dataclasses.replace(
            attended, layers=tuple(dataclasses.replace(layer, heads=()) for layer in attended.layers)
        ),
        intervention=changed,
        super_weights=weights,
    )


def _intervene(
    model: mj.Model,
    data: Windows,
    counted: ModelCensus,
    workdir: Path,
    *,
    source: str,
    seed: int,
) -> Intervention:
    """What becomes of the model without its massive activations, where they are born; or as it is, without any."""
    # Those of the first token and the first delimiter that the census found: of others there may be thousands.
    places = [Place(0 if life.place == "start" else life.place, life.dim) for life in counted.lives]
    number = counted.birth or max(counted.layers, key=lambda layer: abs(layer.first[0].mean)).layer
    operations = [Operation("zero"), Operation("mean")] if places else []
    closer = Closer(draws=_DRAWS)
    return intervene.run(model, data, number, places, operations, workdir, source=source, closer=closer, seed=seed)


def show(result: Observatory) -> None:
    """Prints a sentence a model, and the table: a column a model."""
    for observed in result.models:
        print(f"{_title(observed)}: {observed.finding}")
    print()
    rows = [(words, *values) for words, values in metric_rows(result)]
    common.print_table(("[95 % interval] (by chance)", *map(_title, result.models)), rows)


def _title(observed: Observed) -> str:
    return mj.files.short_name(observed.model) + (" + BOS" if observed.bos else "")


def report(result: Observatory, explorer: Explorer, folders: Sequence[Path], out: Path) -> None:
    """Writes report.html and report.png; `folders` have the figures of the models, in their order."""
    titles = [_title(observed) for observed in result.models]
    rows = [(words, *values) for words, values in metric_rows(result)]
    parts = [
        Section(
            "Side by side",
            f"{result.windows} windows of {result.context} tokens of {result.text}, [95 % interval] (by chance).",
            out / "observatory.png",
            f"What {', '.join(titles)} are compared by; the numbers are in the table below.",
            Table(("What", *titles), rows),
        )
    ]
    for title, observed, folder in zip(titles, result.models, folders, strict=True):
        parts.append(Section(title, observed.finding, folder / "census.png", f"Census of {title}. {observed.finding}"))
    title = "Massive activations, side by side"
    plot_preview(explorer, title, out / "report.png")
    findings = Table(
        ("Model", "Finding"), [(name, one.finding) for name, one in zip(titles, result.models, strict=True)]
    )
    write_report(
        out / "report.html",
        title,
        Summary(explorer.headline, findings),
        [*parts, page.origin(explorer.provenance or {})],
        explorer,
        preview="report.png",
    )


def main() -> None:
    """Runs the binary."""
    names, out = models.names(), common.workdir()
    content = load_text(text.name())
    found, folders, thresholds = [], [], definition.thresholds()
    about: list[str] = []
    inputs: list[ExploredInput] = []
    edited: list[WhatIf] = []
    windows, context = text.WINDOWS.value or _WINDOWS, text.CONTEXT.value or _CONTEXT
    for name in names:
        loaded = mj.TextModel.of(common.load_model(name))
        has_bos = loaded.tokenizer is not None and loaded.tokenizer.bos_id is not None
        both = [  # cut before the first is measured, which takes minutes
            cut_windows(loaded, content, context=context, windows=windows, bos=bos, tokens=census.LEAST)
            for bos in ((False, True) if has_bos else (False,))
        ]
        for data in both:
            where = out / (census.folder(name) + ("-bos" if data.bos else ""))
            folders.append(where)
            found.append(observe(loaded, data, where, thresholds, source=text.name(), seed=seed.SEED.value))
        about.append(page.about(loaded))
        # Of the last: with BOS, where there is one.
        changed = found[-1].intervention
        assert changed is not None
        inputs += page.inputs_of(loaded, both[0].tokens[:1], False, int(changed.layer), thresholds)
        edited.append(page.what_if(loaded, both[-1].tokens, changed, thresholds))
    result = Observatory(
        text=text.name(),
        windows=windows,
        context=context,
        thresholds=thresholds,
        seed=seed.SEED.value,
        versions={"massive_jax": mj.__version__, "jax": jax.__version__},
        models=tuple(found),
    )
    write_json(out / "observatory.json", as_json(result))
    plot_observatory(result, out / "observatory.png")
    explorer = Explorer(
        headline=f"{_title(found[0])}: {found[0].finding}",
        thresholds=thresholds,
        inputs=tuple(inputs),
        what_if=tuple(edited),
        provenance=page.provenance(about, result.seed),
    )
    report(result, explorer, folders, out)
    show(result)
    print(f"wrote {out / 'observatory.json'}, observatory.png and report.html; open it in a browser.")


if __name__ == "__main__":
    common.run_experiment(main)
