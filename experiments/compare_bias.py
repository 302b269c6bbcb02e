"""Models side by side: what an attention bias, or registers, do to massive activations, sinks and quantisation.

  python -m experiments.compare_bias --models=results/none/model,results/kv/model --text=FILE --workdir=results
  python -m experiments.compare_bias --models=results/vit/model,results/vit_registers/model --images=DIRECTORY

For variants that experiments.train_gpt2 or train_vit trained (paper, section 5), or any models of one kind. Give a
text, or images, that they were not trained on. Windows are cut with each model's own tokenizer, so perplexities of
models with different tokenizers do not compare. Images in class folders are judged by top-1 accuracy, others by the
cosine similarity of their quantised features to the unquantised ones; all of them are read unless --num_images says
less.

Prints a line a model and writes compare_bias.json (`massive_jax.report.results.Comparison`) and compare_bias.png. The
sink is position 0, of an image its most attended token. With images also compare_attention.png: the class token's
attention over the first image, in the last block of each model that has one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import images as image_flags
from experiments.flags import models as models_flag
from experiments.flags import text as text_flags
from massive_jax.data import load_text, text_name
from massive_jax.evaluate import (
    Profile,
    check_classes,
    measure_image_profile,
    measure_profile,
    names_of,
    patch_maps,
    registers_of,
)
from massive_jax.evaluate.profile import PASSES
from massive_jax.files import Path, write_json
from massive_jax.report import Panel, as_json, number, plot_overlay, plot_profiles, precision
from massive_jax.report.results import ComparedModel, Comparison, Named, Numbers, Profiles

if __name__ == "__main__":
    for module in (common, models_flag, text_flags, image_flags):
        flags.adopt_module_key_flags(module)
    for name in ("dtype", "bos", "workdir"):
        flags.declare_key_flag(name)


def compared(model: mj.Model, profile: Profile) -> ComparedModel:
    """What compare_bias.json holds of a model."""
    bias = model.config.attention_bias
    return ComparedModel(
        model=model.name,
        weights=common.stored_as(model),
        attention_bias=None if bias is None else dataclasses.asdict(bias),
        registers=registers_of(model),
        loss=math.log(profile.original) if profile.metric == "perplexity" else None,
        int8_per_tensor=profile.quantized,
        largest=float(profile.largest.max()),
        sink_rate=float(profile.sink_rate.max()),
        layers=common.profile_layers(profile),
        **{profile.metric: profile.original},
    )


def weights_of(models: list[mj.Model]) -> str | None:
    """What their weights were stored as, in words; None where that is not known."""
    return " and ".join(dict.fromkeys(filter(None, map(common.stored_as, models)))) or None


def measure_texts(models: list[mj.Model]) -> tuple[dict[str, Any], str, list[Profile]]:
    """The header of the result, the conditions in words, and each model's profile on the text."""
    content = load_text(text_flags.name())
    cut = [common.windows(model, content, least=2) for model in models]
    with common.progress(sum(w.tokens.size for w in cut) * PASSES, "measuring") as progress:
        profiles = [measure_profile(model, w, progress=progress) for model, w in zip(models, cut, strict=True)]
    header = {"text": text_name(text_flags.name()), "windows": len(cut[0].tokens), "context": cut[0].context}
    return header, f"{header['windows']} windows of {header['context']} tokens", profiles


def measure_images(models: list[mj.Model]) -> tuple[dict[str, Any], str, list[Profile]]:
    """The same on the images."""
    files = common.image_files(models[0])
    labelled = files.labels is not None and all(mj.ImageModel.of(m).config.num_classes for m in models)
    if labelled:
        for model in models:
            check_classes(model, files)
    with common.progress(len(files) * PASSES * len(models), "measuring", "img") as progress:
        profiles = [
            measure_image_profile(m, common.image_source(m, files), files.labels if labelled else None, progress)
            for m in models
        ]
    header = {"images": str(image_flags.IMAGES.value), "count": len(files)}
    return header, f"{len(files)} images", profiles


def draw_attention(models: list[mj.Model], names: list[str], path: Path) -> bool:
    """Draws the attention maps of the first image; False where no model has any, or their patches differ."""
    files = common.image_files(models[0]).first(1)
    panels, grids = [Panel("The image")], set()
    for model, name in zip(models, names, strict=True):
        _, image = next(iter(common.image_source(model, files)()))
        grids.add(mj.ImageModel.of(model).config.grid(*image.shape[1:3]))
        _, attention = patch_maps(model, image, model.config.num_layers)
        if attention is not None:
            panels.append(Panel(name, attention, "attention"))
    if len(panels) == 1 or len(grids) > 1:
        return False
    plot_overlay(
        Named(model=", ".join(model.title for model in models)),
        "Attention of the class token in the last block",
        "mean over heads, all on one scale",
        mj.ImageModel.of(models[-1]).pixels(image)[0],
        grids.pop(),
        panels,
        path,
    )
    return True


def main() -> None:
    """Runs the binary."""
    if len(models_flag.MODELS.value) < 2:
        raise ValueError(f"--models={','.join(models_flag.MODELS.value)}: give two models or more, MODEL,MODEL.")
    common.check_inputs()
    out = common.workdir()
    models = [common.load_model(name) for name in models_flag.MODELS.value]
    vision = [common.takes_images(model) for model in models]
    if len(set(vision)) > 1:
        raise ValueError("--models has language and vision models; compare those of one kind.")
    header, conditions, profiles = (measure_images if vision[0] else measure_texts)(models)
    found = [compared(model, profile) for model, profile in zip(models, profiles, strict=True)]
    names, metric = names_of(models), profiles[0].metric
    shown = "loss" if metric == "perplexity" else metric
    write_json(out / "compare_bias.json", as_json(Comparison(**header, models=tuple(found))))
    pairs = list(zip(names, found, strict=True))
    dtype = precision(Numbers(dtype=models[0].config.dtype, weights=weights_of(models)))
    figure = Profiles(
        title="Largest activation: " + ", ".join(f"{name} {number(of.largest, 3)}" for name, of in pairs),
        conditions=f"{dtype} · {conditions} · {_words(shown)}: "
        + ", ".join(f"{name} {getattr(of, shown):.3f}" for name, of in pairs),
        sink="one token" if vision[0] else "position 0",
        models=tuple(common.profile_curves(name, p) for name, p in zip(names, profiles, strict=True)),
    )
    plot_profiles(figure, out / "compare_bias.png")
    keys = [*dict.fromkeys((shown, metric)), "int8_per_tensor", "largest", "sink_rate"]
    rows = [(name, *(getattr(of, key) for key in keys)) for name, of in pairs]
    words = [*(_words(key) for key in keys[:-3]), f"int8 {_words(metric)}", "largest activation", "sink rate"]
    common.print_table(("model", *words), rows)
    drawn = vision[0] and draw_attention(models, names, out / "compare_attention.png")
    print(f"wrote {out / 'compare_bias.json'} and .png{', and compare_attention.png' if drawn else ''}")


def _words(key: str) -> str:
    return {"top1": "top-1"}.get(key, key.replace("_", " "))


if __name__ == "__main__":
    common.run_experiment(main)
