"""Registers without training: moves the neurons that make outlier patches to a token of their own (arXiv 2506.08010).

  python -m experiments.register_neurons --model=openai/clip-vit-large-patch14 --images=DIR --neurons=10

Finds the MLP neurons most active on the patches whose norm stands out, adds one token of zeros to the model, and moves
those neurons' activations to it. The outliers' norms go to that token, and the attention map becomes cleaner.

Writes register_neurons.json and register_neurons.png (one image: its outlier patches, and norms and attention before
and after).

register_neurons.json: `massive_jax.report.results.RegisterNeurons`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import images
from massive_jax.data import ImageList
from massive_jax.evaluate import (
    OUTLIER,
    PatchNorms,
    add_register,
    check_classes,
    find_register_neurons,
    move_neurons,
    patch_maps,
    patch_norms,
)
from massive_jax.files import Path, write_json
from massive_jax.probe import Edit
from massive_jax.report import Panel, as_json, plot_overlay
from massive_jax.report.results import ImageMeasures, Neuron, Norms, NormsOfLayer, RegisterNeurons

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


def run(vit: mj.ImageModel, found: ImageList, workdir: Path) -> RegisterNeurons:
    """Finds the neurons of `vit` on the images and measures it before and after they are moved; returns the result."""
    config = vit.config
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
    top1 = None if labels is None else {"original": before.top1(labels), "moved": after.top1(labels)}
    result = RegisterNeurons(
        **common.image_header(vit, found),
        layer=layer,
        outlier=_OUTLIER.value,
        neurons=tuple(Neuron(layer=n.layer, dim=n.dim, activation=n.activation) for n in neurons),
        norms=tuple(
            NormsOfLayer(layer=number, **{which: _norms(norm, number) for which, norm in norms.items()})
            for number in range(1, config.num_layers + 1)
        ),
        measures=ImageMeasures(cosine=after.cosine(before), top1=top1),
    )
    write_json(workdir / "register_neurons.json", as_json(result))
    _, image = next(iter(batches()))
    _draw(result, vit, moved, edits, image[:1], workdir / "register_neurons.png")
    return result


def _norms(found: PatchNorms, layer: int) -> Norms:
    """Those after block `layer`, averaged over the images."""
    return Norms(**{name: float(getattr(found, name)[layer - 1].mean()) for name in ("largest", "median", "other")})


def _draw(
    result: RegisterNeurons,
    vit: mj.ImageModel,
    moved: mj.Model,
    edits: Sequence[Edit],
    image: np.ndarray,
    path: Path,
) -> None:
    """One image: its outlier patches, and norms and attention before and after."""
    grid = vit.config.grid(*image.shape[1:3])
    both = (patch_maps(vit, image, result.layer), patch_maps(moved, image, result.layer, edits))
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
        f"norms after block {result.layer} · attention of the class token in the last block, mean over heads",
        vit.pixels(image)[0],
        grid,
        panels,
        path,
    )


def main() -> None:
    """Runs the binary."""
    common.check_inputs()
    out, vit = common.workdir(), mj.ImageModel.of(common.load_model())
    found = common.image_files(vit)
    result = run(vit, found, out)
    common.print_table(("layer", "neuron", "activation"), [(n.layer, n.dim, n.activation) for n in result.neurons])
    at, measures = result.norms[result.layer - 1], result.measures
    print(
        f"after block {result.layer}, norm of the largest patch {at.original.largest:.4g} → {at.moved.largest:.4g}, of "
        f"the largest other token {at.original.other:.4g} → {at.moved.other:.4g}; cosine of the features "
        f"{measures.cosine:.6f}"
    )
    if measures.top1 is not None:
        print(f"top-1: {100 * measures.top1['original']:.2f} % → {100 * measures.top1['moved']:.2f} %")
    print(f"wrote {out / 'register_neurons.json'} and .png")


if __name__ == "__main__":
    common.run_experiment(main)
