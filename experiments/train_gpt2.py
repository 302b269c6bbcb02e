"""Trains GPT-2 from scratch, with an explicit attention bias or without (paper, section 5).

  python -m experiments.train_gpt2 --preset=small --attention_bias=none --workdir=results/gpt2_none
  python -m experiments.train_gpt2 --preset=small --attention_bias=kv --workdir=results/gpt2_kv
  python -m experiments.train_gpt2 --preset=paper --data=openwebtext/train.bin --attention_bias=kv --workdir=…

Presets: "paper" (124M, 50,000 steps of 491,520 tokens, as the paper trains it), "gpu" (the same model, 10,000 steps of
65,536 tokens), "small" (0.8M, bytes of English prose that CPython ships; two cores). --data is a token file that
experiments.prepare_data made, or a text as it takes, whose bytes are then the tokens. Other flags go over the preset.

Stop it with SIGTERM, or kill it, and run the same command again: it goes on from its last checkpoint (a SIGTERM writes
one), and every step has the loss it would have had, to the last bit, on as many devices. Another config is refused.

--workdir gets metrics.jsonl (a line a step), census.jsonl (each layer's largest activations, median, kurtosis, share of
attention on position 0 and on the bias's slots, every --census_every steps), tensorboard/, checkpoints/, emergence.png,
model/ (any --model takes it) and train_gpt2.json: preset, attention_bias, text, tokenizer, dtype, steps, tokens,
parameters, loss, validation_loss, unigram_entropy, census (the last).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from typing import Any

import jax
from absl import flags

from experiments import common
from experiments.flags import model, seed, text
from experiments.prepare_data import prepare
from massive_jax.models import AttentionBias, LanguageModel
from massive_jax.models.config import ATTENTION_BIASES
from massive_jax.models.stack import REMAT
from massive_jax.report import number, plot_emergence, write_json
from massive_jax.train import Preempted, TokenFile, TrainConfig, read_lines, train
from massive_jax.train.presets import PRESETS, TrainPreset
from massive_jax.weights.loader import count_params

_PRESET = flags.DEFINE_enum("preset", "small", list(PRESETS), "The training.")
_BIAS = flags.DEFINE_enum("attention_bias", "none", ["none", *ATTENTION_BIASES], "Explicit attention bias.")
_SLOTS = flags.DEFINE_integer("slots", 1, "Slots of the bias, for the kinds that have them.", lower_bound=1)
_DATA = flags.DEFINE_string("data", None, "A token file, or a text whose bytes are the tokens; None for the preset's.")
_REMAT = flags.DEFINE_enum("remat", "none", list(REMAT), "What of a block the backward pass computes again.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "At the end of the warm-up; the final one is a tenth.")
_VERIFY = flags.DEFINE_bool("verify_data", True, "Reads the token file whole at the start, to compare its checksum.")
_MESH = flags.DEFINE_list("mesh", ["1", "1"], "Devices: DATA,MODEL (see massive_jax.parallel).")
_INTEGERS = {
    name: flags.DEFINE_integer(name, None, f"{meaning}; None for the preset's.", lower_bound=least)
    for name, meaning, least in (
        ("steps", "When to end", 1),
        ("batch", "Sequences of a step", 1),
        ("accumulate", "Micro-batches of a step", 1),
        ("log_every", "Steps between lines on the terminal", 1),
        ("eval_every", "Steps between validations, 0 for the end only", 0),
        ("census_every", "Steps between censuses, 0 for the end only", 0),
        ("checkpoint_every", "Steps between checkpoints, 0 for the end only", 0),
        ("keep", "Checkpoints to keep", 1),
    )
}

if __name__ == "__main__":
    for module in (common, seed):
        flags.adopt_module_key_flags(module)
    for name in ("workdir", "dtype", "context"):
        flags.declare_key_flag(name)


def attention_bias() -> AttentionBias | None:
    """The bias that the flags ask for."""
    return None if _BIAS.value == "none" else AttentionBias(_BIAS.value, slots=_SLOTS.value)


def mesh() -> tuple[int, int]:
    """The mesh that the flags ask for; ValueError where it is none."""
    if len(_MESH.value) != 2 or not all(part.strip().isdecimal() for part in _MESH.value):
        raise ValueError(f"--mesh={','.join(_MESH.value)}: give two numbers of devices, DATA,MODEL, such as 8,1.")
    return int(_MESH.value[0]), int(_MESH.value[1])


def open_data(preset: TrainPreset, workdir: pathlib.Path) -> TokenFile:
    """The token file to train on; made where a text was asked for."""
    name = _DATA.value or preset.text
    if name is None:
        raise ValueError(
            f"--preset={_PRESET.value} needs --data: a token file that experiments.prepare_data made (the paper's is "
            "OpenWebText in GPT-2's tokens)."
        )
    if name.endswith(".bin"):
        return TokenFile.open(name, verify=_VERIFY.value)
    return prepare(name, "bytes", workdir / "data" / "text.bin")


def configure(preset: TrainPreset, file: TokenFile) -> TrainConfig:
    """The training that the flags ask for."""
    dtype = model.DTYPE.value if flags.FLAGS["dtype"].present else preset.dtype
    kernel = "cudnn" if jax.default_backend() == "gpu" and dtype != "float32" else "xla"
    optimizer = preset.optimizer
    if _LEARNING_RATE.value is not None:
        rate = _LEARNING_RATE.value
        optimizer = dataclasses.replace(optimizer, learning_rate=rate, final_learning_rate=rate / 10)
    given = {name: flag.value for name, flag in _INTEGERS.items() if flag.value is not None}
    options = {**preset.options, **given, "remat": _REMAT.value, "mesh": mesh(), "seed": seed.SEED.value}
    if text.CONTEXT.value is not None:
        options["context"] = text.CONTEXT.value
    return TrainConfig(
        model=preset.model(attention_bias=attention_bias(), dtype=dtype, kernel=kernel),
        optimizer=optimizer,
        data=file.sha256,
        **options,
    )


def summarise(config: TrainConfig, file: TokenFile, workdir: pathlib.Path) -> dict[str, Any]:
    """What train_gpt2.json says of a training before its results."""
    return {
        "preset": _PRESET.value,
        "attention_bias": _BIAS.value,
        "text": file.text,
        "tokenizer": file.tokenizer_name,
        "dtype": config.model.dtype,
        "steps": config.steps,
        "tokens": config.steps * config.batch * config.context,
        "parameters": count_params(LanguageModel(config.model)),
        "census": read_lines(workdir / "census.jsonl"),
    }


def main() -> None:
    """Runs the experiment."""
    preset, workdir = PRESETS[_PRESET.value], common.workdir()
    attention_bias(), mesh()  # wrong flags are told before anything is made
    file = open_data(preset, workdir)
    config = configure(preset, file)
    parts = file.split(config.validation, config.context)
    print(
        f"{count_params(LanguageModel(config.model)):,} parameters, {len(parts[0]):,} tokens to train on; "
        f"unigram entropy of the held-out text {number(file.unigram_entropy(parts[1]))} nats",
        flush=True,
    )
    try:
        trained = train(config, file, workdir, say=lambda line: print(line, flush=True))
    except Preempted as stopped:
        print(stopped)
        sys.exit(143)
    result = summarise(config, file, workdir)
    plot_emergence(result, workdir / "emergence.png")
    write_json(
        workdir / "train_gpt2.json",
        {
            **result,
            "census": result["census"][-1],
            "loss": trained.loss,
            "validation_loss": trained.validation_loss,
            "unigram_entropy": trained.unigram_entropy,
        },
    )
    print(
        f"validation loss {trained.validation_loss:.4f} (perplexity {number(math.exp(trained.validation_loss))}), "
        f"unigram entropy {trained.unigram_entropy:.4f}; the model is in {trained.directory}"
    )


if __name__ == "__main__":
    common.run_experiment(main)
