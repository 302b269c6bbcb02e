"""Mixture of experts. Axis letters: see `massive_jax.probe.sites`; X experts a token, R = B·T·X rows."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.config import TransformerConfig
from massive_jax.models.linear import Projection
from massive_jax.models.mlp import ACTIVATION_FUNCTIONS
from massive_jax.probe import Tap

_GPT_OSS_LIMIT, _GPT_OSS_ALPHA = 7.0, 1.702


class Experts(nn.Module):
    """Every token goes to a few of E gated MLPs, and takes the sum of their outputs by the router's weights.

    The rows (token, chosen expert) are sorted by expert and multiplied in one ragged matrix product, so the work is
    that of the chosen experts only.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, tap: Tap) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        cfg, experts = self.config, self.config.experts
        assert experts is not None
        B, T, D = x.shape
        E, F, X = experts.num_experts, cfg.intermediate_size, experts.num_chosen
        gpt_oss = experts.kind == "gpt_oss"

        router = Projection((D, E), "BTD,DE->BTE", use_bias=gpt_oss, name="router")(x).astype(jnp.float32)
        probs = tap("router_probs", jax.nn.softmax(router, axis=-1))
        chosen_probs, chosen = jax.lax.top_k(probs, X)
        # Softmax over the chosen logits and renormalising the chosen probabilities are the same thing.
        weights = chosen_probs / jnp.sum(chosen_probs, axis=-1, keepdims=True)
        dense = jnp.sum(jax.nn.one_hot(chosen, E, dtype=jnp.float32) * weights[..., None], axis=-2)
        dense = tap("expert_weights", dense)
        weights = jnp.take_along_axis(dense, chosen, axis=-1)

        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=0)
        zeros = nn.initializers.zeros_init()
        gate, up = (self.param(name, init, (E, D, F)).astype(x.dtype) for name in ("gate", "up"))
        down = self.param("down", init, (E, F, D)).astype(x.dtype)

        # Rows (token, expert) in the order of the experts.
        expert_of_row = chosen.reshape(-1)
        order = jnp.argsort(expert_of_row, stable=True)
        sizes = jnp.bincount(expert_of_row, length=E)
        sorted_expert = expert_of_row[order]
        rows = x.reshape(B * T, D)[order // X]

        def product(rows: jax.Array, kernel: jax.Array, bias: str) -> jax.Array:
            y = jax.lax.ragged_dot(rows, kernel, sizes)
            if gpt_oss:
                y = y + self.param(bias, zeros, (E, kernel.shape[-1])).astype(x.dtype)[sorted_expert]
            return y

        gated, linear = product(rows, gate, "gate_bias"), product(rows, up, "up_bias")
        if gpt_oss:
            gated = jnp.minimum(gated, _GPT_OSS_LIMIT)
            linear = jnp.clip(linear, -_GPT_OSS_LIMIT, _GPT_OSS_LIMIT)
            hidden = (linear + 1) * gated * jax.nn.sigmoid(_GPT_OSS_ALPHA * gated)
        else:
            hidden = ACTIVATION_FUNCTIONS[cfg.activation](gated) * linear
        out = product(hidden, down, "down_bias")
        out = jnp.zeros_like(out).at[order].set(out).reshape(B, T, X, D)
        return jnp.einsum("BTXD,BTX->BTD", out, weights.astype(x.dtype))
