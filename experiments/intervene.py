"""Perplexity, or how far an image model stays itself, with massive activations set to zero, their mean or otherwise.

  python -m experiments.intervene --layer=12 --sites=0:507,0:247,0:14 --ops=zero,mean --workdir=results
  python -m experiments.intervene --model=dinov2_reg_large --images=FOLDER --ops=zero,mean

Writes intervene.json and intervene.png. On the default model with four windows of 512 tokens about 30 s; expect a
perplexity above 100,000 for zero and the original's within 1 % for mean and the controls (paper, section 3.1).

Every operation is made at all sites at once, of the output of block --layer: zero; mean: each site's own mean over the
windows, unedited; set=X; scale=X: times X; add=X; noise=X: plus X · N(0, 1); shuffle: the same dim of another position.

Windows are consecutive, non-overlapping runs of --context tokens from the start of the text, tokenised whole and
without special tokens (--bos puts one in front of each: its position is 0). Perplexity is exp(total negative
log-likelihood / predicted tokens).

A vision model runs --images and is compared with itself unedited: top1_agreement, the share of images whose most likely
class stays, where it has a head; otherwise cosine_similarity of the pooled features, averaged over the images.

intervene.json: model, dtype, bos, text, windows, context, layer, sites: [{position, dim, value_mean}], mean_values,
controls: [{position, dim}], seed, predicted_tokens, perplexity: {original, zero, mean, random_zero, …}. JSON has no
infinity: such a number is null, and the key non_finite says what it was. Of images: images and image_size in place of
bos, text, windows, context and predicted_tokens, and top1_agreement or cosine_similarity in place of perplexity.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, images, layer, model, seed, text
from massive_jax.analysis import Thresholds, find_massive, median_sites
from massive_jax.data import Windows, load_text
from massive_jax.evaluate import (
    Images,
    Operation,
    PlaceInStream,
    check_sites,
    hidden_state,
    input_length,
    intervene,
    measure_layers,
    measure_of,
    parse_sites,
    site_means,
)
from massive_jax.files import write_json
from massive_jax.report import number as in_words
from massive_jax.report import plot_intervention
from massive_jax.report.intervention import METRICS

_SITES = flags.DEFINE_string(
    "sites",
    "auto",
    "POS:DIM,…: places in the residual stream; POS a token position or 'delim', each window's first delimiter. 'auto': "
    "those that meet the definition at the layer.",
)
_OPS = flags.DEFINE_list("ops", ["zero", "mean"], "Any of zero, mean, shuffle, set=X, scale=X, add=X, noise=X.")
_CONTROLS = flags.DEFINE_bool(
    "controls", True, "Does the same to as many random places whose magnitude is close to the median."
)


def _reads(parse: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """A flag's validator: `parse` takes its value."""

    def validate(value: Any) -> bool:
        try:
            parse(value)
        except ValueError as error:
            raise flags.ValidationError(str(error)) from None
        return True

    return validate


def _parse_operations(names: Sequence[str]) -> list[Operation]:
    operations = list(dict.fromkeys(Operation.parse(name.strip()) for name in names))
    if not operations:
        raise ValueError("name at least one operation: zero, say.")
    return operations


flags.register_validator(_OPS, _reads(_parse_operations))
flags.register_validator(_SITES, _reads(lambda text: text == "auto" or parse_sites(text)))

if __name__ == "__main__":
    for module in (common, model, text, layer, definition, seed):
        flags.adopt_module_key_flags(module)
    for name in ("images", "num_images", "image_size"):
        flags.declare_key_flag(name)


def find_sites(
    model: mj.Model,
    data: Windows | Images,
    number: int | None,
    sites: str,
    thresholds: Thresholds,
    required: bool = True,
) -> tuple[int, list[PlaceInStream]]:
    """The layer and the places to edit: as given, or found in `data`.

    Raises:
      ValueError: a given site is out of range; nothing at that layer meets the definition and it is `required`.
    """
    given = None if sites == "auto" else parse_sites(sites)
    if given is not None:
        check_sites(model, data, given)
        if number is not None:
            return number, given
    with common.progress(_tokens(model, data), "finding sites") as progress:
        table = measure_layers(model, data.inputs, thresholds=thresholds, progress=progress)
    number = number or table.full_size_layer
    if given is not None:
        return number, given
    summary = table.layers[number - 1]
    found = find_massive(summary.locations)
    if not found and required:
        largest = summary.locations[0]
        raise ValueError(
            f"nothing at layer {number} meets the definition (magnitude above {thresholds.magnitude:g} and "
            f"{thresholds.ratio:g} times the median): the largest, {largest.value:.4g} at "
            f"{largest.position}:{largest.dim}, is {largest.ratio:.0f} times the median. "
            "Give --sites, another --layer, or lower thresholds."
        )
    return number, [PlaceInStream(f.position, f.dim) for f in found]


