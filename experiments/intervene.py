"""Perplexity with massive activations set to zero, to their mean, or otherwise changed, and with random controls.

  python -m experiments.intervene --layer=12 --sites=0:507,0:247,0:14 --ops=zero,mean --workdir=results

Writes intervene.json and intervene.png. On the default model with four windows of 512 tokens about 40 s; expect a
perplexity above 100,000 for zero and the original's within 1 % for mean and the controls (paper, section 3.1).

intervene.json: model, dtype, bos, layer, context, windows, sites, mean_values, controls, perplexity: {original, zero,
mean, random_zero, …}. Windows are consecutive, non-overlapping runs of --context tokens from the start of the text,
tokenised whole and without special tokens (--bos puts one in front of each). mean is each site's own mean over those
windows, unedited. Perplexity is exp(total negative log-likelihood / predicted tokens).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, layer, model, text
from massive_jax.analysis import Thresholds, find_massive, median_sites
from massive_jax.data import Windows, cut_windows, load_text
from massive_jax.evaluate import (
    Operation,
    PlaceInStream,
    hidden_state,
    intervene,
    measure_layers,
    parse_sites,
    perplexity,
    site_means,
)
from massive_jax.report import plot_intervention, write_json

_SITES = flags.DEFINE_string(
    "sites",
    "auto",
    "POS:DIM,…: places in the residual stream; POS a token position or 'delim', each window's first delimiter. 'auto': "
    "those that meet the definition at the layer.",
)
_OPS = flags.DEFINE_list("ops", ["zero", "mean"], "zero, mean, shuffle, set=X, scale=X, add=X, noise=X.")
_CONTROLS = flags.DEFINE_bool(
    "controls", True, "Does the same to as many random places whose magnitude is close to the median."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice of random controls.")

_DEFAULT_WINDOWS = 4

if __name__ == "__main__":
    for module in (model, text, layer, definition):
        flags.adopt_module_key_flags(module)


def find_sites(
    model: mj.Model, windows: Windows, number: int | None, sites: str, thresholds: Thresholds
) -> tuple[int, list[PlaceInStream]]:
    """The layer and the places to edit: as given, or found in `windows`.

    Raises:
      ValueError: nothing at that layer meets the definition.
    """
    given = None if sites == "auto" else parse_sites(sites)
    if given is not None and number is not None:
        return number, given
    with common.progress(windows.tokens.size, "finding sites") as progress:
        table = measure_layers(model, windows.tokens, thresholds=thresholds, progress=progress)
    number = number or table.full_size_layer
    if given is not None:
        return number, given
    summary = table.layers[number - 1]
    found = find_massive(summary.locations)
    if not found:
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
    windows: Windows,
    number: int,
    sites: Sequence[PlaceInStream],
    operations: Sequence[Operation],
    workdir: pathlib.Path,
    *,
    text: str,
    controls: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures, writes intervene.json and intervene.png, and returns what was written."""
    passes = 1 + 1 + len(operations) * (2 if controls else 1)
    with common.progress(windows.tokens.size * passes, "perplexity") as progress:
        means = site_means(model, windows, number, sites, progress)
        found = {"original": perplexity(model, windows, progress=progress)}
        found |= intervene(model, windows, number, sites, operations, means, progress)
        control: list[PlaceInStream] = []
        if controls:
            hidden = hidden_state(model, windows.tokens[:1], number)[0]
            taken = [(site.position, site.dim) for site in sites if isinstance(site.position, int)]
            control = [PlaceInStream(*c) for c in median_sites(hidden, len(sites), exclude=taken, seed=seed)]
            changed = intervene(
                model, windows, number, control, operations, site_means(model, windows, number, control), progress
            )
            found |= {f"random_{name}": value for name, value in changed.items()}
    result = {
        **common.header(model, windows.tokens, windows.context),
        "text": text,
        "layer": number,
        "sites": [
            {"position": site.position, "dim": site.dim, "value_mean": mean}
            for site, mean in zip(sites, means, strict=True)
        ],
        "mean_values": means,
        "controls": [{"position": site.position, "dim": site.dim} for site in control],
        "predicted_tokens": windows.num_predicted,
        "perplexity": found,
    }
    del result["tokens"]  # the whole of a window says nothing here
    write_json(workdir / "intervene.json", result)
    plot_intervention(result, workdir / "intervene.png")
    return result


def show(result: dict[str, Any]) -> None:
    """Prints the sites and the perplexities."""
    sites = ", ".join(f"{s['position']}:{s['dim']} (mean {s['value_mean']:,.1f})" for s in result["sites"])
    print(f"layer {result['layer']}, sites {sites}")
    common.print_table(("intervention", "perplexity"), list(result["perplexity"].items()))


def from_flags(model: mj.Model, windows: Windows, workdir: pathlib.Path) -> dict[str, Any]:
    """`run` with what the flags say."""
    number = layer.parse_layer(model.config.num_layers)
    operations = [Operation.parse(op) for op in _OPS.value]
    if not operations:
        raise ValueError("--ops is empty: name at least one operation.")
    number, sites = find_sites(model, windows, number, _SITES.value, definition.thresholds())
    return run(
        model,
        windows,
        number,
        sites,
        operations,
        workdir,
        text=text.TEXT.value,
        controls=_CONTROLS.value,
        seed=_SEED.value,
    )


def windows_from_flags(lm: mj.Model) -> Windows:
    """The windows that the flags ask for."""
    return cut_windows(
        lm,
        load_text(text.TEXT.value),
        context=text.CONTEXT.value,
        windows=text.WINDOWS.value or _DEFAULT_WINDOWS,
        bos=model.BOS.value,
        tokens=2,
    )


def main() -> None:
    """Runs the binary."""
    out, lm = common.workdir(), common.load_model()
    result = from_flags(lm, windows_from_flags(lm), out)
    show(result)
    print(f"wrote {out / 'intervene.json'} and {out / 'intervene.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
