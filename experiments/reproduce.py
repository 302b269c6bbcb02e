"""The paper's main findings on one model: layers, one layer in 3D, attention, intervention; summary and HTML report.

  python -m experiments.reproduce --model=smollm2_135m --workdir=results

Runs layerwise, feature_map and attention_map on the prompt, and intervene on windows of the text (see each for its
files), and writes report.html, a page to explore that opens from disk, report.png, a picture for links to it, and
summary.json (`massive_jax.report.results.Findings`). A model
without massive activations gets a report that says so. On the default model about 30 s on two cores. It is the quick
look, at one prompt: `observe` gives statistics of the model.
"""

from __future__ import annotations

import time

import jax
from absl import flags

import massive_jax as mj
from experiments import attention_map, common, feature_map, intervene, layerwise, page
from experiments.flags import definition, layer, model, prompt, seed, text
from massive_jax.data import load_text
from massive_jax.files import Path, short_name, write_json
from massive_jax.report import (
    Section,
    Summary,
    Table,
    as_json,
    intervention_rows,
    label,
    number,
    plot_preview,
    precision,
    write_report,
)
from massive_jax.report.results import (
    Activation,
    AttentionMap,
    Carrier,
    EditedAt,
    Explorer,
    FeatureMap,
    Findings,
    FoundActivation,
    Intervention,
    Layerwise,
    TextSource,
)

if __name__ == "__main__":
    for module in (common, model, prompt, text, layer, definition, intervene, attention_map, seed):
        flags.adopt_module_key_flags(module)


def summarise(layers: Layerwise, attention: AttentionMap, changed: Intervention, at: int) -> Findings:
    """The findings in numbers: the largest activation at layer `at`, what else stands out there, the collapse."""
    at_layer = [found for found in layers.massive if found.layer == at]
    half = sorted((found for found in at_layer if not found.massive), key=lambda found: -abs(found.value))
    zero = changed.effects.get("zero")
    perplexity, share, there = changed.measured, max(attention.shares), bool(attention.massive_positions)
    return Findings(
        model=layers.model,
        layer=at,
        massive=tuple(found for found in at_layer if found.massive),
        one_criterion=tuple(half[:6]),
        attention_share=share if there else None,
        attention_layer=attention.shares.index(share) + 1 if there else None,
        intervention=EditedAt(layer=changed.layer, sites=changed.sites),
        perplexity=perplexity,
        times_worse=perplexity["zero"] / perplexity["original"] if "zero" in perplexity else None,
        zero_low=zero.low if zero else None,
        zero_high=zero.high if zero else None,
        carrier=_carrier(changed),
    )


def _carrier(changed: Intervention) -> Carrier | None:
    """The place that alone does nearly all of it, where there is one."""
    one = changed.carrier
    if one is None:
        return None
    found = one.effects[one.operation]
    return Carrier(
        position=one.position,
        dim=one.dim,
        operation=one.operation,
        value=found.value,
        share=one.share,
        low=found.low,
        high=found.high,
    )


def rows_of(findings: Findings) -> list[tuple[str, str]]:
    """The findings as (what, value) rows, for the terminal and the report."""
    rows = [(f"massive activation, layer {found.layer}", _activation(found)) for found in findings.massive]
    if not rows:
        rows.append((f"massive activation, layer {findings.layer}", "none meets the definition"))
    for found in findings.one_criterion:
        rows.append((f"meets {'the magnitude' if found.meets_magnitude else 'the ratio'} only", _activation(found)))
    if findings.attention_share is not None:
        where = f"layer {findings.attention_layer}, mean over heads and queries"
        rows.append(("attention on the massive tokens", f"up to {findings.attention_share:.0%} ({where})"))
    return [*rows, *((f"perplexity, {name.replace('_', ' ')}", number(v)) for name, v in findings.perplexity.items())]


def _activation(found: FoundActivation) -> str:
    where = f"position {found.position} “{_token(found)}”, dim {found.dim}"
    return f"{number(found.value)} at {where}: {found.ratio:,.0f} × the median"


def _token(found: Activation) -> str:
    return label(found.token or "", font=False)


def headline(findings: Findings) -> str:
    """One sentence."""
    perplexities, edited = findings.perplexity, findings.intervention
    if "zero" not in perplexities:
        many = len(findings.massive)
        found = f"{many or 'no'} massive activation{'' if many == 1 else 's'}"
        return f"{short_name(findings.model)} has {found} at layer {findings.layer} on this prompt."
    model, one, many = short_name(findings.model), findings.carrier, len(edited.sites)
    numbers, zero, also = "one number" if many == 1 else f"{many} numbers", perplexities["zero"], ""
    low, high = findings.zero_low, findings.zero_high
    if one is not None and one.operation == "zero":
        others = "the other" if many == 2 else f"the {many - 1} others"
        numbers = f"one number (position {str(one.position).replace('_', ' ')}, dim {one.dim})"
        low, high = one.low, one.high
        zero, also = one.value, f"; with {others} too it is {number(zero)}"
    same = f"all {many}" if also else "the same"
    bounds = "" if low is None or high is None else f" (95 % interval {number(low)} to {number(high)})"
    return (
        f"Setting {numbers} to zero in {model}, after block {edited.layer}, takes its perplexity "
        f"from {number(perplexities['original'])} to {number(zero)}{bounds}{also}"
        + (f"; setting {same} to the mean gives {number(perplexities['mean'])}." if "mean" in perplexities else ".")
    )


