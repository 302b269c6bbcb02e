"""Training steps against nanoGPT-style PyTorch (compiled), in one run, on the same shapes, tokens and threads.

  python -m benchmarks.train --layers=4 --heads=4 --width=256 --vocabulary=8192 --batch=4 --context=256

Both do a whole step in float32 on CPU, in bfloat16 (weights in float32) on GPU: forward, backward, clipping, AdamW.
Both are warmed up; the repeats alternate. Prints the median seconds of each, and torch / ours, which is above 1 where
this project is faster; the same with the explicit attention bias, and its overhead; and the losses of both, which start
from the same distribution of weights.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import torch.nn.functional as functional
from absl import app, flags

from massive_jax.memory import keep_freed_memory
from massive_jax.models import AttentionBias, LanguageModel
from massive_jax.train import OptimizerConfig, Trainer
from massive_jax.train.presets import TrainPreset

_LAYERS = flags.DEFINE_integer("layers", 4, "Layers.")
_HEADS = flags.DEFINE_integer("heads", 4, "Heads.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width.")
_VOCABULARY = flags.DEFINE_integer("vocabulary", 8192, "Tokens of the vocabulary.")
_BATCH = flags.DEFINE_integer("batch", 4, "Sequences of a step.")
_CONTEXT = flags.DEFINE_integer("context", 256, "Tokens of a sequence.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed steps of each.")
_COMPILE = flags.DEFINE_bool("compile", True, "Whether PyTorch compiles its model.")


class Block(torch.nn.Module):
    """A block as nanoGPT's: pre-norm, causal attention, GELU, no biases."""

    def __init__(self, width: int, heads: int):
        """Makes the weights."""
        super().__init__()
        self.heads = heads
        self.attn_norm = torch.nn.LayerNorm(width, bias=False)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)
        self.mlp_norm = torch.nn.LayerNorm(width, bias=False)
        self.up = torch.nn.Linear(width, 4 * width, bias=False)
        self.down = torch.nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        B, T, D = x.shape
        query, key, value = (
            y.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for y in self.qkv(self.attn_norm(x)).split(D, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


class GPT(torch.nn.Module):
    """GPT-2 as nanoGPT has it, with a tied head."""

    def __init__(self, layers: int, heads: int, width: int, vocabulary: int, context: int):
        """Makes the weights, N(0, 0.02²), those that add to the stream over √(2L)."""
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.positions = torch.nn.Embedding(context, width)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = torch.nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                std = 0.02 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                torch.nn.init.normal_(parameter, std=std)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood."""
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def torch_step(shape: dict[str, int], recipe: OptimizerConfig, tokens: np.ndarray) -> Callable[[], float]:
    """A function that does one training step and gives the loss."""
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    model = GPT(**shape).to(device)
    decay = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(recipe.b1, recipe.b2),
        fused=True,
    )
    compiled = torch.compile(model) if _COMPILE.value else model
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = compiled(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def jax_step(
    shape: dict[str, int], recipe: OptimizerConfig, tokens: np.ndarray, bias: AttentionBias | None
) -> Callable[[], float]:
    """A function that does one training step and gives the loss."""
    names = {"n_layer": "layers", "n_head": "heads", "n_embd": "width", "vocab_size": "vocabulary"}
    fields = {ours: shape[theirs] for ours, theirs in names.items()}
    gpu = jax.default_backend() == "gpu"
    dtype, kernel = ("bfloat16", "cudnn") if gpu else ("float32", "xla")
    preset = TrainPreset({**fields, "block_size": shape["context"], "bias": False}, recipe, dtype, {})
    config = preset.model(attention_bias=bias, dtype=dtype, kernel=kernel)
    # As the presets have it: on CPU a loop costs time, on GPU it saves compiling.
    trainer = Trainer(LanguageModel(config, unroll=1 if gpu else 4), recipe)
    state = trainer.init(0)

    def step() -> float:
        nonlocal state
        state, metrics = trainer.step(state, tokens)
        return float(metrics["loss"])

    return step


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    keep_freed_memory()  # as the experiments that train do
    shape = {
        "layers": _LAYERS.value,
        "heads": _HEADS.value,
        "width": _WIDTH.value,
        "vocabulary": _VOCABULARY.value,
        "context": _CONTEXT.value,
    }
    recipe = OptimizerConfig(warmup_steps=0)
    size = (_BATCH.value, _CONTEXT.value + 1)
    tokens = np.random.default_rng(0).integers(0, _VOCABULARY.value, size).astype(np.int32)
    steps = {
        "ours": jax_step(shape, recipe, tokens, None),
        "ours, kv bias": jax_step(shape, recipe, tokens, AttentionBias("kv")),
        "torch, compiled" if _COMPILE.value else "torch": torch_step(shape, recipe, tokens),
    }
    print(f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0]}, {torch.get_num_threads()} threads")
    losses = {name: [step() for _ in range(2)] for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_REPEATS.value):
        for name, step in steps.items():
            started = time.perf_counter()
            losses[name].append(step())
            seconds[name].append(time.perf_counter() - started)
    ours, bias, torchs = seconds.values()
    for name, found in seconds.items():
        rate = _BATCH.value * _CONTEXT.value / statistics.median(found)
        print(
            f"{name:16} {statistics.median(found):8.3f} s a step  {rate:10,.0f} tokens/s  "
            f"loss {losses[name][0]:.4f} -> {losses[name][-1]:.4f}"
        )
    print(f"torch / ours {_ratio(torchs, ours):.2f}; kv bias / none {_ratio(bias, ours):.3f}")


def _ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    app.run(main)
