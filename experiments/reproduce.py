"""The paper's main findings on one model: layers, one layer in 3D, attention, intervention; summary and HTML report.

  python -m experiments.reproduce --model=smollm2_135m --workdir=results
  python -m experiments.reproduce --model=dinov2_reg_small --images=FOLDER

Runs layerwise, feature_map and attention_map on the prompt, and intervene on windows of the text (see each for its
files), and writes report.html, a page to explore that opens from disk, report.png, a picture for links to it, and
summary.json (`massive_jax.report.results.Findings`). Of a vision model the first image is the prompt, all of them are
the text, and patches.png shows what stands out on the picture. A model without massive activations gets a report that
says so. On the default model about 30 s on two cores. It is the quick look, at one prompt: `observe` gives statistics
of a language model, `census` of any.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

import massive_jax as mj
from experiments import attention_map, common, feature_map, intervene, layerwise, page
from experiments.flags import definition, images, layer, model, prompt, seed, text
from massive_jax.analysis import Thresholds, massive_tokens
from massive_jax.data import Windows, load_text
from massive_jax.evaluate import Images
from massive_jax.files import Path, short_name, write_json
from massive_jax.report import (
    Panel,
    Section,
    Summary,
    Table,
    as_json,
    intervention_rows,
    label,
    number,
    plot_overlay,
    plot_preview,
    precision,
    write_report,
)
from massive_jax.report.results import (
    Activation,
    AttentionMap,
    Carrier,
    EditedAt,
    ExploredInput,
    Explorer,
    FeatureMap,
    Findings,
    FoundActivation,
    ImageSource,
    Intervention,
    Layerwise,
    TextSource,
)

if __name__ == "__main__":
    for module in (common, model, prompt, text, layer, definition, intervene, attention_map, seed):
        flags.adopt_module_key_flags(module)
    for name in ("images", "num_images", "image_size"):
        flags.declare_key_flag(name)

_METRICS = {
    "perplexity": "perplexity",
    "top1_agreement": "images whose class stays",
    "cosine_similarity": "cosine similarity of the features to the unedited ones",
}


def summarise(layers: Layerwise, attention: AttentionMap, changed: Intervention, at: int) -> Findings:
    """The findings in numbers: the largest activation at layer `at`, what else stands out there, the collapse."""
    at_layer = [found for found in layers.massive if found.layer == at]
    half = sorted((found for found in at_layer if not found.massive), key=lambda found: -abs(found.value))
    zero = changed.effects.get("zero")
    measured, share, there = changed.measured, max(attention.shares), bool(attention.massive_positions)
    is_text = changed.metric == "perplexity"
    return Findings(
        model=layers.model,
        layer=at,
        massive=tuple(found for found in at_layer if found.massive),
        one_criterion=tuple(half[:6]),
        attention_share=share if there else None,
        attention_layer=attention.shares.index(share) + 1 if there else None,
        intervention=EditedAt(layer=changed.layer, sites=changed.sites),
        **{changed.metric: measured},
        times_worse=measured["zero"] / measured["original"] if is_text and "zero" in measured else None,
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
    metric = _METRICS[findings.metric]
    values = [(name.replace("_", " "), _value(findings, value)) for name, value in findings.measured.items()]
    return [*rows, *((f"{metric}, {name}", value) for name, value in values)]


def _value(findings: Findings, value: float) -> str:
    """What the model scores, in words."""
    if findings.metric == "top1_agreement":
        return f"{100 * value:.1f} %"
    return number(value) if findings.metric == "perplexity" else number(value, 5)


def _activation(found: FoundActivation) -> str:
    where = f"position {found.position} “{_token(found)}”, dim {found.dim}"
    return f"{number(found.value)} at {where}: {found.ratio:,.0f} × the median"


def _token(found: Activation) -> str:
    return label(found.token or "", font=False)


def headline(findings: Findings) -> str:
    """One sentence."""
    measured, edited = findings.measured, findings.intervention
    if "zero" not in measured:
        many = len(findings.massive)
        found = f"{many or 'no'} massive activation{'' if many == 1 else 's'}"
        what = "prompt" if findings.metric == "perplexity" else "image"
        return f"{short_name(findings.model)} has {found} at layer {findings.layer} on this {what}."
    model, one, many = short_name(findings.model), findings.carrier, len(edited.sites)
    numbers, zero, also = "one number" if many == 1 else f"{many} numbers", measured["zero"], ""
    low, high = findings.zero_low, findings.zero_high
    if one is not None and one.operation == "zero":
        others = "the other" if many == 2 else f"the {many - 1} others"
        numbers = f"one number (position {str(one.position).replace('_', ' ')}, dim {one.dim})"
        low, high = one.low, one.high
        zero, also = one.value, f"; with {others} too it is {_value(findings, zero)}"
    same = f"all {many}" if also else "the same"
    interval = None if low is None or high is None else f"{_value(findings, low)} to {_value(findings, high)}"
    bounds = "" if interval is None else f" (95 % interval {interval})"
    value = f"{_value(findings, zero)}{bounds}"
    effect = {
        "perplexity": f"takes its perplexity from {number(measured['original'])} to {value}",
        "top1_agreement": f"leaves {value} of the images their most likely class",
        "cosine_similarity": f"leaves its features with a cosine similarity of {value} to the unedited ones",
    }[findings.metric]
    mean = f"; setting {same} to the mean gives {_value(findings, measured['mean'])}" if "mean" in measured else ""
    return f"Setting {numbers} to zero in {model}, after block {edited.layer}, {effect}{also}{mean}."


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
    share, is_text = max(attention.shares), isinstance(layers.source, TextSource)
    on, many = ("the prompt", "in these windows") if is_text else ("the first image", "at one place in these images")
    metric = _METRICS[changed.metric].capitalize()
    return [
        Section(
            "Layer by layer",
            f"The three largest magnitudes and the median magnitude of the output of every block, on {on}.",
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
            f"Magnitudes of the output of block {mapped.layer}, for every token and dim of {on}.",
            workdir / "feature_map.png",
            f"A flat floor with {len(mapped.massive)} massive spikes.",
        ),
        Section(
            "What attends to them",
            f"Attention of layer {attention.layer} before and after the softmax, and the share of attention on the "
            "massive tokens at every layer."
            + ("" if attention.massive_positions else f" On {on} no token has a massive activation."),
            workdir / "attention_map.png",
            f"Up to {share:.0%} of the attention lands on the massive tokens.",
        ),
        Section(
            "What happens without them",
            (
                f"{metric} with the activations changed after block {changed.layer}; random controls are as many "
                "places of median magnitude."
                if changed.sites
                else f"Nothing {many} meets the definition, so nothing was changed (--places names some)."
            ),
            workdir / "intervene.png",
            found,
            Table(
                ("Intervention", metric, "95 % interval"),
                [(row.name, row.value, row.interval) for row in intervention_rows(changed)],
            ),
        ),
    ]


def patches(
    model: mj.ImageModel,
    image: np.ndarray,
    here: ExploredInput,
    layers: Layerwise,
    attention: AttentionMap,
    mass: np.ndarray,
    at: int,
    workdir: Path,
) -> Section:
    """What stands out on the picture: patches.png, and the section of it.

    Args:
      model: the model.
      image: float32 [height, width, 3].
      here: what is explored of it.
      layers: the magnitudes of every layer.
      attention: of the layer looked at.
      mass: share of attention on every key, averaged over queries, [L, 1, H, S].
      at: the layer of the magnitudes.
      workdir: where the figure goes.
    """
    grid, prefix = model.config.grid(*image.shape[:2]), model.config.prefix
    layer = here.layers[at - 1]
    largest = np.abs(layer.values)
    sizes = largest[prefix:].reshape(grid)
    shares = mass[attention.layer - 1, 0].mean(axis=0)[prefix : len(here.tokens)].reshape(grid)
    massive = massive_tokens(largest, np.array(layer.median), layers.thresholds)[prefix:].reshape(grid)
    marked = [(int(row), int(column)) for row, column in np.argwhere(massive)]
    panels = [
        Panel("The image"),
        Panel(f"Largest magnitude after block {at}: up to {number(float(sizes.max()))}", sizes, "size", marked),
        Panel(f"Attention of layer {attention.layer}: up to {shares.max():.1%} on a patch", shares, "attention"),
    ]
    title = "Largest magnitude, and attention, on the patches"
    picture = workdir / "patches.png"
    note = "massive ones outlined; attention is the mean over heads and queries"
    plot_overlay(layers, title, note, model.pixels(image[None])[0], grid, panels, picture)
    return Section(
        "On the picture",
        f"The first image: each patch's largest magnitude after block {at}, and the attention that it "
        f"gets in layer {attention.layer}.",
        picture,
        f"Magnitudes over the patches, up to {number(float(sizes.max()))}; massive ones: {len(marked)}.",
    )


def conditions(lm: mj.Model, layers: Layerwise, changed: Intervention) -> Section:
    """Under what all this holds."""
    limits, one, many = layers.thresholds, layers.source, changed.source
    if isinstance(one, TextSource) and isinstance(many, TextSource):
        on = [
            ("BOS", "in front of the prompt and every window" if one.bos else "none"),
            ("Prompt", f"{prompt.one()!r}: one prompt; of the model over many windows see experiments.observe"),
            ("Text", f"{many.text}: {many.windows} windows of {many.context} tokens, from its start"),
        ]
    else:
        assert isinstance(many, ImageSource)
        height, width = many.image_size
        on = [
            ("Image", f"{many.images[0]}; of the model over many images see experiments.census"),
            ("Images", f"{images.IMAGES.value}: {len(many.images)} of {height} × {width} pixels"),
        ]
    rows = [
        ("Model", f"{lm.title}, {lm.config.num_layers} blocks, width {lm.config.hidden_size}"),
        ("Numbers", f"{precision(layers)} (statistics float32), jax {jax.__version__} on {jax.default_backend()}"),
        *on,
        (
            "Massive",
            f"magnitude above {limits.magnitude:g} and above {limits.ratio:g} times the layer's median",
        ),
        ("Layers", "from 1: layer l is the output of block l, before the final norm"),
    ]
    return Section("Conditions", "What these numbers hold for.", table=Table(("What", "Which"), rows))


def explored(
    lm: mj.Model, inputs: np.ndarray, data: Windows | Images, at: int, limits: Thresholds
) -> tuple[ExploredInput, ...]:
    """What the page explores: the prompt without BOS and with it, or the first images."""
    if isinstance(data, Images):
        vit = mj.ImageModel.of(lm)
        return page.images_of(vit, page.images_shown(vit, data), at, limits)
    return page.inputs_of(mj.TextModel.of(lm), inputs, model.BOS.value, at, limits)


def read(lm: mj.Model, content: str) -> tuple[np.ndarray, Windows | Images, Sequence[str] | None]:
    """The input that is looked at closely, those on which the model is changed, and the header's source of the one."""
    if common.takes_images(lm):
        many = common.images(lm)
        page.images_shown(mj.ImageModel.of(lm), many)
        return many.inputs[:1], many, many.names[:1]
    return common.prompt_tokens(lm), common.windows(lm, content, least=2), None


