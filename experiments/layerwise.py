"""Top-3 and median magnitude of every layer of a model, on one prompt or over many windows of a text.

  python -m experiments.layerwise --workdir=results
  python -m experiments.layerwise --text=FILE --windows=8 --context=512
  python -m experiments.layerwise --model=dinov2_reg_large --images=FOLDER

Runs the prompt (or several: --prompt=A --prompt=B, of any lengths), or windows of a text where --text, --windows or
--context is given; a vision model --images. Writes layerwise.json and layerwise.png. On the default model about 5 s;
expect 23,147 at layer 12, position 0, dim 507, some 13,000 times the median (paper, sections 2 and 2.1).

layerwise.json: `massive_jax.report.results.Layerwise`. Of several prompts: {prompts: [{prompt, and what layerwise.json
holds of it alone}]}, and layerwise_1.png, … in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, model, prompt, text
from massive_jax.analysis import FIRST_DELIMITER, Location, Thresholds, find_massive
from massive_jax.data import load_text
from massive_jax.evaluate import LayerSummary, LayerTable, input_length, measure_each, measure_layers
from massive_jax.files import Path, printable, write_json
from massive_jax.forward import left_pad
from massive_jax.report import as_json, plot_layerwise
from massive_jax.report.results import FoundActivation, Layer, Layerwise, TopActivation

_TOP = 3

if __name__ == "__main__":
    for module in (common, model, prompt, text, definition):
        flags.adopt_module_key_flags(module)
    for name in ("images", "num_images", "image_size"):
        flags.declare_key_flag(name)


def run(
    model: mj.Model,
    inputs: np.ndarray,
    workdir: Path,
    thresholds: Thresholds,
    source: str | Sequence[str] | None = None,
) -> tuple[Layerwise, LayerTable]:
    """Measures tokens [W, T] or images (of `source`), writes layerwise.json and .png, and returns what was written."""
    result, table = measure(model, inputs, thresholds, source)
    write_json(workdir / "layerwise.json", as_json(result))
    plot_layerwise(result, workdir / "layerwise.png")
    return result, table


def run_prompts(
    model: mj.Model, prompts: Mapping[str, np.ndarray], workdir: Path, thresholds: Thresholds
) -> list[Layerwise]:
    """Measures several prompts, tokens [1, T] each, in one batch, and writes a record and a figure of every one.

    Returns the results.
    """
    tokens, mask = left_pad([ids[0] for ids in prompts.values()])
    with common.progress(tokens.size, "layers") as progress:
        tables = measure_each(model, tokens, mask, thresholds=thresholds, progress=progress)
    results = [record(model, ids, table, thresholds) for ids, table in zip(prompts.values(), tables, strict=True)]
    records = [{"prompt": prompt, **as_json(result)} for prompt, result in zip(prompts, results, strict=True)]
    write_json(workdir / "layerwise.json", {"prompts": records})
    for number, result in enumerate(results, 1):
        plot_layerwise(result, workdir / f"layerwise_{number}.png")
    return results


def measure(
    model: mj.Model, inputs: np.ndarray, thresholds: Thresholds, source: str | Sequence[str] | None = None
) -> tuple[Layerwise, LayerTable]:
    """Measures tokens [W, T] or images (of `source`): the result, and the table it is made of."""
    with common.progress(len(inputs) * input_length(model, inputs), "layers") as progress:
        table = measure_layers(model, inputs, thresholds=thresholds, progress=progress)
    return record(model, inputs, table, thresholds, source), table


def record(
    model: mj.Model,
    inputs: np.ndarray,
    table: LayerTable,
    thresholds: Thresholds,
    source: str | Sequence[str] | None = None,
) -> Layerwise:
    """The result that a table of `inputs` is."""

    def where(location: Location) -> dict[str, Any]:
        w, position = location.example
        rows = inputs[w : w + 1] if location.position == FIRST_DELIMITER else inputs
        token = common.shared_token(model, rows, w if len(rows) > 1 else 0, position)
        return {"value": location.value, "position": location.position, "dim": location.dim, "token": token}

    def layer(summary: LayerSummary) -> Layer:
        top = tuple(TopActivation(**where(found), share=found.share) for found in summary.locations[:_TOP])
        return Layer(layer=summary.layer, top=top, median=summary.median, magnitudes=summary.magnitudes[:_TOP])

    return Layerwise(
        **common.header(model, inputs, source),
        tokens=common.token_texts(model, inputs),
        thresholds=thresholds,
        layers=tuple(layer(summary) for summary in table.layers),
        final_norm=layer(table.final_norm),
        massive=tuple(
            FoundActivation(
                **where(found),
                layer=number,
                ratio=found.ratio,
                meets_magnitude=found.meets_magnitude,
                meets_ratio=found.meets_ratio,
            )
            for number, summary in enumerate(table.layers, 1)
            for found in find_massive(summary.locations, either=True)
        ),
    )


def show(result: Layerwise) -> None:
    """Prints the table: a line a layer."""
    rows = []
    for layer in (*result.layers, *([] if result.final_norm is None else [result.final_norm])):
        found = [
            f"{top.value:,.1f} {common.place(top)}" + (f" in {100 * top.share:.0f} %" if top.share < 1 else "")
            for top in layer.top
        ]
        massive = sum(one.layer == layer.layer and one.massive for one in result.massive)
        rows.append((layer.layer or "final norm", *found, *[""] * (_TOP - len(found)), layer.median, massive))
    common.print_table(("layer", "largest (position token, dim)", "second", "third", "median", "massive"), rows)


def main() -> None:
    """Runs the binary."""
    common.check_inputs()
    out = common.workdir()
    name = text.name() if text.given() else None
    content = None if name is None else load_text(name)
    found = common.load_model()
    source: str | Sequence[str] | None = name
    if content is None and len(prompts := common.prompts(found)) > 1:
        for text_of, result in zip(prompts, run_prompts(found, prompts, out, definition.thresholds()), strict=True):
            print(f"“{printable(text_of)}”:")
            show(result)
        print(f"wrote {out / 'layerwise.json'} and layerwise_1.png to layerwise_{len(prompts)}.png")
        return
    if common.takes_images(found):
        data = common.images(found)
        inputs, source = data.inputs, data.names
    else:
        inputs = common.prompt_tokens(found) if content is None else common.windows(found, content).tokens
    result, _ = run(found, inputs, out, definition.thresholds(), source)
    show(result)
    print(f"wrote {out / 'layerwise.json'} and {out / 'layerwise.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
