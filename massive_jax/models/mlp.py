"""The gated MLP. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import flax.linen as nn
import jax

from massive_jax.models.attention import Projection
from massive_jax.models.config import TransformerConfig
from massive_jax.probe import Tap

ACTIVATION_FUNCTIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)); with silu, SwiGLU (arXiv 2002.05202)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, tap: Tap) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        cfg = self.config
        D, F = cfg.hidden_size, cfg.intermediate_size
        gate = Projection((D, F), "BTD,DF->BTF", cfg.mlp_bias, name="gate")(x)
        up = Projection((D, F), "BTD,DF->BTF", cfg.mlp_bias, name="up")(x)
        hidden = tap("mlp_hidden", ACTIVATION_FUNCTIONS[cfg.activation](gate) * up)
        return Projection((F, D), "BTF,FD->BTD", cfg.mlp_bias, name="down")(hidden)
