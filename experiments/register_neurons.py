"""Registers without training: moves the neurons that make outlier patches to a token of their own (arXiv 2506.08010).

  python -m experiments.register_neurons --model=openai/clip-vit-large-patch14 --images=DIR --neurons=10

Finds the MLP neurons most active on the patches whose norm stands out, adds one token of zeros to the model, and moves
those neurons' activations to it. The outliers' norms go to that token, and the attention map becomes cleaner.

Writes register_neurons.json and register_neurons.png (one image: its outlier patches, and norms and attention before
and after).

register_neurons.json: model, dtype, images, image_size, tokens, count, classes, layer (whose output shows the
outliers), outlier (how many times the median norm), neurons [{layer, dim, activation}]; norms: per layer, averaged over
the images, of the largest and the median patch and of the largest other token, {original, moved}; measures: cosine, and
top1 {original, moved} with a head and classes.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import images
from massive_jax.data import ImageList
from massive_jax.evaluate import (
    OUTLIER,
    add_register,
    check_classes,
    find_register_neurons,
    move_neurons,
    patch_maps,
    patch_norms,
)
from massive_jax.files import write_json
from massive_jax.probe import Edit
from massive_jax.report import Panel, plot_overlay

_NEURONS = flags.DEFINE_integer("neurons", 10, "How many neurons to move.", lower_bound=1)
_LAYER = flags.DEFINE_integer(
    "outlier_layer", None, "The layer whose output shows the outliers; by default the last but one.", lower_bound=1
)
_TOP_LAYER = flags.DEFINE_integer(
    "top_layer",
    None,
    "The last layer whose neurons are considered; by default where outliers reach full size.",
    lower_bound=1,
)
_OUTLIER = flags.DEFINE_float("outlier", OUTLIER, "How many times the median norm makes a patch an outlier.", 1.0)
flags.register_validator(_OUTLIER, math.isfinite, "give a finite number.")

if __name__ == "__main__":
    for module in (common, images):
        flags.adopt_module_key_flags(module)
    for name in ("model", "revision", "dtype", "allow_nonfinite", "workdir"):
        flags.declare_key_flag(name)


def run(vit: mj.Model, found: ImageList, workdir: pathlib.Path) -> dict[str, Any]:
    """Finds the neurons of `vit` on the images and measures it before and after they are moved; returns the record."""
    config = vit.require_vision()
    batches = common.image_source(vit, found)
    labels = found.labels if config.num_classes else None
    if labels is not None:
        check_classes(vit, found)
    layer = _LAYER.value or max(1, config.num_layers - 1)
    with common.progress(3 * len(found), "register neurons", "img") as done:
        neurons = find_register_neurons(
            vit,
            batches(),
            count=_NEURONS.value,
            layer=layer,
            top_layer=_TOP_LAYER.value,
            outlier=_OUTLIER.value,
            progress=done,
        )
        moved = add_register(vit)
        edits = move_neurons(moved, neurons)
        norms = {"original": patch_norms(vit, batches(), (), done), "moved": patch_norms(moved, batches(), edits, done)}
    before, after = norms["original"].outputs, norms["moved"].outputs
    measures: dict[str, Any] = {"cosine": after.cosine(before)}
    if labels is not None:
        measures["top1"] = {"original": before.top1(labels), "moved": after.top1(labels)}
    result = {
        **common.image_header(vit, found),
        "layer": layer,
        "outlier": _OUTLIER.value,
        "neurons": neurons,
        "norms": [
            {
                "layer": number + 1,
                **{
                    which: {name: float(getattr(norm, name)[number].mean()) for name in ("largest", "median", "other")}
                    for which, norm in norms.items()
                },
            }
            for number in range(config.num_layers)
        ],
        "measures": measures,
    }
    write_json(workdir / "register_neurons.json", result)
    _, image = next(iter(batches()))
    _draw(result, vit, moved, edits, image[:1], workdir / "register_neurons.png")
    return result


def _draw(
    result: dict[str, Any],
    vit: mj.Model,
    moved: mj.Model,
    edits: Sequence[Edit],
    image: np.ndarray,
    path: pathlib.Path,
) -> None:
    """One image: its outlier patches, and norms and attention before and after."""
    grid = vit.require_vision().grid(*image.shape[1:3])
    both = (patch_maps(vit, image, result["layer"]), patch_maps(moved, image, result["layer"], edits))
    norms, maps = [norm for norm, _ in both], [attention for _, attention in both]
    outliers = np.argwhere(norms[0] > _OUTLIER.value * np.median(norms[0]))
    panels = [Panel(f"The image; outlined: {len(outliers)} outliers", marked=[(int(r), int(c)) for r, c in outliers])]
    for words, scale, values in (("Norm", "norm", norms), ("Attention", "attention", maps)):
        panels += [
            Panel(f"{words} {when}: up to {x.max():.3g}", x, scale)
            for when, x in zip(("before", "after"), values, strict=True)
            if x is not None
        ]
    plot_overlay(
        result,
        "Outlier patches before and after their neurons are moved to a register",
        f"norms after block {result['layer']} · attention of the class token in the last block, mean over heads",
        vit.require_processor().pixels(image)[0],
        grid,
        panels,
        path,
    )


def main() -> None:
    """Runs the binary."""
    common.check_inputs()
    out, vit = common.workdir(), common.load_model()
    found = common.image_files(vit)
    result = run(vit, found, out)
    common.print_table(("layer", "neuron", "activation"), [(n.layer, n.dim, n.activation) for n in result["neurons"]])
    at = result["norms"][result["layer"] - 1]
    print(
        f"after block {result['layer']}, norm of the largest patch {at['original']['largest']:.4g} → "
        f"{at['moved']['largest']:.4g}, of the largest other token {at['original']['other']:.4g} → "
        f"{at['moved']['other']:.4g}; cosine of the features {result['measures']['cosine']:.6f}"
    )
    if "top1" in result["measures"]:
        top1 = result["measures"]["top1"]
        print(f"top-1: {100 * top1['original']:.2f} % → {100 * top1['moved']:.2f} %")
    print(f"wrote {out / 'register_neurons.json'} and .png")


if __name__ == "__main__":
    common.run_experiment(main)
