"""Top-3 and median magnitude of every layer of a model, on one prompt or over many windows of a text.

  python -m experiments.layerwise --workdir=results
  python -m experiments.layerwise --text=FILE --windows=8 --context=512

Writes layerwise.json and layerwise.png. On the default model about 10 s; expect 23,147 at layer 12, position 0, dim
507, some 13,000 times the median (paper, sections 2 and 2.1).

layerwise.json: model, dtype, bos, tokens, windows, context, thresholds,
layers: [{layer, top: [{value, position, dim, token, share}], median}], the output of block `layer`, 1-based, values
signed; final_norm: the same after the final norm; massive: [{layer, value, position, dim, token, ratio,
meets_magnitude, meets_ratio}], the locations that meet one criterion or both. Over several windows a value is the mean
over the windows that have the location among their 16 largest, and share is the fraction of those.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, model, prompt, text
from massive_jax.analysis import Location, Thresholds, find_massive
from massive_jax.data import cut_windows, load_text
from massive_jax.evaluate import LayerTable, measure_layers
from massive_jax.report import plot_layerwise, write_json

_TOP = 3

if __name__ == "__main__":
    for module in (model, prompt, text, definition):
        flags.adopt_module_key_flags(module)


def run(
    model: mj.Model, tokens: np.ndarray, workdir: pathlib.Path, thresholds: Thresholds, context: int | None = None
) -> tuple[dict[str, Any], LayerTable]:
    """Measures `tokens` [W, T], writes layerwise.json and layerwise.png, and returns what was written."""
    with common.progress(tokens.size, "layers") as progress:
        table = measure_layers(model, tokens, thresholds=thresholds, progress=progress)

    def record(location: Location) -> dict[str, Any]:
        w, position = location.example
        return {
            "value": location.value,
            "position": location.position,
            "dim": location.dim,
            "token": model.token_texts(tokens[w, [position]])[0],
        }

    def layer(summary: Any) -> dict[str, Any]:
        top = [{**record(found), "share": found.share} for found in summary.locations[:_TOP]]
        return {"layer": summary.layer, "top": top, "median": summary.median}

    result = {
        **common.header(model, tokens, context),
        "thresholds": {"magnitude": thresholds.magnitude, "ratio": thresholds.ratio},
        "layers": [layer(summary) for summary in table.layers],
        "final_norm": layer(table.final_norm),
        "massive": [
            {
                "layer": summary.layer,
                **record(found),
                "ratio": found.ratio,
                "meets_magnitude": found.meets_magnitude,
                "meets_ratio": found.meets_ratio,
            }
            for summary in table.layers
            for found in find_massive(summary.locations, either=True)
        ],
    }
    write_json(workdir / "layerwise.json", result)
    plot_layerwise(result, workdir / "layerwise.png")
    return result, table


def show(result: dict[str, Any]) -> None:
    """Prints the table: a line a layer."""
    rows = []
    for layer in [*result["layers"], result["final_norm"]]:
        found = [f"{top['value']:,.1f} {common.place(top)}" for top in layer["top"]]
        massive = sum(
            m["layer"] == layer["layer"] and m["meets_magnitude"] and m["meets_ratio"] for m in result["massive"]
        )
        rows.append((layer["layer"] or "final norm", *found, *[""] * (_TOP - len(found)), layer["median"], massive))
    common.print_table(("layer", "largest (position token, dim)", "second", "third", "median", "massive"), rows)


def main() -> None:
    """Runs the binary."""
    out, lm = common.workdir(), common.load_model()
    context = None
    if text.WINDOWS.value:
        windows = cut_windows(
            lm, load_text(text.TEXT.value), context=text.CONTEXT.value, windows=text.WINDOWS.value, bos=model.BOS.value
        )
        tokens, context = windows.tokens, windows.context
    else:
        tokens = lm.check_tokens(lm.tokenize(prompt.PROMPT.value, bos=model.BOS.value))
    result, _ = run(lm, tokens, out, definition.thresholds(), context)
    show(result)
    print(f"wrote {out / 'layerwise.json'} and {out / 'layerwise.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
