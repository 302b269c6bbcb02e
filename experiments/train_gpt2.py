"""Trains GPT-2 from scratch, with an explicit attention bias or without (paper, section 5).

  python -m experiments.train_gpt2 --preset=small --attention_bias=none --workdir=results/gpt2_none
  python -m experiments.train_gpt2 --preset=small --attention_bias=kv --workdir=results/gpt2_kv
  python -m experiments.train_gpt2 --preset=paper --data=openwebtext/train.bin --attention_bias=kv --workdir=…

Presets: "paper" (124M, 50,000 steps of 491,520 tokens, as the paper trains it), "gpu" (the same model, 10,000 steps of
65,536 tokens), "small" (0.8M, bytes of English prose that CPython ships: 5 to 10 minutes on 2 cores, to a validation
loss, on the whole reference as the text was before, of 1.42 nats without a bias, 1.42 with sink_token, 1.48 with kv),
"backcopy" (0.2M, a made-up language in which a head has something to copy at few tokens only: 2 to 4 minutes on 2
cores, to a loss of 2.06 nats with kv and without; without it 66 % of block 1's attention falls on position 0, with it
1 %, and 85 % on the slot), "emergence" (0.2M, a language that several heads must share: 3 to 5 minutes on 2 cores, to
massive activations on the start token; docs/emergence.md).
--data is a token file that experiments.prepare_data made, or a text as it takes, whose bytes are then the tokens. Other
flags go over the preset.

Stop it with SIGTERM, or kill it, and run the same command again: it goes on from its last checkpoint (a SIGTERM writes
one), and every step has the loss it would have had, to the last bit, on as many devices. Another config is refused.

On several hosts run it on each, with --distributed (a TPU pod, Slurm) or --coordinator, --num_processes, --process_id,
a --mesh of all their devices, and a --workdir that all see. A SIGTERM to any stops all after the same step.

--workdir gets metrics.jsonl (a line a step), census.jsonl (each layer's largest activations, median, kurtosis, share of
attention on position 0 and on the bias's slots, every --census_every steps), tensorboard/, checkpoints/, emergence.png,
model/ (any --model takes it) and train_gpt2.json (`massive_jax.report.results.TrainGPT2`).
"""

from __future__ import annotations

import dataclasses
import math

from absl import flags

from experiments import common
from experiments.flags import paths, processes, seed, text, training
from experiments.token_files import BYTES, prepare
from massive_jax.data import load_text
from massive_jax.files import Path, write_json
from massive_jax.memory import keep_freed_memory
from massive_jax.models import LanguageModel
from massive_jax.parallel import once
from massive_jax.report import as_json, number, plot_emergence
from massive_jax.report.results import TrainGPT2
from massive_jax.train import TokenFile, TrainConfig, Trained, train
from massive_jax.train.data import split_tokens
from massive_jax.train.presets import PRESETS, TrainPreset
from massive_jax.weights.loader import count_params

_DATA = paths.define("data", None, "A token file, or a text whose bytes are the tokens; None for the preset's.")
_BOS = flags.DEFINE_integer(
    "bos_token", None, "A token to begin every sequence with (50256 for GPT-2's); None for the preset's.", lower_bound=0
)
_EMBEDDING_SCALE = flags.DEFINE_float("embedding_scale", None, "Multiplies the embedding; None for the preset's.")
_VERIFY = flags.DEFINE_bool("verify_data", True, "Reads the token file whole at the start, to compare its checksum.")

if __name__ == "__main__":
    for module in (common, seed, training):
        flags.adopt_module_key_flags(module)
    for name in ("workdir", "dtype", "context"):
        flags.declare_key_flag(name)


