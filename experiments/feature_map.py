"""The paper's 3D picture: |hidden state| of one layer over tokens × dims, with what is massive in it labelled.

  python -m experiments.feature_map --layer=12 --workdir=results
  python -m experiments.feature_map --model=dinov2_reg_large --images=FILE

Writes feature_map.json and feature_map.png. On the default model about 5 s; expect one spike at position 0, dim 507.

feature_map.json: `massive_jax.report.results.FeatureMap`. Of an image: the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, layer, model, prompt
from massive_jax.analysis import Thresholds, find_massive
from massive_jax.evaluate import LayerTable, hidden_state, measure_layers
from massive_jax.files import Path, write_json
from massive_jax.report import as_json, label, plot_feature_map
from massive_jax.report.results import FeatureMap, MassiveActivation

_DIMS = 6  # labelled, besides the massive ones

if __name__ == "__main__":
    for module in (common, model, prompt, layer, definition):
        flags.adopt_module_key_flags(module)
    for name in ("images", "image_size"):
        flags.declare_key_flag(name)


def run(
    model: mj.Model,
    inputs: np.ndarray,
    table: LayerTable,
    number: int | None,
    workdir: Path,
    thresholds: Thresholds,
    source: Sequence[str] | None = None,
    hidden: np.ndarray | None = None,
) -> FeatureMap:
    """Draws layer `number` (None: where activations reach full size) for one input; returns the result.

    `hidden` is the output of that block, float32 [T, D]; None to compute it.
    """
    number = number or table.full_size_layer
    hidden = hidden_state(model, inputs, number)[0] if hidden is None else hidden
    summary = table.layers[number - 1]
    massive = find_massive(summary.locations)
    texts = common.token_texts(model, inputs)
    result = FeatureMap(
        **common.header(model, inputs, source),
        tokens=texts,
        thresholds=thresholds,
        layer=number,
        median=summary.median,
        massive=tuple(
            MassiveActivation(
                position=int(f.position), dim=f.dim, token=texts[int(f.position)], value=f.value, ratio=f.ratio
            )
            for f in massive
        ),
        dims=tuple(sorted({f.dim for f in [*massive, *find_massive(summary.locations, either=True, limit=_DIMS)]})),
    )
    write_json(workdir / "feature_map.json", as_json(result))
    plot_feature_map(result, np.abs(hidden), workdir / "feature_map.png")
    return result


def main() -> None:
    """Runs the binary."""
    common.check_inputs(one_prompt=True)
    layer.check_one()
    out, lm = common.workdir(), common.load_model()
    number, thresholds = layer.parse_layer(lm.config.num_layers), definition.thresholds()
    inputs, source = common.prompt_or_image(lm)
    table = measure_layers(lm, inputs, thresholds=thresholds)
    result = run(lm, inputs, table, number, out, thresholds, source)
    rows = [(m.position, label(m.token), m.dim, m.value, m.ratio) for m in result.massive]
    print(f"layer {result.layer}, median magnitude {result.median:.4g}:")
    if rows:
        common.print_table(("position", "token", "dim", "value", "times the median"), rows)
    else:
        print("no massive activation.")
    print(f"wrote {out / 'feature_map.json'} and {out / 'feature_map.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
