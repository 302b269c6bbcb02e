"""Register tokens are biases: what is massive in them, and fixing them to their means at every block (Fix-Reg-Mean).

  python -m experiments.vit_registers --model=facebook/dinov2-with-registers-base --images=DIR --workdir=results

With the linear head that is published with DINOv2 and ImageNet's validation set in a folder a class, top-1 accuracy
stays (paper: S 81.9 → 81.7, B 84.8 → 85.0, L 86.3 → 86.2, G 87.0 → 87.0):

  … --linear_head=dinov2_vitb14_reg4_linear_head.pth --images=imagenet/val [--means=dinov2_reg_means.npz]

Without a head the measure is the cosine similarity of each image's feature to the unedited one. The means are collected
on the images, unless --means gives a file of them: an .npz that this experiment wrote, or the released one.

Writes vit_registers.json, vit_registers.png (the largest activation of each register by layer), vit_attention.png
(attention of the class token in the last block, before and after) and, where collected, vit_register_means.npz.

vit_registers.json: `massive_jax.report.results.VitRegisters`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, images, paths
from massive_jax.analysis import RegisterMeans, Thresholds, find_massive
from massive_jax.data import ImageList
from massive_jax.evaluate import (
    attach_head,
    check_classes,
    mean_registers,
    patch_maps,
    register_shape,
    run_images,
)
from massive_jax.files import Path, write_arrays, write_json
from massive_jax.report import Panel, as_json, plot_overlay, plot_registers
from massive_jax.report.results import (
    ImageMeasures,
    MassiveRegister,
    RegisterActivation,
    RegisterLayer,
    VitRegisters,
)
from massive_jax.weights.linear_head import read_linear_head

_MEANS = paths.define("means", None, "An .npz file of register means, in place of those of the images.")
_HEAD = paths.define("linear_head", None, "A linear classifier: .pth as DINOv2's are published, .safetensors or .npz.")

if __name__ == "__main__":
    for module in (common, images, definition):
        flags.adopt_module_key_flags(module)
    for name in ("model", "revision", "dtype", "allow_nonfinite", "workdir"):
        flags.declare_key_flag(name)


def run(
    vit: mj.ImageModel, found: ImageList, means: RegisterMeans | None, workdir: Path, thresholds: Thresholds
) -> VitRegisters:
    """Measures `vit` unedited and with its registers at `means` (None: those of the images); returns the result."""
    L, R, _ = register_shape(vit)
    batches = common.image_source(vit, found)
    labels = found.labels if vit.config.num_classes else None
    if labels is not None:
        check_classes(vit, found)
    source = "collected" if means is None else str(_MEANS.value)
    if means is None:
        with common.progress(len(found), "register means", "img") as done:
            means = mean_registers(vit, batches(), done)
        write_arrays(workdir / "vit_register_means.npz", means=means.values)
    edits = means.edits(vit.config.prefix - R)
    with common.progress(2 * len(found), "before and after", "img") as done:
        original, fixed = run_images(vit, batches(), progress=done), run_images(vit, batches(), edits, done)
    top1 = None if labels is None else {"original": original.top1(labels), "fixed": fixed.top1(labels)}
    largest = np.abs(means.values).argmax(axis=-1)  # [L, R]
    result = VitRegisters(
        **common.image_header(vit, found),
        registers=R,
        means=source,
        head=_HEAD.value,
        thresholds=thresholds,
        layers=tuple(
            RegisterLayer(
                layer=layer,
                median=float(np.median(np.abs(means.values[layer]))),
                largest=tuple(
                    RegisterActivation(register=r + 1, dim=int(d), value=float(means.values[layer, r, d]))
                    for r, d in enumerate(largest[layer])
                ),
            )
            for layer in range(L)
        ),
        massive=tuple(
            MassiveRegister(layer=layer, register=int(f.position), dim=f.dim, value=f.value, ratio=f.ratio)
            for layer in range(L)
            for f in find_massive(means.locations(layer, thresholds))
        ),
        measures=ImageMeasures(cosine=fixed.cosine(original), top1=top1),
    )
    write_json(workdir / "vit_registers.json", as_json(result))
    plot_registers(result, workdir / "vit_registers.png")
    _, image = next(iter(batches()))
    versions: dict[str, Sequence[mj.Edit]] = {"unedited": (), "registers fixed": edits}
    maps = {name: patch_maps(vit, image[:1], L, e)[1] for name, e in versions.items()}
    panels = [Panel(f"Attention, {name}", x, "attention") for name, x in maps.items() if x is not None]
    if panels:
        plot_overlay(
            result,
            f"Attention of the class token in block {L}",
            "mean over heads, both on one scale",
            vit.pixels(image[:1])[0],
            vit.config.grid(*image.shape[1:3]),
            [Panel("The image"), *panels],
            workdir / "vit_attention.png",
        )
    return result


def main() -> None:
    """Runs the binary."""
    common.check_inputs()
    out, thresholds = common.workdir(), definition.thresholds()
    head = None if _HEAD.value is None else read_linear_head(_HEAD.value)
    vit = mj.ImageModel.of(common.load_model())
    found = common.image_files(vit)
    shape = register_shape(vit)
    means = None if _MEANS.value is None else RegisterMeans.read(_MEANS.value, shape)
    if head is not None:
        vit = attach_head(vit, head)
    result = run(vit, found, means, out, thresholds)
    if result.massive:
        rows = [(m.layer, f"reg{m.register}", m.dim, m.value, m.ratio) for m in result.massive]
        common.print_table(("layer", "register", "dim", "value", "times the median"), rows)
    else:
        print("no register has a massive activation at any layer.")
    cosine, top1 = result.measures.cosine, result.measures.top1
    print(f"registers fixed to their means ({result.means}): cosine of the features {cosine:.6f}")
    if top1 is not None:
        print(f"top-1: {100 * top1['original']:.2f} % → {100 * top1['fixed']:.2f} %")
    print(f"wrote {out / 'vit_registers.json'} and .png")


if __name__ == "__main__":
    common.run_experiment(main)