def run(
    model: mj.Model,
    data: Windows | Images,
    number: int,
    sites: Sequence[PlaceInStream],
    operations: Sequence[Operation],
    workdir: pathlib.Path,
    *,
    source: str | Sequence[str],
    controls: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures, writes intervene.json and intervene.png, and returns what was written."""
    passes = 1 + 1 + len(operations) * (2 if controls else 1)
    with common.progress(_tokens(model, data) * passes, "interventions") as progress:
        means = site_means(model, data, number, sites, progress)
        metric, measure = measure_of(model, data, progress)
        # Of images the unedited model has been run, and agrees with itself.
        found = {"original": 1.0 if isinstance(data, Images) else measure([], progress)}
        if not math.isfinite(found["original"]):
            raise ValueError(f"{model.name}: the perplexity of the unedited model is {found['original']} on this text.")
        found |= intervene(model, data, number, sites, operations, means, progress, seed, measure)
        control: list[PlaceInStream] = []
        if controls:
            hidden = hidden_state(model, data.inputs[:1], number)[0]
            taken = [(site.position, site.dim) for site in sites if isinstance(site.position, int)]
            control = [PlaceInStream(*c) for c in median_sites(hidden, len(sites), exclude=taken, seed=seed)]
            control_means = site_means(model, data, number, control)
            changed = intervene(model, data, number, control, operations, control_means, progress, seed, measure)
            found |= {f"random_{name}": value for name, value in changed.items()}
    result = {
        **common.header(model, data.inputs, source),
        "layer": number,
        "sites": [
            {"position": site.position, "dim": site.dim, "value_mean": mean}
            for site, mean in zip(sites, means, strict=True)
        ],
        "mean_values": means,
        "controls": [{"position": site.position, "dim": site.dim} for site in control],
        "seed": seed,
        **({"predicted_tokens": data.num_predicted} if isinstance(data, Windows) else {}),
        metric: found,
    }
    del result["tokens"]  # the whole of a window says nothing here
    write_json(workdir / "intervene.json", result)
    plot_intervention(result, workdir / "intervene.png")
    return result


def _tokens(model: mj.Model, data: Windows | Images) -> int:
    """How many tokens one pass over `data` is."""
    return len(data.inputs) * input_length(model, data.inputs)


def show(result: dict[str, Any]) -> None:
    """Prints the sites and what the interventions did."""
    sites = ", ".join(f"{s['position']}:{s['dim']} (mean {in_words(s['value_mean'])})" for s in result["sites"])
    print(f"layer {result['layer']}, sites position:dim {sites}")
    metric = next(name for name in METRICS if name in result)
    common.print_table(("intervention", metric.replace("_", " ")), list(result[metric].items()))


def check_effect() -> None:
    """ValueError where --seed is given and nothing is drawn at random."""
    drawn = _CONTROLS.value or any(operation.op in ("noise", "shuffle") for operation in _parse_operations(_OPS.value))
    if not drawn:
        common.without_effect(("seed",), "with --nocontrols and without noise or shuffle in --ops")


def check_flags(model: mj.Model, data: Windows | Images) -> None:
    """ValueError where --sites names a place that the model or the inputs do not have."""
    if _SITES.value != "auto":
        check_sites(model, data, parse_sites(_SITES.value))


def from_flags(
    model: mj.Model, data: Windows | Images, workdir: pathlib.Path, sites_required: bool = True
) -> dict[str, Any]:
    """`run` with what the flags say; where no site is found and none is required, the original only."""
    number, sites = find_sites(
        model,
        data,
        layer.parse_layer(model.config.num_layers),
        _SITES.value,
        definition.thresholds(),
        required=sites_required,
    )
    return run(
        model,
        data,
        number,
        sites,
        _parse_operations(_OPS.value) if sites else [],
        workdir,
        source=data.names if isinstance(data, Images) else text.name(),
        controls=_CONTROLS.value and bool(sites),
        seed=seed.SEED.value,
    )


def main() -> None:
    """Runs the binary."""
    common.check_inputs()
    check_effect()
    if _SITES.value != "auto":
        common.without_effect(("massive_magnitude", "massive_ratio"), "where --sites names the places")
    out = common.workdir()
    content = "" if images.IMAGES.value is not None else load_text(text.name())
    found = common.load_model()
    data = common.images(found) if common.takes_images(found) else common.windows(found, content, least=2)
    result = from_flags(found, data, out)
    show(result)
    print(f"wrote {out / 'intervene.json'} and {out / 'intervene.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
