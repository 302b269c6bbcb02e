"""Self-attention with grouped key/value heads. Axis letters: see `massive_jax.probe.sites`; G = H / K."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.config import TransformerConfig
from massive_jax.models.positions import apply_rope
from massive_jax.probe import ATTENTION_SITES, Tap


class Attention(nn.Module):
    """Causal self-attention: projections, rotary embedding, mixture of values, output projection."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], tap: Tap) -> jax.Array:
        """[B, T, D] -> [B, T, D]; `rope` is cos and sin, each [B, T, N / 2]."""
        cfg = self.config
        D, H, K, N = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        query = Projection((D, H, N), "BTD,DHN->BTHN", cfg.qkv_bias, name="query")(x)
        key = Projection((D, K, N), "BTD,DKN->BTKN", cfg.qkv_bias, name="key")(x)
        value = Projection((D, K, N), "BTD,DKN->BTKN", cfg.qkv_bias, name="value")(x)
        query, key, value = tap("query", query), tap("key", key), tap("value", value)
        query, key = apply_rope(query, *rope), apply_rope(key, *rope)
        if tap.wants(*ATTENTION_SITES):
            mixed = attend_with_probs(query, key, value, tap, window=cfg.window)
        else:
            mixed = attend(query, key, value, window=cfg.window, kernel=cfg.attention_kernel)
        mixed = tap("head_out", mixed)
        return Projection((H, N, D), "BTHN,HND->BTD", cfg.out_bias, name="out")(mixed)


class Projection(nn.Module):
    """A linear map given by its einsum, with an optional bias shaped like the axes it adds.

    Attributes:
      shape: of the kernel.
      equation: e.g. "BTD,DHN->BTHN".
      use_bias: adds a bias.
    """

    shape: tuple[int, ...]
    equation: str
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the map in the dtype of `x`."""
        inputs, output = self.equation.split("->")
        kernel_axes = inputs.split(",")[1]
        contracted = [i for i, axis in enumerate(kernel_axes) if axis not in output]
        kept = [i for i, axis in enumerate(kernel_axes) if axis in output]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=contracted, out_axis=kept)
        kernel = self.param("kernel", init, self.shape)
        y = jnp.einsum(self.equation, x, kernel.astype(x.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), tuple(self.shape[i] for i in kept))
            y = y + bias.astype(x.dtype)
        return y


def causal_mask(T: int, window: int | None) -> jax.Array:
    """Bool [T, S]: whether query t sees key s: 0 <= t - s, and t - s < window."""
    distance = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, window: int | None, kernel: Any) -> jax.Array:
    """Mixture of values by a fused kernel: query [B, T, H, N], key and value [B, T, K, N] -> [B, T, H, N]."""
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=kernel,
    )


def attend_with_probs(query: jax.Array, key: jax.Array, value: jax.Array, tap: Tap, *, window: int | None) -> jax.Array:
    """`attend` with logits and probabilities [B, H, T, S] built in float32 and tapped."""
    B, T, H, N = query.shape
    grouped = query.reshape(B, T, key.shape[2], -1, N)
    logits = jnp.einsum("BTKGN,BSKN->BKGTS", grouped, key, preferred_element_type=jnp.float32) / math.sqrt(N)
    logits = tap("attn_logits", logits.reshape(B, H, T, T))
    logits = jnp.where(causal_mask(T, window), logits, -jnp.inf)
    probs = tap("attn_probs", jax.nn.softmax(logits, axis=-1))
    probs = probs.reshape(B, key.shape[2], -1, T, T).astype(value.dtype)
    return jnp.einsum("BKGTS,BSKN->BTKGN", probs, value).reshape(B, T, H, N)
