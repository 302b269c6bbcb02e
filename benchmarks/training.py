"""Training steps to be timed: one shape, and the ways to do the same step on it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from massive_jax.models import AttentionBias, LanguageModel
from massive_jax.models.kernels import KERNELS, AttentionKernel
from massive_jax.train import NextToken, OptimizerConfig, Trainer
from massive_jax.train.presets import TrainPreset

RECIPE = OptimizerConfig(warmup_steps=0)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a GPT-2 and of a step's batch."""

    layers: int = 12
    heads: int = 12
    width: int = 768
    vocabulary: int = 50304
    context: int = 1024
    batch: int = 16

    @property
    def tokens(self) -> int:
        """Counts the tokens of a step."""
        return self.batch * self.context

    def random_tokens(self) -> np.ndarray:
        """Gives a batch, int32 [B, T + 1]."""
        shape = (self.batch, self.context + 1)
        return np.random.default_rng(0).integers(0, self.vocabulary, shape).astype(np.int32)


_SLOTS: dict[str, Literal["in front", "merged"]] = {"front": "in front", "merged": "merged"}
_TRACING = threading.Lock()  # held by who changes the table of kernels, until a program is made of it


@contextlib.contextmanager
def slots_placed(where: Literal["in front", "merged"]) -> Iterator[None]:
    """Has all kernels take slots that have keys in one way, in programs that are traced meanwhile."""
    before = dict(KERNELS)
    KERNELS.update({name: dataclasses.replace(kernel, slots=where) for name, kernel in before.items()})
    try:
        yield
    finally:
        KERNELS.update(before)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do the step; the numbers are the same up to rounding, but for an attention bias.

    Attributes:
      unroll, remat: see `massive_jax.models.LanguageModel`; 0 unrolls all blocks.
      chunk, rounded: see `massive_jax.models.loss.mean_nll`; 0 for all tokens at once.
      bias: kind of the attention bias, or "none".
      dtype: of the activations; "" for bfloat16 on a GPU or TPU, float32 on CPU.
      kernel: of the attention; "" for "cudnn" on a GPU, "splash" on a TPU, "xla" on CPU.
      slots: of the attention bias, "front" or "merged": see `massive_jax.models.kernels.Kernel`; "" for the table's.
      xla: options of the compiler that are true or false, as "name:false+other:true".
    """

    unroll: int = 1
    remat: str = "none"
    chunk: int | None = None
    rounded: bool = False
    bias: str = "none"
    dtype: str = ""
    kernel: AttentionKernel | str = ""
    slots: str = ""
    xla: str = ""

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Reads "unroll=4 remat=cheap"; what is not given is as by default.

        Raises:
          ValueError: a name that is no field, or a value of another type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for word in text.split():
            name, equals, value = word.partition("=")
            if name not in fields or not equals:
                raise ValueError(f"variant {text!r}: {word!r} is not NAME=VALUE with a name of {', '.join(fields)}.")
            if name in ("unroll", "chunk"):
                if not value.isdecimal():
                    raise ValueError(f"variant {text!r}: {name} is {value!r}, expected a whole number from 0.")
                given[name] = int(value)
            elif name == "slots" and value not in _SLOTS:
                raise ValueError(f"variant {text!r}: slots is {value!r}, expected {' or '.join(_SLOTS)}.")
            else:
                given[name] = value == "true" if name == "rounded" else value
        return cls(**given)

    def __str__(self) -> str:
        plain = Variant()
        changed = {name: value for name, value in vars(self).items() if value != getattr(plain, name)}
        return " ".join(f"{name}={str(value).lower()}" for name, value in changed.items()) or "plain"

    @property
    def compiler_options(self) -> dict[str, bool | str]:
        """Gives `xla` as a dict."""
        return {
            name: value == "true" for name, _, value in (word.partition(":") for word in self.xla.split("+")) if name
        }

    def trainer(self, shape: Shape, recipe: OptimizerConfig = RECIPE) -> Trainer:
        """Makes the trainer."""
        platform = jax.default_backend()
        dtype = self.dtype or ("float32" if platform == "cpu" else "bfloat16")
        kernel: Any = self.kernel or {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla")
        names = {"n_layer": "layers", "n_head": "heads", "n_embd": "width", "vocab_size": "vocabulary"}
        fields = {ours: getattr(shape, its) for ours, its in names.items()}
        preset = TrainPreset({**fields, "block_size": shape.context, "bias": False}, recipe, dtype, {})
        bias = None if self.bias == "none" else AttentionBias(self.bias)
        # The name is there for jax, which keeps one traced program for equal modules, whatever a table says.
        module = LanguageModel(
            preset.model(attention_bias=bias, dtype=dtype, kernel=kernel),
            self.remat,
            self.unroll or shape.layers,
            name=f"slots_{self.slots}" if self.slots else None,
        )
        objective = NextToken(shape.tokens if self.chunk == 0 else self.chunk, self.rounded)
        return Trainer(module, recipe, objective=objective)


# What may be faster: what a loop over blocks keeps and the head in chunks, quick to compile; then no loop.
SWEEP = (
    "unroll=1",
    "unroll=0",
    "unroll=0 chunk=0",
    "unroll=0 chunk=0 rounded=true",
    "unroll=0 chunk=0 bias=kv slots=merged",
    "unroll=0 chunk=0 bias=kv slots=front",
    "unroll=0 chunk=0 rounded=true bias=kv",
    "remat=cheap chunk=0",
    "remat=cheap",
    "chunk=0",
    "remat=cheap chunk=0 rounded=true",
    "remat=cheap chunk=0 bias=kv",
    "unroll=0 remat=cheap chunk=0",
    "unroll=3 remat=cheap chunk=0",
    "remat=cheap chunk=8192",
    "remat=cheap chunk=0 xla=xla_gpu_enable_triton_gemm:false",
    "remat=cheap chunk=0 xla=xla_gpu_enable_cublaslt:true",
    "remat=cheap chunk=0 kernel=xla",
)


@dataclasses.dataclass
class Step:
    """A compiled step with its state.

    Attributes:
      run: takes so many steps, one without waiting for another as a training does, and gives the last one's loss.
      compile_seconds: what compiling took, beside others that may have been compiled at the same time.
      temporary_bytes: of memory, beside the state; None where the backend does not say.
      compiled: the program.
    """

    run: Callable[[int], float]
    compile_seconds: float
    temporary_bytes: int | None
    compiled: jax.stages.Compiled


def jax_step(shape: Shape, variant: Variant, recipe: OptimizerConfig = RECIPE) -> Step:
    """Compiles a variant's step on `shape.random_tokens()`."""
    trainer, batch = variant.trainer(shape, recipe), shape.random_tokens()
    started = time.perf_counter()
    with _TRACING, slots_placed(_SLOTS[variant.slots]) if variant.slots else contextlib.nullcontext():
        lowered = trainer.lower(trainer.abstract(), batch)
    compiled = lowered.compile(variant.compiler_options or None)
    seconds = time.perf_counter() - started
    memory, micro = compiled.memory_analysis(), jax.device_put(trainer.micro_batches(batch), jax.devices()[0])
    state: Any = None

    def run(steps: int = 1) -> float:
        nonlocal state
        if state is None:  # the same for all variants: compiled once
            state = Variant(bias=variant.bias).trainer(shape, recipe).init(0)
        for _ in range(steps):
            state, metrics = compiled(state, micro)
        return float(metrics["loss"])

    return Step(run, seconds, getattr(memory, "temp_size_in_bytes", None), compiled)


def compile_all(shape: Shape, variants: Iterable[Variant], threads: int = 1) -> dict[Variant, Step | Exception]:
    """Compiles variants, some at the same time; what fails is given as its exception."""

    def made(variant: Variant) -> Step | Exception:
        try:
            return jax_step(shape, variant)
        except Exception as error:  # of a compiler: any type
            return error

    variants = tuple(variants)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return dict(zip(variants, pool.map(made, variants), strict=True))


def interleaved(
    steps: Mapping[Any, Callable[[int], float]], repeats: int, warmup: int = 2, in_a_row: int = 1
) -> tuple[Any, Any]:
    """Takes steps in turn, some in a row: name -> seconds a step of each timed row, and name -> the losses."""
    losses = {name: [step(1) for _ in range(warmup)] for name, step in steps.items()}
    seconds: dict[Any, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            losses[name].append(step(in_a_row))
            seconds[name].append((time.perf_counter() - started) / in_a_row)
    return seconds, losses


def ratio(a: list[float], b: list[float]) -> float:
    """Gives the median ratio of runs made in turn."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))
