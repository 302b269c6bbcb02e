"""Measures a model's massive activations and compares them with what the atlas reports.

  python -m experiments.verify --model=smollm2_135m --workdir=results

Runs the default prompt (with BOS where the atlas says so) and writes verify.json. The atlas (massive_jax/zoo/atlas)
holds what papers reported, on other texts: dims should agree, magnitudes only roughly, except where an entry was
measured with this project. Exit status 1 where the dims disagree.
"""

from __future__ import annotations

import sys
from typing import Any

from absl import flags

from experiments import common
from experiments.flags import definition, model, prompt
from massive_jax.analysis import find_massive
from massive_jax.evaluate import measure_layers
from massive_jax.files import write_json
from massive_jax.zoo import atlas

if __name__ == "__main__":
    for module in (common, model, prompt, definition):
        flags.adopt_module_key_flags(module)


def compare(entry: atlas.Entry, found: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """(what, reported, measured, agree) rows; agree is None where nothing was reported or texts differ."""
    dims = list(entry.dims)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("dims", str(dims), str(found["dims"]), set(dims) <= set(found["dims"]) if dims else not found["dims"])
    ]
    if entry.layers is not None:
        reported = f"{entry.layers[0]} to {entry.layers[1]}"
        measured = f"{found['layers'][0]} to {found['layers'][1]}" if found["layers"] else "none"
        rows.append(("layers", reported, measured, reported == measured if entry.exact else None))
    if entry.largest is not None:
        close = abs(found["largest"] - entry.largest) < 5e-3 * entry.largest if entry.exact else None
        rows.append(("largest magnitude", f"{entry.largest:,.1f}", f"{found['largest']:,.1f}", close))
    return rows


def main() -> None:
    """Runs the binary."""
    entry = atlas.find(model.MODEL.value)
    common.check_inputs(one_prompt=True)
    out = common.workdir()
    lm = common.load_model()
    bos = model.BOS.value if flags.FLAGS["bos"].present else bool(entry.bos)
    tokens = lm.check_tokens(lm.tokenize(prompt.one(), bos=bos))
    table = measure_layers(lm, tokens, thresholds=definition.thresholds())
    massive = {summary.layer: find_massive(summary.locations) for summary in table.layers}
    layers = [layer for layer, here in massive.items() if here]
    found = {
        "model": lm.name,
        "weights": common.stored_as(lm),
        "dtype": lm.config.dtype,
        "bos": bos,
        "dims": sorted({f.dim for here in massive.values() for f in here}),
        "positions": sorted({f.position for here in massive.values() for f in here}),
        "layers": [layers[0], layers[-1]] if layers else [],
        "largest": max(summary.largest for summary in table.layers),
    }
    rows = compare(entry, found)
    write_json(out / "verify.json", {**found, "atlas": entry, "agree": {what: agree for what, _, _, agree in rows}})
    words = {True: "yes", False: "no", None: "not comparable"}
    common.print_table(("", "atlas", "measured", "agree"), [(*row[:3], words[row[3]]) for row in rows])
    print(f"atlas: {', '.join(atlas.sources()[source] for source in entry.sources)}. {entry.note}")
    print(f"wrote {out / 'verify.json'}")
    if rows[0][3] is False:
        sys.exit(1)


if __name__ == "__main__":
    common.run_experiment(main)
