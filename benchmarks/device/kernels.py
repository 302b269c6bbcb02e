"""Attention kernels against the logits written out in float32: forward and gradient, every bias and awkward length."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import massive_jax as mj
from benchmarks.device.record import Context, measure, median
from massive_jax.models import AttentionBias, LanguageModel, TransformerConfig
from massive_jax.models.attention import Surroundings, attend
from massive_jax.models.attention_bias import ATTENTION_BIASES, AttentionSlots, SlotPlaces
from massive_jax.models.kernels import KERNELS, Kernel

# Of the norm of what it should be; a model's own rounding to bfloat16 is a third of it.
_MOST = {"forward": 0.02, "gradient": 0.05}
_CONFIG = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a batch: an attention bias, T tokens, a window, padding in front of the second sequence."""

    bias: str = "none"
    length: int = 257
    window: int | None = None
    padding: int = 0
    slots: int = 1

    def __str__(self) -> str:
        parts = [self.bias if self.slots == 1 else f"{self.bias} × {self.slots}", f"T {self.length}"]
        return ", ".join(
            parts
            + ([f"window {self.window}"] if self.window else [])
            + ([f"padding {self.padding}"] if self.padding else [])
        )


CASES = (
    *(Case(bias) for bias in ("none", *ATTENTION_BIASES)),
    *(Case(bias, length) for bias in ("none", "kv") for length in (256, 64, 1, 2, 1023)),
    *(Case(bias, 257, window=64) for bias in ("none", "kv", "sink")),
    *(Case(bias, 257, padding=100) for bias in ("none", "kv")),
    *(Case(bias, 256, slots=3) for bias in ("kv", "sink_token")),
)


def check(context: Context) -> None:
    """Compares the kernel of this platform, in bfloat16, on every case."""
    kernel: Any = {"gpu": "cudnn", "tpu": "splash"}.get(jax.default_backend(), "xla")
    cases = (Case("none", 17), Case("kv", 17, window=4, padding=3)) if context.small else CASES
    with concurrent.futures.ThreadPoolExecutor(1 if context.small else 8) as pool:
        running = {pool.submit(_compared, case, kernel): case for case in cases}
        for done in concurrent.futures.as_completed(running):
            context.add(f"{kernel}: {running[done]}", **done.result())


def lengths(context: Context) -> None:
    """Times attention and its gradient at GPT-2's shape and at longer ones: slots in front, and merged.

    What is fastest belongs into `massive_jax.models.kernels.KERNELS`, as `slots`.
    """
    kernel: Any = {"gpu": "cudnn", "tpu": "splash"}.get(jax.default_backend(), "xla")
    table, kv = KERNELS[kernel], AttentionBias("kv")
    in_front, merged = (dataclasses.replace(table, slots=slots) for slots in ("in front", "merged"))
    ways: dict[str, tuple[AttentionBias | None, Kernel]] = {
        "no slots": (None, table),
        "kv in front": (kv, in_front),
        "kv merged": (kv, merged),
        "sink": (AttentionBias("sink"), table),
    }
    for B, T in ((1, 16),) if context.small else ((16, 1024), (4, 4096)):
        plain = None
        for name, (bias, its_table) in ways.items():
            what = f"{kernel}: {name}, {B} × {T}"
            try:
                KERNELS[kernel] = its_table
                seconds = median(measure(_gradient(kernel, bias, B, T), calls=1 if context.small else 10))
            except Exception as error:
                context.add(what, failed=f"{type(error).__name__}: {error}".splitlines()[0][:300])
                continue
            finally:
                KERNELS[kernel] = table
            plain = plain or seconds
            context.add(what, seconds=seconds, over_no_slots=seconds / plain)


def _gradient(kernel: Any, bias: AttentionBias | None, B: int, T: int) -> Callable[[], Any]:
    """A function that runs attention and its gradient: of queries, keys, values and slots."""
    H, N = 12, 64
    dtype = "float32" if kernel == "xla" else "bfloat16"
    heads = {"num_heads": H, "num_kv_heads": H, "head_dim": N}
    others = {"vocab_size": 1, "hidden_size": 1, "num_layers": 1, "intermediate_size": 1, "max_position": T}
    cfg = TransformerConfig(**heads, **others, dtype=dtype, attention_bias=bias, attention_kernel=kernel)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(B, T, H, N)), dtype) for _ in range(4)]
    module = AttentionSlots(cfg) if bias else None
    slots = jax.jit(module.init)(jax.random.key(0), arrays[0], SlotPlaces())["params"] if module else {}

    @jax.jit
    def run(arrays: Any, slots: Any) -> Any:
        def total(arrays: Any, slots: Any) -> Any:
            *given, weights = arrays
            found = module.apply({"params": slots}, given[0], SlotPlaces()) if module else None
            mixed: Any = attend(cfg, *given, Surroundings(None, None, None, None), found)
            return jnp.sum((mixed * weights).astype(jnp.float32))

        return jax.grad(total, argnums=(0, 1))(arrays, slots)

    return lambda: run(arrays, slots)


def _compared(case: Case, kernel: str) -> dict[str, Any]:
    try:
        expected, found = _run(case, "xla", "float32"), _run(case, kernel, "bfloat16")
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    errors = {name: _error(found[name], expected[name]) for name in _MOST}
    return {**errors, "holds": all(errors[name] < most for name, most in _MOST.items())}


def _run(case: Case, kernel: str, dtype: str) -> dict[str, Any]:
    """The last hidden state, and the gradient of a random sum of it."""
    model = mj.init(_CONFIG, seed=0)
    bias = None if case.bias == "none" else AttentionBias(case.bias, slots=case.slots)
    changes: dict[str, Any] = {"attention_bias": bias, "window": case.window}
    plain = dataclasses.replace(model.config, **changes)
    module = LanguageModel(dataclasses.replace(plain, dtype=dtype, attention_kernel=kernel))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 512, (2, case.length)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(2, case.length, 256)), jnp.float32)
    positions = None
    if case.padding:
        positions = np.maximum(np.arange(case.length) - np.array([[0], [case.padding]]), -1).astype(np.int32)
    params = mj.init(plain, seed=0).params

    def run(params: Any) -> Any:
        def total(params: Any) -> Any:
            hidden = module.apply({"params": params}, tokens, positions=positions, logits=False)[1].astype(jnp.float32)
            return jnp.sum(hidden * weights), hidden

        return jax.grad(total, has_aux=True)(params)

    # Which of several equal products is fastest does not matter here, and finding out takes the longest.
    options = {"xla_gpu_autotune_level": 0} if jax.default_backend() == "gpu" else None
    gradient, hidden = jax.device_get(jax.jit(run).lower(params).compile(compiler_options=options)(params))
    return {"forward": [hidden], "gradient": jax.tree.leaves(gradient)}


def _error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Norm of the difference over the norm."""
    difference = sum(float(np.sum((a.astype(np.float64) - b) ** 2)) for a, b in zip(found, expected, strict=True))
    return (difference / sum(float(np.sum(b.astype(np.float64) ** 2)) for b in expected)) ** 0.5
