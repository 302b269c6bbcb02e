"""The MLP, gated or plain. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.config import BlockConfig
from massive_jax.models.linear import Projection
from massive_jax.models.parameters import Module
from massive_jax.probe import Tap

ACTIVATION_FUNCTIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class MLP(Module):
    """Applies down(act(gate(x)) · up(x)), with silu SwiGLU (arXiv 2002.05202); or, plain, down(act(up(x)))."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, tap: Tap) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        cfg = self.config
        D, F = cfg.hidden_size, cfg.intermediate_size
        activation = ACTIVATION_FUNCTIONS[cfg.activation]
        hidden = Projection((D, F), "BTD,DF->BTF", cfg.mlp_bias, name="up")(x)
        if cfg.mlp == "gated":
            hidden = activation(Projection((D, F), "BTD,DF->BTF", cfg.mlp_bias, name="gate")(x)) * hidden
        else:
            hidden = activation(hidden)
        return Projection((F, D), "BTF,FD->BTD", cfg.mlp_bias, "residual", name="down")(tap("mlp_hidden", hidden))