def data_name(preset: TrainPreset) -> str:
    """What to train on; ValueError where nothing says so, or --verify_data is given and it is no token file."""
    name = preset.text if _DATA.value is None else _DATA.value
    if not name:
        raise ValueError(
            f"--preset={training.PRESET.value} needs --data: a token file that experiments.prepare_data made (the "
            "paper's is OpenWebText in GPT-2's tokens)."
        )
    if not name.endswith(".bin"):
        common.without_effect(("verify_data",), f"with the text {name!r}; token files end in .bin")
    return name


def open_data(name: str, workdir: Path, config: TrainConfig) -> TokenFile:
    """The token file to train on; made where a text was asked for. ValueError where it is too short for `config`."""
    if name.endswith(".bin"):
        return TokenFile.open(name, verify=_VERIFY.value)
    out = workdir / "data" / "text.bin"

    def make() -> TokenFile:
        words = load_text(name)
        split_tokens(len(words.encode("utf-8", "surrogatepass")), config.validation, config.context, name)
        return prepare(name, BYTES, out, words)

    return once(make, "prepare the text") or TokenFile.open(out)


def configure(preset: TrainPreset, platform: str | None = None) -> TrainConfig:
    """The training that the flags ask for, on data that is not known yet; `platform`: see `training.kernel`."""
    dtype = training.dtype(preset.dtype)
    options = training.options(preset.options)
    if text.CONTEXT.value is not None:
        options["context"] = text.CONTEXT.value
    if _BOS.value is not None:
        options["bos"] = _BOS.value
    kernel = training.kernel(dtype, options["context"], platform)
    bias, changes = training.attention_bias(), training.model_options()
    if _EMBEDDING_SCALE.value is not None:
        changes["embedding_scale"] = _EMBEDDING_SCALE.value
    return TrainConfig(
        model=preset.model(attention_bias=bias, dtype=dtype, kernel=kernel, **changes),
        optimizer=training.optimizer(preset.optimizer),
        data="",
        **options,
    )


def report(config: TrainConfig, file: TokenFile, trained: Trained, unigram_entropy: float, workdir: Path) -> None:
    """Draws and writes what came of a training."""
    census = training.whole_census(workdir, config.steps)
    result = TrainGPT2(
        model=PRESETS[training.PRESET.value].name,
        preset=training.PRESET.value,
        attention_bias=training.BIAS.value,
        text=file.text,
        tokenizer=file.tokenizer_name,
        dtype=config.model.dtype,
        steps=config.steps,
        tokens=config.steps * config.batch * config.context,
        parameters=count_params(LanguageModel(config.model)),
        census=census,
        last_census=census[-1],
        loss=trained.loss,
        validation_loss=trained.validation_loss,
        unigram_entropy=unigram_entropy,
    )
    plot_emergence(result, workdir / "emergence.png")
    write_json(workdir / "train_gpt2.json", as_json(result))


def main() -> None:
    """Runs the experiment."""
    keep_freed_memory()
    preset = training.preset(PRESETS)
    name = data_name(preset)
    training.check(preset.optimizer, preset.options)  # wrong flags are told before anything is made
    config = configure(preset)
    workdir = common.workdir(shared=True)
    file = open_data(name, workdir, config)
    config = dataclasses.replace(config, data=file.sha256)
    parts = file.split(config.validation, config.context)
    unigram_entropy = file.unigram_entropy(parts[1])
    processes.say(
        f"{count_params(LanguageModel(config.model)):,} parameters, {len(parts[0]):,} tokens to train on; "
        f"unigram entropy of the held-out text {number(unigram_entropy)} nats"
    )
    with training.preemptible():
        trained = train(config, file, workdir, say=processes.say)
    once(
        lambda: report(config, file, trained, unigram_entropy, workdir),
        "write what came of the training",
    )
    processes.say(
        f"validation loss {trained.validation_loss:.4f} (perplexity {number(math.exp(trained.validation_loss))}), "
        f"unigram entropy {unigram_entropy:.4f}; the model is in {trained.directory}"
    )


if __name__ == "__main__":
    common.run_experiment(main)
