"""The paper's main findings on one model: layers, one layer in 3D, attention, intervention; summary and HTML report.

  python -m experiments.reproduce --model=smollm2_135m --workdir=results

Runs layerwise, feature_map, attention_map and intervene (see each for its files) and writes report.html, which opens
from disk, and summary.json. On the default model about two minutes on two cores.
"""

from __future__ import annotations

import time
from typing import Any

from absl import flags

from experiments import attention_map, common, feature_map, intervene, layerwise
from experiments.flags import definition, layer, model, prompt, text
from massive_jax.report import Section, Summary, Table, label, write_json, write_report

if __name__ == "__main__":
    for module in (model, prompt, text, layer, definition, intervene, attention_map):
        flags.adopt_module_key_flags(module)


def summarise(
    layers: dict[str, Any], attention: dict[str, Any], changed: dict[str, Any], number: int
) -> dict[str, Any]:
    """The findings in numbers: the largest activation at layer `number`, what else stands out there, the collapse."""
    at_layer = [m for m in layers["massive"] if m["layer"] == number]
    massive = [m for m in at_layer if m["meets_magnitude"] and m["meets_ratio"]]
    one = [m for m in at_layer if m not in massive]
    ratio_of = (
        changed["perplexity"]["zero"] / changed["perplexity"]["original"] if "zero" in changed["perplexity"] else None
    )
    return {
        "model": layers["model"],
        "layer": number,
        "massive": massive,
        "one_criterion": sorted(one, key=lambda m: -abs(m["value"]))[:6],
        "attention_share": max(attention["shares"]),
        "attention_layer": attention["shares"].index(max(attention["shares"])) + 1,
        "perplexity": changed["perplexity"],
        "times_worse": ratio_of,
    }


def rows_of(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary as (what, value) rows, for the terminal and the report."""
    rows = []
    for m in summary["massive"]:
        what = f"massive activation, layer {m['layer']}"
        rows.append((what, f"{m['value']:,.1f} at {_place(m)}, {m['ratio']:,.0f} × the median"))
    if not summary["massive"]:
        rows.append((f"massive activation, layer {summary['layer']}", "none meets the definition"))
    for m in summary["one_criterion"]:
        met = "magnitude only" if m["meets_magnitude"] else "ratio only"
        rows.append(
            (f"meets one criterion ({met})", f"{m['value']:,.1f} at {_place(m)}, {m['ratio']:,.0f} × the median")
        )
    rows.append(
        (
            "attention on the massive tokens",
            f"up to {summary['attention_share']:.0%} (layer {summary['attention_layer']}, mean over heads and queries)",
        )
    )
    rows += [(f"perplexity, {name.replace('_', ' ')}", f"{v:,.2f}") for name, v in summary["perplexity"].items()]
    return rows


def _place(found: dict[str, Any]) -> str:
    return f"position {found['position']} {label(found['token'], font=False)}, dim {found['dim']}"


def headline(summary: dict[str, Any], changed: dict[str, Any]) -> str:
    """One sentence."""
    sites, perplexities = changed["sites"], changed["perplexity"]
    if "zero" not in perplexities:
        return f"{summary['model']}: {len(summary['massive'])} massive activations at layer {summary['layer']}."
    many = "one number" if len(sites) == 1 else f"{len(sites)} numbers"
    return (
        f"Setting {many} to zero in {summary['model']}, after block {changed['layer']}, takes its perplexity from "
        f"{perplexities['original']:,.2f} to {perplexities['zero']:,.2f}"
        + (f"; setting the same to the mean gives {perplexities['mean']:,.2f}." if "mean" in perplexities else ".")
    )


def main() -> None:
    """Runs the binary."""
    started = time.monotonic()
    out, lm = common.workdir(), common.load_model()
    number, head = layer.parse_layer(lm.config.num_layers), attention_map.parse_head(lm.config.num_heads)
    windows = intervene.windows_from_flags(lm)
    tokens = lm.check_tokens(lm.tokenize(prompt.PROMPT.value, bos=model.BOS.value))

    layers, table = layerwise.run(lm, tokens, out, definition.thresholds())
    layerwise.show(layers)
    mapped = feature_map.run(lm, tokens, table, number, out)
    attention = attention_map.run(lm, tokens, table, number, head, out)
    changed = intervene.from_flags(lm, windows, out)
    summary = summarise(layers, attention, changed, mapped["layer"])
    rows = rows_of(summary)
    write_json(out / "summary.json", summary)
    write_report(
        out / "report.html",
        f"Massive activations in {lm.name}",
        Summary(headline(summary, changed), Table(("Finding", "Value"), rows)),
        [
            Section(
                "Layer by layer",
                "The three largest magnitudes and the median magnitude of the output of every block.",
                out / "layerwise.png",
                f"Largest magnitudes by layer; {table.layers[mapped['layer'] - 1].largest:,.0f} at layer "
                f"{mapped['layer']}.",
                Table(
                    ("Layer", "Largest", "Position", "Token", "Dim", "Median", "Times the median"),
                    [
                        (
                            *(row["layer"], row["top"][0]["value"], row["top"][0]["position"]),
                            *(label(row["top"][0]["token"], font=False), row["top"][0]["dim"], row["median"]),
                            abs(row["top"][0]["value"]) / row["median"],
                        )
                        for row in layers["layers"]
                    ],
                ),
            ),
            Section(
                "Where they sit",
                f"Magnitudes of the output of block {mapped['layer']}, for every token and dim.",
                out / "feature_map.png",
                f"A flat floor with {len(mapped['massive'])} massive spikes.",
            ),
            Section(
                "What attends to them",
                f"Attention of layer {attention['layer']} before and after the softmax, and the share of attention on "
                "the massive tokens at every layer.",
                out / "attention_map.png",
                f"Up to {summary['attention_share']:.0%} of the attention lands on the massive tokens.",
            ),
            Section(
                "What happens without them",
                f"Perplexity on {changed['windows']} windows of {changed['context']} tokens ({changed['text']}) with "
                f"the activations changed after block {changed['layer']}; random controls are as many places of median "
                "magnitude.",
                out / "intervene.png",
                headline(summary, changed),
                Table(("Intervention", "Perplexity"), list(changed["perplexity"].items())),
            ),
        ],
    )
    print()
    common.print_table(("finding", "value"), rows)
    print(f"\n{headline(summary, changed)}")
    print(f"wrote {out / 'report.html'} in {time.monotonic() - started:.0f} s; open it in a browser.")


if __name__ == "__main__":
    common.run_experiment(main)