def sections(
    workdir: Path,
    layers: Layerwise,
    mapped: FeatureMap,
    attention: AttentionMap,
    changed: Intervention,
    found: str,
) -> list[Section]:
    """The report's sections, from what the experiments wrote into `workdir`; `found` is the headline."""
    tops = [(layer.layer, layer.top[0], layer.median) for layer in layers.layers]
    share = max(attention.shares)
    return [
        Section(
            "Layer by layer",
            "The three largest magnitudes and the median magnitude of the output of every block, on the prompt.",
            workdir / "layerwise.png",
            f"Largest magnitudes by layer; {number(abs(tops[mapped.layer - 1][1].value))} at layer {mapped.layer}.",
            Table(
                ("Layer", "Largest", "Position", "Token", "Dim", "Median", "Times the median"),
                [
                    (
                        *(at, top.value, top.position, _token(top), top.dim, median),
                        abs(top.value) / median if median else None,
                    )
                    for at, top, median in tops
                ],
            ),
        ),
        Section(
            "Where they sit",
            f"Magnitudes of the output of block {mapped.layer}, for every token and dim of the prompt.",
            workdir / "feature_map.png",
            f"A flat floor with {len(mapped.massive)} massive spikes.",
        ),
        Section(
            "What attends to them",
            f"Attention of layer {attention.layer} before and after the softmax, and the share of attention on the "
            "massive tokens at every layer."
            + ("" if attention.massive_positions else " On this prompt no token has a massive activation."),
            workdir / "attention_map.png",
            f"Up to {share:.0%} of the attention lands on the massive tokens.",
        ),
        Section(
            "What happens without them",
            (
                f"Perplexity with the activations changed after block {changed.layer}; random controls are as many "
                "places of median magnitude."
                if changed.sites
                else "Nothing in these windows meets the definition, so nothing was changed (--places names some)."
            ),
            workdir / "intervene.png",
            found,
            Table(
                ("Intervention", "Perplexity", "95 % interval"),
                [(row.name, row.value, row.interval) for row in intervention_rows(changed)],
            ),
        ),
    ]


def conditions(lm: mj.Model, layers: Layerwise, changed: Intervention) -> Section:
    """Under what all this holds."""
    limits, prompted, texts = layers.thresholds, layers.source, changed.source
    assert isinstance(prompted, TextSource)
    assert isinstance(texts, TextSource)
    rows = [
        ("Model", f"{lm.title}, {lm.config.num_layers} blocks, width {lm.config.hidden_size}"),
        ("Numbers", f"{precision(layers)} (statistics float32), jax {jax.__version__} on {jax.default_backend()}"),
        ("BOS", "in front of the prompt and every window" if prompted.bos else "none"),
        ("Prompt", f"{prompt.one()!r}: one prompt; of the model over many windows see experiments.observe"),
        ("Text", f"{texts.text}: {texts.windows} windows of {texts.context} tokens, from its start"),
        (
            "Massive",
            f"magnitude above {limits.magnitude:g} and above {limits.ratio:g} times the layer's median",
        ),
        ("Layers", "from 1: layer l is the output of block l, before the final norm"),
    ]
    return Section("Conditions", "What these numbers hold for.", table=Table(("What", "Which"), rows))


def main() -> None:
    """Runs the binary."""
    started = time.monotonic()
    common.check_inputs(prompt_and_text=True, one_prompt=True)
    layer.check_one()
    intervene.check_effect()
    out, content = common.workdir(), load_text(text.name())
    lm = mj.TextModel.of(common.load_model())
    at, head = layer.parse_layer(lm.config.num_layers), attention_map.parse_head(lm.config.num_heads)
    windows, tokens = common.windows(lm, content, least=2), common.prompt_tokens(lm)
    intervene.check_flags(lm, windows)
    thresholds = definition.thresholds()

    layers, table = layerwise.run(lm, tokens, out, thresholds)
    layerwise.show(layers)
    # One program for both: compiling is what takes the time here.
    seen = attention_map.look(lm, tokens, at or attention_map.layer_after(table), at or table.full_size_layer)
    mapped = feature_map.run(lm, tokens, table, at, out, thresholds, hidden=seen.hidden)
    attention = attention_map.run(lm, tokens, table, at, head, out, seen=seen)
    changed = intervene.from_flags(lm, windows, out, required=False, quick=True)
    findings = summarise(layers, attention, changed, mapped.layer)
    found, rows = headline(findings), rows_of(findings)
    write_json(out / "summary.json", as_json(findings))
    made = page.provenance([page.about(lm)], changed.seed)
    explorer = Explorer(
        headline=found,
        thresholds=thresholds,
        inputs=page.inputs_of(lm, tokens, model.BOS.value, mapped.layer, thresholds),
        what_if=(page.what_if(lm, windows.tokens, changed),),
        provenance=made,
    )
    parts = [*sections(out, layers, mapped, attention, changed, found), conditions(lm, layers, changed)]
    title = f"Massive activations in {lm.title}"
    plot_preview(explorer, title, out / "report.png")
    write_report(
        out / "report.html",
        title,
        Summary(found, Table(("Finding", "Value"), rows)),
        [*parts, page.origin(made)],
        explorer,
        preview="report.png",
    )
    print()
    common.print_table(("finding", "value"), rows)
    print(f"\n{found}")
    print(f"wrote {out / 'report.html'} in {time.monotonic() - started:.0f} s; open it in a browser.")
    print("This is one prompt; python -m experiments.observe measures the model over many windows, BOS off and on.")


if __name__ == "__main__":
    common.run_experiment(main)
