"""The paper's comparison (section 5): one training without a remedy, with a sink token, with an extra key and value.

All three begin with the same seed and see the same batches. They take turns, so that whenever it ends there are as many
steps of each.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device.ceilings import matmul_seconds
from benchmarks.device.record import Context
from massive_jax.analysis import sink_and_spike
from massive_jax.data.backcopy import multicopy_text
from massive_jax.train import OptimizerConfig, TokenFile, TrainConfig, adopt, variants_named
from massive_jax.train.language import NextTokenTask
from massive_jax.train.metrics import flops_per_token
from massive_jax.train.presets import PRESETS, TrainPreset
from massive_jax.weights.loader import count_params

_VARIANTS = ("none", "sink_token", "kv")
_FIRST = 10  # steps, the last eight timed, before a size is settled
_STAGES = 8  # from there to the end, a census after each
_OF_CEILING = 0.5  # of the rate of a large product no training step has come to more
_MARGIN = 1.1  # a step takes longer now and then


def _gpt2(layers: int, heads: int, width: int, context: int, batch: int, rate: float) -> TrainPreset:
    """GPT-2 as the paper trains it, by small steps, and a decay strong for its rate: see docs/emergence.md."""
    shape = {"n_layer": layers, "n_head": heads, "n_embd": width, "block_size": context, "bias": False}
    recipe = OptimizerConfig(rate, rate / 10, warmup_steps=200, decay_steps=6000, weight_decay=0.5)
    return TrainPreset(shape, recipe, "bfloat16", {"steps": 6000, "batch": batch, "context": context, "unroll": layers})


# Largest first, parameters with a token a byte; their vocabulary is the token file's.
SIZES: Mapping[str, TrainPreset] = {
    "gpt2_medium": _gpt2(24, 16, 1024, 1024, 8, 6e-4),  # 303M
    "gpt2": _gpt2(12, 12, 768, 1024, 8, 1e-3),  # 86M
    "gpt2_mini": _gpt2(8, 8, 256, 256, 16, 2e-3),  # 6.4M
    "emergence": PRESETS["emergence"],  # 0.2M
}
_TOY = TrainPreset(
    {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": False},
    OptimizerConfig(1e-2, 1e-3, warmup_steps=2, decay_steps=20),
    "float32",
    {"steps": 20, "batch": 4, "context": 16, "eval_batches": 1},
)


@dataclasses.dataclass
class Training:
    """Holds one of the trainings.

    Attributes:
      name: of the variant.
      task: what is trained, on what.
      compiled: its step.
      state: after `done` steps.
      done: steps that it has taken.
      seconds: of a step, when it last took some.
      loss: mean of those steps, each before it.
    """

    name: str
    task: NextTokenTask
    compiled: jax.stages.Compiled
    state: Any
    done: int = 0
    seconds: float = math.nan
    loss: float = math.nan

    def advance(self, until: int) -> None:
        """Trains up to step `until`; does nothing where it has come there."""
        losses: list[Any] = []
        started = time.perf_counter()
        while self.done < until:
            micro = self.task.trainer.micro_batches(self.task.batch(self.done))
            self.state, metrics = self.compiled(self.state, micro)
            self.done += 1
            losses.append(metrics["loss"])
            if len(losses) % 20 == 0:
                jax.block_until_ready(losses[-1])
        if losses:
            self.loss = float(np.mean(jax.device_get(losses)))
            self.seconds = (time.perf_counter() - started) / len(losses)


def compare(context: Context) -> None:
    """Trains them at the largest size that the time allows, and writes a row of each after every stage."""
    trainings = _start(context, {"toy": _TOY} if context.small else SIZES, _tokens(context))
    steps, until = trainings[0].task.config.steps, _FIRST
    while until:
        looking = 0.0
        for training in list(trainings):
            training.advance(until)
            began = time.perf_counter()
            if not _add(context, training):
                trainings.remove(training)  # its numbers are no longer finite
            looking += time.perf_counter() - began
        if not trainings:
            return
        until = next_stage(until, steps, sum(it.seconds for it in trainings), context.seconds_left - looking)


def next_stage(done: int, steps: int, seconds_a_step: float, seconds: float) -> int:
    """Says up to which step to train next; 0 for no further.

    Args:
      done: steps taken.
      steps: of the whole training.
      seconds_a_step: of all trainings together.
      seconds: left for steps.
    """
    length = max(1, math.ceil((steps - _FIRST) / _STAGES))
    ends = min(steps, _FIRST + ((done - _FIRST) // length + 1) * length)
    ends = min(ends, done + max(0, int(seconds / (_MARGIN * seconds_a_step))))
    return ends if ends > done else 0


def _tokens(context: Context) -> TokenFile:
    """The token file that was given, or one of a made-up language, a byte each."""
    if context.data is not None:
        return TokenFile.open(context.data)
    length = 20_000 if context.small else 1_000_000 if jax.default_backend() == "cpu" else 4_000_000
    path = context.out / "multicopy.bin"
    np.frombuffer(multicopy_text(length).encode(), np.uint8).astype("<u2").tofile(path)
    return adopt(path, vocab_size=256, tokenizer_name="bytes")


def config_of(preset: TrainPreset, file: TokenFile) -> TrainConfig:
    """Gives the training of a size on a token file, on this machine: its start token is one that the file has not."""
    vocabulary = 64 * (file.vocab_size // 64 + 1)
    platform = jax.default_backend()
    dtype = "float32" if platform == "cpu" else preset.dtype
    kernel: Any = {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla") if dtype == "bfloat16" else "xla"
    sized = dataclasses.replace(preset, shape={**preset.shape, "vocab_size": vocabulary})
    return TrainConfig(
        model=sized.model(attention_bias=None, dtype=dtype, kernel=kernel),
        optimizer=preset.optimizer,
        data=file.sha256,
        **{**preset.options, "bos": file.vocab_size},
    )


def _start(context: Context, sizes: Mapping[str, TrainPreset], file: TokenFile) -> list[Training]:
    """The trainings of the largest size whose steps fit into the time, after their first; else of the smallest."""
    n = 1024 if jax.default_backend() == "cpu" else 8192
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    ceiling = 2 * n**3 / matmul_seconds(n, n, n, dtype, dtype)
    smallest = list(sizes)[-1]
    for size, preset in sizes.items():
        config = config_of(preset, file)
        tokens = config.batch * config.context
        flops = len(_VARIANTS) * config.steps * tokens * flops_per_token(config.model, config.context)
        least = flops / (_OF_CEILING * ceiling)
        if least > context.seconds_left and size != smallest:
            context.add(size, left_out=f"at least {least:,.0f} s, and {context.seconds_left:,.0f} s are left")
            continue
        try:
            trainings = _begun(config, file)
        except Exception as error:  # of a compiler or the device: any type
            if size == smallest:
                raise
            context.add(size, left_out=f"{type(error).__name__}: {error}".splitlines()[0][:300])
            continue
        a_step = sum(it.seconds for it in trainings)
        takes = _MARGIN * config.steps * a_step
        if takes > context.seconds_left and size != smallest:
            context.add(size, left_out=f"{takes:,.0f} s, and {context.seconds_left:,.0f} s are left")
            del trainings
            continue
        context.add(
            size,
            parameters=count_params(trainings[0].task.trainer.module),
            tokens_per_second=len(trainings) * tokens / a_step,
            text=file.text,
            planned_steps=config.steps,
            config=config.described(),
        )
        return trainings
    raise AssertionError("the smallest size is always taken")


def _begun(config: TrainConfig, file: TokenFile) -> list[Training]:
    """The trainings after their first steps, which are timed; the programs are compiled at the same time."""
    tasks = {name: NextTokenTask(it.of(config), file) for name, it in variants_named(_VARIANTS).items()}
    lowered = [it.trainer.lower(it.trainer.abstract(), it.batch(0)) for it in tasks.values()]
    with concurrent.futures.ThreadPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as pool:
        programs = list(pool.map(lambda it: it.compile(), lowered))
    trainings = [
        Training(name, task, program, task.trainer.init(config.seed))
        for (name, task), program in zip(tasks.items(), programs, strict=True)
    ]
    for until in (2, _FIRST):
        for training in trainings:
            training.advance(until)
    return trainings


def _add(context: Context, training: Training) -> bool:
    """Writes where a training is; whether its loss is a number."""
    config, params = training.task.config, training.state.evaluated
    tokens = config.batch * config.context
    about = {
        "steps": training.done,
        "tokens": training.done * tokens,
        "tokens_per_second": tokens / training.seconds,
        "train_loss": training.loss,
    }
    held_out = training.task.validate(params)["validation_loss"]
    if not math.isfinite(held_out):
        context.add(training.name, **about, failed=f"its loss is {held_out}")
        return False
    layers = training.task.census(params)
    context.add(training.name, **about, loss=held_out, **dataclasses.asdict(sink_and_spike(layers)), census=layers)
    return True