def main() -> None:
    """Runs the binary."""
    started = time.monotonic()
    common.check_inputs(prompt_and_text=True, one_prompt=True)
    layer.check_one()
    intervene.check_effect()
    out = common.workdir()
    content = "" if images.IMAGES.value is not None else load_text(text.name())
    lm = common.load_model()
    at, head = layer.parse_layer(lm.config.num_layers), attention_map.parse_head(lm.config.num_heads)
    inputs, data, source = read(lm, content)
    intervene.check_flags(lm, data)
    thresholds = definition.thresholds()

    layers, table = layerwise.run(lm, inputs, out, thresholds, source)
    layerwise.show(layers)
    # One program for both: compiling is what takes the time here.
    seen = attention_map.look(lm, inputs, at or attention_map.layer_after(table), at or table.full_size_layer)
    mapped = feature_map.run(lm, inputs, table, at, out, thresholds, source, hidden=seen.hidden)
    attention = attention_map.run(lm, inputs, table, at, head, out, source, seen=seen)
    changed = intervene.from_flags(lm, data, out, required=False, quick=True)
    findings = summarise(layers, attention, changed, mapped.layer)
    found, rows = headline(findings), rows_of(findings)
    write_json(out / "summary.json", as_json(findings))
    made = page.provenance([page.about(lm)], changed.seed)
    explorer = Explorer(
        headline=found,
        thresholds=thresholds,
        inputs=explored(lm, inputs, data, mapped.layer, thresholds),
        what_if=(page.what_if(lm, data.inputs, changed, thresholds),),
        provenance=made,
    )
    parts = [*sections(out, layers, mapped, attention, changed, found), conditions(lm, layers, changed)]
    if isinstance(lm, mj.ImageModel):
        parts.insert(1, patches(lm, inputs[0], explorer.inputs[0], layers, attention, seen.mass, mapped.layer, out))
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
    if isinstance(data, Images):
        print("This is one image; python -m experiments.census measures the model over many.")
    else:
        print("This is one prompt; python -m experiments.observe measures the model over many windows, BOS off and on.")


if __name__ == "__main__":
    common.run_experiment(main)
