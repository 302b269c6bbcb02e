"""Generating with the 7B-shaped model: the prompt's rate, and that of new tokens; Hugging Face's PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.device.forward import config_of, model_of
from benchmarks.device.record import Context
from benchmarks.generation import jax_runs, rates, torch_runs


def _batches(context: Context) -> list[np.ndarray]:
    shapes = [(1, 16)] if context.small else [(1, 512), (8, 512)]
    return [np.random.default_rng(0).integers(0, 256, shape).astype(np.int32) for shape in shapes]


def _time(context: Context, runs_on: Callable[[np.ndarray], dict[str, Callable[[int], Any]]]) -> None:
    new, repeats = (4, 1) if context.small else (128, 3)
    for tokens in _batches(context):
        B, T = tokens.shape
        for name, run in runs_on(tokens).items():
            if context.seconds_left < 5:
                return
            try:
                found = rates(run, B, T, new, repeats)
            except Exception as error:
                context.add(f"{name}, {B} × {T}", failed=f"{type(error).__name__}: {error}".splitlines()[0][:300])
                continue
            context.add(
                f"{name}, {B} × {T}",
                tokens_per_second=found.rate,
                prompt_tokens_per_second=found.prompt_rate,
                seconds=found.seconds,
            )


def ours(context: Context) -> None:
    """Times ours, with and without statistics of every block at every step."""
    model = model_of(context)
    _time(context, lambda tokens: jax_runs(model, tokens))


def peer(context: Context) -> None:
    """Times PyTorch's `generate`, with the cache that grows and the static one, for which it compiles itself."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    fields = {name: value for name, value in config_of(context).items() if name != "model_type"}
    with torch.device(device):
        config = transformers.LlamaConfig(**fields, attn_implementation="sdpa")
        model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    _time(context, lambda tokens: torch_runs(model, tokens))
