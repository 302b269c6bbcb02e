"""The peer in training: nanoGPT's GPT-2 in PyTorch. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional

from benchmarks.training import Shape
from massive_jax.train import OptimizerConfig


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


def torch_step(
    shape: Shape, recipe: OptimizerConfig, tokens: np.ndarray, *, device: str, compiled: bool = True
) -> Callable[[int], float]:
    """Gives a function that takes so many training steps on `tokens` and returns the last loss: bfloat16 on "cuda"."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    model = GPT(shape.layers, shape.heads, shape.width, shape.vocabulary, shape.context).to(device)
    decay = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(recipe.b1, recipe.b2),
        fused=True,
    )
    forward = torch.compile(model) if compiled else model
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)

    def step(steps: int = 1) -> float:
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = forward(ids[:, :-1], ids[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step
