"""Trains a vision transformer from scratch, with registers, an explicit attention bias, or neither.

  python -m experiments.train_vit --workdir=results/vit
  python -m experiments.train_vit --registers=4 --workdir=results/vit_registers
  python -m experiments.train_vit --preset=gpu --dataset=DIRECTORY --image_size=64 --workdir=results/vit_gpu

Presets: "small" (two cores, minutes), "gpu" (ViT-S, bfloat16). --dataset is fashion_mnist (Debian's package
dataset-fashion-mnist where it is installed, otherwise from the hub), a directory with MNIST's IDX files or with two
class folders, train/ and test/, or a dataset of the hub (org/name). Other flags go over the preset.
 --image_size
is what images of folders and of the hub are cut to (28 pixels).

Stop it with SIGTERM, or kill it, and run the same command again: see experiments.train_gpt2. The moving average of the
parameters is what is evaluated, on all held-out images, and saved.

--workdir gets metrics.jsonl, census.jsonl, tensorboard/, checkpoints/, emergence.png, model/ (any --model takes it),
samples/ (held-out images, a folder a class, for any --images) and train_vit.json
(`massive_jax.report.results.TrainViT`). sink_rate of an image is the share of attention on its most attended token.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
from absl import flags

from experiments import common
from experiments.flags import images as image_flags
from experiments.flags import paths, processes, seed, training
from massive_jax.data import FASHION_MNIST, LabelledImages, load_labelled
from massive_jax.files import Path, atomic_write, remove_tree, write_json
from massive_jax.memory import keep_freed_memory
from massive_jax.models import VisionTransformer
from massive_jax.parallel import once
from massive_jax.report import as_json, plot_emergence
from massive_jax.report.results import TrainViT
from massive_jax.train import ImageTrainConfig, Trained, train_images
from massive_jax.train.presets import IMAGE_PRESETS, ImageTrainPreset, with_options
from massive_jax.weights.loader import count_params

_DATASET = paths.define("dataset", FASHION_MNIST, "The images and their classes.")
_REGISTERS = flags.DEFINE_integer("registers", 0, "Register tokens (arXiv 2309.16588).", lower_bound=0)
_PATCH = flags.DEFINE_integer("patch_size", None, "Side of a patch in pixels; None for the preset's.", lower_bound=1)
_FLIP = flags.DEFINE_bool("flip", None, "Mirrors half of the images; None for the preset's.")
_SHIFT = flags.DEFINE_integer("shift", None, "Most pixels that images are moved by; None for the preset's.", 0)
_EMA = flags.DEFINE_float("ema", None, "Decay of the average of the parameters, 0 for none; None for the preset's.")
_SAMPLES = flags.DEFINE_integer("samples", 20, "Held-out images of each class that are written.", lower_bound=0)

if __name__ == "__main__":
    for module in (common, seed, training):
        flags.adopt_module_key_flags(module)
    for name in ("workdir", "dtype", "image_size"):
        flags.declare_key_flag(name)


def given() -> dict[str, Any]:
    """The fields of an `ImageTrainConfig` that flags of this experiment name."""
    flags_of = {"flip": _FLIP, "shift": _SHIFT, "ema": _EMA}
    return {name: flag.value for name, flag in flags_of.items() if flag.value is not None}


def configure(preset: ImageTrainPreset, images: LabelledImages) -> ImageTrainConfig:
    """The training that the flags ask for."""
    dtype = training.dtype(preset.dtype)
    options = training.options({**preset.options, **given()})
    changes = {} if _PATCH.value is None else {"patch_size": _PATCH.value}
    model = preset.model(
        image_size=images.size,
        num_classes=len(images.classes),
        registers=_REGISTERS.value,
        attention_bias=training.attention_bias(),
        dtype=dtype,
        **changes,
    )
    model = with_options(model, training.model_options())
    kernel = training.kernel(dtype, model.num_tokens(*images.size))
    return ImageTrainConfig(
        model=dataclasses.replace(model, attention_kernel=kernel),
        optimizer=training.optimizer(preset.optimizer),
        data=images.checksum,
        **options,
    )


def write_samples(images: LabelledImages, directory: Path) -> None:
    """The first held-out images of each class as PNG files, a folder a class; folders sort as the head's classes do."""
    from PIL import Image

    if directory.exists():
        remove_tree(directory)
    digits = len(str(len(images.classes) - 1))
    for label, name in enumerate(images.classes):
        folder = directory / f"{label:0{digits}d} {name.replace('/', ' ')}"
        which = np.flatnonzero(images.labels == label)[: _SAMPLES.value]
        for index, pixels in zip(which, images[which], strict=True):
            with atomic_write(folder / f"{index}.png") as temporary:
                Image.fromarray(pixels).save(temporary)


def report(config: ImageTrainConfig, trained: Trained, seconds: float, workdir: Path) -> None:
    """Draws and writes what came of a training of `seconds`."""
    census, registers = training.whole_census(workdir, config.steps), config.model.registers
    result = TrainViT(
        model="ViT" + (f", {registers} registers," if registers else ""),
        preset=training.PRESET.value,
        registers=registers,
        attention_bias=training.BIAS.value,
        dataset=_DATASET.value,
        dtype=config.model.dtype,
        steps=config.steps,
        images=config.steps * config.batch,
        parameters=count_params(VisionTransformer(config.model)),
        sink="one token",
        census=census,
        last_census=census[-1],
        loss=trained.loss,
        validation_loss=trained.validation_loss,
        accuracy=trained.validation["accuracy"],
        seconds=seconds,
    )
    plot_emergence(result, workdir / "emergence.png")
    write_json(workdir / "train_vit.json", as_json(result))


def main() -> None:
    """Runs the experiment."""
    keep_freed_memory()
    preset = training.preset(IMAGE_PRESETS)
    training.check(preset.optimizer, {**preset.options, **given()})  # wrong flags are told before anything is read
    workdir = common.workdir(shared=True)
    images, held_out = load_labelled(_DATASET.value, image_flags.IMAGE_SIZE.value)
    config = configure(preset, images)
    processes.say(
        f"{count_params(VisionTransformer(config.model)):,} parameters, {config.model.num_tokens(*images.size)} tokens "
        f"an image; {len(images):,} images of {len(images.classes)} classes to train on, {len(held_out):,} held out"
    )
    started = time.monotonic()
    with training.preemptible():
        trained = train_images(config, images, held_out, workdir, say=processes.say)
    seconds = time.monotonic() - started

    def write() -> None:
        write_samples(held_out, workdir / "samples")
        report(config, trained, seconds, workdir)

    once(write, "write what came of the training")
    processes.say(
        f"accuracy {100 * trained.validation['accuracy']:.2f} % on {len(held_out):,} held-out images after "
        f"{seconds:.0f} s; the model is in {trained.directory}"
    )


if __name__ == "__main__":
    common.run_experiment(main)
