"""Models side by side: what an attention bias does to massive activations, attention sinks and quantisation.

  python -m experiments.compare_bias --models=results/none/model,results/kv/model --text=FILE --workdir=results

For variants that experiments.train_gpt2 trained (paper, section 5), or any language models. Give a text that they were
not trained on; windows are cut with each model's own tokenizer, so perplexities of models with different tokenizers do
not compare. Prints a line a model and writes compare_bias.json: text, windows, context, models: [{model,
attention_bias, loss (nats a token), perplexity, int8_per_tensor (perplexity), largest, sink_rate (of the layer where it
is largest), layers: [{layer, largest, median, sink_rate, slot_rate}]}]; and compare_bias.png.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import model as model_flags
from experiments.flags import text as text_flags
from massive_jax.data import load_text
from massive_jax.evaluate import Profile, measure_profile
from massive_jax.evaluate.profile import PASSES
from massive_jax.report import number, plot_profiles, write_json

_MODELS = flags.DEFINE_list("models", [], "Two models or more: directories, zoo names, files.")
flags.register_validator(_MODELS, lambda models: len(models) != 1, "give two models or more, MODEL,MODEL.")

if __name__ == "__main__":
    for module in (common, text_flags):
        flags.adopt_module_key_flags(module)
    for name in ("dtype", "bos", "workdir"):
        flags.declare_key_flag(name)


def record(model: mj.Model, profile: Profile) -> dict[str, Any]:
    """What compare_bias.json holds of a model."""
    bias = model.require_language().attention_bias
    return {
        "model": model.name,
        "attention_bias": None if bias is None else dataclasses.asdict(bias),
        "loss": math.log(profile.perplexity),
        "perplexity": profile.perplexity,
        "int8_per_tensor": profile.quantized_perplexity,
        "largest": float(profile.largest.max()),
        "sink_rate": float(profile.sink_rate.max()),
        "layers": profile.layers(),
    }


def names_of(models: list[mj.Model]) -> list[str]:
    """What tells the models apart: their biases where each has another, else their names."""
    kinds = ["no bias" if (bias := m.require_language().attention_bias) is None else bias.kind for m in models]
    return kinds if len(set(kinds)) == len(models) else [pathlib.Path(m.name).name for m in models]


def main() -> None:
    """Runs the binary."""
    if not _MODELS.value:
        raise ValueError("--models is empty; give two models or more, MODEL,MODEL.")
    out, content = common.workdir(), load_text(text_flags.name())
    models = [mj.load(name, dtype=model_flags.DTYPE.value) for name in _MODELS.value]
    cut = [common.windows(model, content, least=2) for model in models]
    with common.progress(sum(w.tokens.size for w in cut) * PASSES, "measuring") as progress:
        profiles = [measure_profile(model, w, progress=progress) for model, w in zip(models, cut, strict=True)]
    records = [record(model, profile) for model, profile in zip(models, profiles, strict=True)]
    names = names_of(models)
    result = {
        "text": text_flags.name(),
        "windows": len(cut[0].tokens),
        "context": cut[0].context,
        "models": records,
    }
    write_json(out / "compare_bias.json", result)
    pairs = list(zip(names, records, strict=True))
    figure = {
        "title": "Largest activation: " + ", ".join(f"{name} {number(r['largest'], 3)}" for name, r in pairs),
        "conditions": f"{models[0].config.dtype} · {len(cut[0].tokens)} windows of {cut[0].context} tokens · loss: "
        + ", ".join(f"{name} {r['loss']:.3f}" for name, r in pairs),
        "models": [{"name": n, **dataclasses.asdict(p)} for n, p in zip(names, profiles, strict=True)],
    }
    plot_profiles(figure, out / "compare_bias.png")
    keys = ("loss", "perplexity", "int8_per_tensor", "largest", "sink_rate")
    rows = [(name, *(r[key] for key in keys)) for name, r in pairs]
    common.print_table(("model", "loss", "perplexity", "int8 perplexity", "largest activation", "sink rate"), rows)
    print(f"wrote {out / 'compare_bias.json'} and .png")


if __name__ == "__main__":
    common.run_experiment(main)
