"""Self-attention with grouped key/value heads. Axis letters: see `massive_jax.probe.sites`; G = H / K."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.config import BlockConfig
from massive_jax.models.linear import Projection
from massive_jax.models.norms import Norm
from massive_jax.models.positions import apply_rope
from massive_jax.probe import ATTENTION_SITES, Tap


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What attention needs to know about positions.

    Attributes:
      rope: cos and sin of the queries, each float32 [B, T, P]; None without rotary embedding.
      key_rope: of the keys, each [B, S, P].
      bias: float32 [B or 1, H, 1 or T, S], added to the logits; None for none.
      mask: bool [B or 1, T, S], who sees whom; None for causal with the config's window in every
        layer, or for all if the config is not causal.
      slots: int [B, T], where in the cache the keys and values of these tokens go (out of range: nowhere); None for
        no cache.
    """

    rope: tuple[jax.Array, jax.Array] | None
    key_rope: tuple[jax.Array, jax.Array] | None
    bias: jax.Array | None
    mask: jax.Array | None
    slots: jax.Array | None = None


class Attention(nn.Module):
    """Self-attention: projections, rotary embedding, mixture of values, output projection."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, around: Surroundings, tap: Tap) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        cfg = self.config
        D, H, K, N = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        query = Projection((D, H, N), "BTD,DHN->BTHN", cfg.qkv_bias, name="query")(x)
        key = Projection((D, K, N), "BTD,DKN->BTKN", cfg.qkv_bias and cfg.key_bias, name="key")(x)
        value = Projection((D, K, N), "BTD,DKN->BTKN", cfg.qkv_bias, name="value")(x)
        if cfg.clip_qkv is not None:
            query, key, value = (jnp.clip(y, -cfg.clip_qkv, cfg.clip_qkv) for y in (query, key, value))
        if cfg.qk_norm is not None:
            axes = 2 if cfg.qk_norm == "full" else 1
            query = Norm(cfg.norm, axes, name="query_norm")(query)
            key = Norm(cfg.norm, axes, name="key_norm")(key)
        query, key, value = tap("query", query), tap("key", key), tap("value", value)
        if around.slots is not None:
            key, value = self._cached("key", key, around.slots), self._cached("value", value, around.slots)
        if around.rope is not None and around.key_rope is not None:
            query = apply_rope(query, *around.rope, interleaved=cfg.rope.interleaved)
            key = apply_rope(key, *around.key_rope, interleaved=cfg.rope.interleaved)
        sinks = self.param("sinks", nn.initializers.normal(0.02), (H,)) if cfg.sinks else None
        if tap.wants(*ATTENTION_SITES) or cfg.attention_softcap is not None or sinks is not None:
            mixed = attend_with_probs(cfg, query, key, value, around, tap, sinks)
        else:
            mixed = attend(cfg, query, key, value, around)
        mixed = tap("head_out", mixed)
        return Projection((H, N, D), "BTHN,HND->BTD", cfg.out_bias, name="out")(mixed)

    def _cached(self, name: str, new: jax.Array, slots: jax.Array) -> jax.Array:
        """All cached keys (or values) [B, S, K, N], those of the new tokens [B, T, K, N] written to their slots.

        Keys are kept as they are before the rotary embedding, so that a token's position may change: it is its place
        among the tokens that are still in the cache.
        """
        cache = self.variable("cache", f"cached_{name}", lambda: jnp.zeros_like(new))
        rows = jnp.arange(new.shape[0])[:, None]
        cache.value = cache.value.at[rows, slots].set(new.astype(cache.value.dtype), mode="drop")
        return cache.value


def causal_mask(T: int, window: int | None = None) -> jax.Array:
    """Bool [T, S]: whether query t sees key s: 0 <= t - s, and t - s < window."""
    distance = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def attend(cfg: BlockConfig, query: jax.Array, key: jax.Array, value: jax.Array, around: Surroundings) -> jax.Array:
    """Mixture of values by a fused kernel: query [B, T, H, N], key and value [B, T, K, N] -> [B, T, H, N]."""
    visible: dict[str, Any]
    if around.mask is None:
        window = None if cfg.window is None else (cfg.window - 1, 0)
        visible = {"is_causal": cfg.causal, "local_window_size": window}
    else:
        visible = {"mask": around.mask[:, None]}
    bias = around.bias  # float32: far positions' biases are too large for bfloat16
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], query.shape[1], key.shape[1]))
    kernel: Any = cfg.attention_kernel
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=bias,
        scale=cfg.scale,
        implementation=kernel,
        **visible,
    )


def attend_with_probs(
    cfg: BlockConfig,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    around: Surroundings,
    tap: Tap,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """`attend` with logits and probabilities [B, H, T, S] built in float32 and tapped, a softcap, and sinks [H]."""
    B, T, H, N = query.shape
    S, K = key.shape[1:3]
    grouped = query.reshape(B, T, K, H // K, N)
    logits = jnp.einsum("BTKGN,BSKN->BKGTS", grouped, key, preferred_element_type=jnp.float32)
    logits = logits.reshape(B, H, T, S) * cfg.scale
    if cfg.attention_softcap is not None:
        logits = cfg.attention_softcap * jnp.tanh(logits / cfg.attention_softcap)
    if around.bias is not None:
        logits = logits + around.bias
    logits = tap("attn_logits", logits)
    if cfg.causal or around.mask is not None:
        mask = causal_mask(T, cfg.window)[None] if around.mask is None else around.mask
        # Finite, so that a query that sees nothing (padding) gives no nan, which would spread through its value.
        logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    if sinks is None:
        probs = jax.nn.softmax(logits, axis=-1)
    else:
        # The sink is one more logit in the denominator, with no value behind it.
        extra = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None, None], (B, H, T, 1))
        probs = jax.nn.softmax(jnp.concatenate([logits, extra], axis=-1), axis=-1)[..., :S]
    probs = tap("attn_probs", probs)
    probs = probs.reshape(B, K, -1, T, S).astype(value.dtype)
    return jnp.einsum("BKGTS,BSKN->BTKGN", probs, value).reshape(B, T, H, N)
