"""Self-attention with grouped key/value heads. Axis letters: see `massive_jax.probe.sites`; G = H / K."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.dtypes import wide
from massive_jax.models.attention_bias import (
    AttentionSlots,
    OutputGate,
    SlotPlaces,
    Slots,
    TokenMixture,
    attend_with_slots,
    mix_slots,
    of_own_heads,
)
from massive_jax.models.config import BlockConfig
from massive_jax.models.kernels import fused_attention, takes
from massive_jax.models.linear import Projection
from massive_jax.models.norms import Norm
from massive_jax.models.parameters import Module
from massive_jax.models.positions import apply_rope
from massive_jax.probe import ATTENTION_SITES, Tap

# Finite, so that a query that sees nothing (padding) gives no nan, which would spread through its value.
LOWEST = float(jnp.finfo(jnp.float32).min)
_PIECES = 4  # that the queries of causal attention are cut into, of at least so many rows each
_ROWS = 32
_KERNEL_STD = 0.02  # of the projections at the start, in V-scale's paper


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Holds what attention needs to know about positions.

    Attributes:
      rope: cos and sin of the queries, each float32 [B, T, P]; None without rotary embedding.
      key_rope: of the keys, each [B, S, P].
      bias: float32 [B or 1, H, 1 or T, S], added to the logits; None for none.
      mask: bool [B or 1, T, S], who sees whom; None for causal with the config's window in every layer, or for all if
        the config is not causal.
      cache_slots: int [B, T], where in the cache the keys and values of these tokens go (out of range: nowhere); None
        for no cache.
      slot_places: of the attention bias's slots; None without slots.
      query_scale: float32 scalar, multiplies the queries where they meet keys; None for 1.
    """

    rope: tuple[jax.Array, jax.Array] | None
    key_rope: tuple[jax.Array, jax.Array] | None
    bias: jax.Array | None
    mask: jax.Array | None
    cache_slots: jax.Array | None = None
    slot_places: SlotPlaces | None = None
    query_scale: jax.Array | None = None

    def rows(self, start: Any, size: int) -> Surroundings:
        """Gives the same for `size` of the tokens, from `start` on, which attend to all: keys are those of a cache."""

        def cut(x: jax.Array | None, axis: int) -> Any:
            if x is None or x.shape[axis] == 1:
                return x
            return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

        return dataclasses.replace(
            self,
            rope=None if self.rope is None else tuple(cut(x, 1) for x in self.rope),
            bias=cut(self.bias, 2),
            mask=cut(self.mask, 1),
            cache_slots=cut(self.cache_slots, 1),
            slot_places=None if self.slot_places is None else self.slot_places.rows(start, size),
        )


class Attention(Module):
    """Mixes tokens by self-attention: projections, rotary embedding, mixture of values, output projection."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, around: Surroundings, tap: Tap) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        cfg = self.config
        D, H, K, N = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        query = Projection((D, H, N), "BTD,DHN->BTHN", cfg.qkv_bias, name="query")(x)
        key = Projection((D, K, N), "BTD,DKN->BTKN", cfg.qkv_bias and cfg.key_bias, name="key")(x)
        value = Projection((D, K, N), "BTD,DKN->BTKN", cfg.qkv_bias, name="value")(x)
        if cfg.clip_qkv is not None:
            query, key, value = (jnp.clip(y, -cfg.clip_qkv, cfg.clip_qkv) for y in (query, key, value))
        if cfg.qk_norm is not None:
            full = cfg.qk_norm == "full"
            query = Norm(cfg.norm, "HN" if full else "N", name="query_norm")(query)
            key = Norm(cfg.norm, "KN" if full else "N", name="key_norm")(key)
        if cfg.value_scale is not None:
            value = self._radially_scaled(value)
        query, key, value = tap("query", query), tap("key", key), tap("value", value)
        if around.cache_slots is not None:
            key, value = self._cached("key", key, around.cache_slots), self._cached("value", value, around.cache_slots)
        if around.rope is not None and around.key_rope is not None:
            query = apply_rope(query, *around.rope, interleaved=cfg.rope.interleaved)
            key = apply_rope(key, *around.key_rope, interleaved=cfg.rope.interleaved)
        if around.query_scale is not None:  # on the queries: kernels take no scale that differs by layer
            query = (query.astype(wide(query.dtype)) * around.query_scale).astype(query.dtype)
        key, value = of_own_heads(key, 2, H), of_own_heads(value, 2, H)
        # A sink token's own pass has no slots: they are made of it.
        slots = None if around.slot_places is None else AttentionSlots(cfg, name="slots")(query, around.slot_places)
        if tap.wants(*ATTENTION_SITES):
            mixed = attend_with_probs(cfg, query, key, value, around, tap, slots)
        else:
            mixed = attend(cfg, query, key, value, around, slots)
        if cfg.gate_axes is not None:
            mixed = OutputGate(cfg, name="gate")(x, mixed)
        mixed = tap("head_out", mixed)
        return Projection((H, N, D), "BTHN,HND->BTD", cfg.out_bias, "residual", name="out")(mixed)

    def _radially_scaled(self, value: jax.Array) -> jax.Array:
        """V-scale of values [B, T, K, N]: see `BlockConfig.value_scale`."""
        cfg = self.config
        v = value.astype(wide(value.dtype))
        softening = jnp.asarray(cfg.hidden_size * cfg.head_dim * _KERNEL_STD**2, v.dtype)
        if cfg.value_scale == "learned":
            theta = self.declare("value_scale", "K", "scale", nn.initializers.zeros_init(), (cfg.num_kv_heads,))
            softening = softening * jnp.exp(theta.astype(v.dtype))[:, None]
        square = jnp.sum(jnp.square(v), axis=-1, keepdims=True)
        return (v * (square / (square + softening))).astype(value.dtype)

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
    """Tells whether query t sees key s, bool [T, S]: 0 <= t - s, and t - s < window."""
    distance = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def attend(
    cfg: BlockConfig,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    around: Surroundings,
    slots: Slots | None = None,
) -> jax.Array:
    """Mixes values, no site tapped: query [B, T, H, N], key and value [B, S, K, N] -> [B, T, H, N]."""
    if takes(cfg, masked=around.mask is not None):
        return _attend_fused(cfg, query, key, value, around, slots)
    visible = visible_keys(cfg, query, around)
    if around.cache_slots is not None or not cfg.causal:
        tokens = _attend_rows(cfg, query, key, value, around.bias, visible)
    else:
        # Some rows at a time, with the keys they may see: of what the mask would hide, the most is never computed.
        # Tokens are in order, with padding between them or not, so a key that is seen is in a column before.
        T = query.shape[1]
        pieces = max(1, min(_PIECES, T // _ROWS))
        found = []
        for i in range(pieces):
            start, stop = T * i // pieces, T * (i + 1) // pieces
            first = 0 if cfg.window is None or around.mask is not None else max(0, start - cfg.window + 1)
            rows, seen = slice(start, stop), slice(first, stop)
            bias = around.bias
            if bias is not None:
                bias = (bias[:, :, rows] if bias.shape[2] > 1 else bias)[..., seen]
            its_visible = visible[:, :, rows, seen]
            found.append(_attend_rows(cfg, query[:, rows], key[:, seen], value[:, seen], bias, its_visible))
        tokens = TokenMixture.concatenate(found)
    return tokens.with_slots(slots)


def _attend_rows(
    cfg: BlockConfig,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    visible: jax.Array,
) -> TokenMixture:
    """What some queries see of the tokens; `visible` broadcasts to [B, H, T, S]."""
    logits = jnp.where(visible, token_logits(cfg, query, key, bias), LOWEST)
    if cfg.attention_weights is not None:
        return TokenMixture(mix_values(attention_probs(cfg, logits), value), None, None)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    weights = jnp.exp(logits - largest[..., None])
    return TokenMixture(mix_values(weights, value), largest, jnp.sum(weights, axis=-1))


def _attend_fused(
    cfg: BlockConfig, query: jax.Array, key: jax.Array, value: jax.Array, around: Surroundings, slots: Slots | None
) -> jax.Array:
    """`attend` by a kernel, which writes no logits."""
    assert around.bias is None  # refused: far positions' biases are too large for bfloat16
    options: dict[str, Any] = {"scale": cfg.scale, "implementation": cfg.attention_kernel}
    if around.mask is None:
        options |= {"is_causal": cfg.causal, "local_window_size": None if cfg.window is None else (cfg.window - 1, 0)}
    if cfg.attention_softcap is not None:
        options["softcap"] = cfg.attention_softcap
    mask = None if around.mask is None else around.mask[:, None]
    static = tuple(options.items())
    if slots is None:
        return fused_attention(static, mask)(query, key, value)
    # A window of the kernel's own would hide slots that have no place; a cache would be copied to put them in front.
    shown = mask is not None or cfg.window is None or slots.mask is not None
    return attend_with_slots(slots, static, query, key, value, mask, can_precede=shown and around.cache_slots is None)


def attend_with_probs(
    cfg: BlockConfig,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    around: Surroundings,
    tap: Tap,
    slots: Slots | None = None,
) -> jax.Array:
    """Does what `attend` does with logits and probabilities, float32 [B, H, T, S], tapped; slots are the last keys."""
    logits, visible = token_logits(cfg, query, key, around.bias), visible_keys(cfg, query, around)
    S = key.shape[1]
    if slots is not None:
        logits = jnp.concatenate([logits, slots.logits], axis=-1)
        visible = jnp.concatenate(
            [jnp.broadcast_to(visible, (*slots.logits.shape[:3], S)), slots.logits > LOWEST], axis=-1
        )
    logits = jnp.where(visible, tap("attn_logits", logits), LOWEST)
    probs = tap("attn_probs", attention_probs(cfg, logits))
    mixed = mix_values(probs[..., :S], value)
    if slots is None or slots.values is None:
        return mixed
    return mixed + mix_slots(probs[..., S:], slots.values)


def token_logits(cfg: BlockConfig, query: jax.Array, key: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Computes what enters the softmax for every token, before the mask: float32 [B, H, T, S]."""
    B, T, H, N = query.shape
    S, K = key.shape[1:3]
    grouped = query.reshape(B, T, K, H // K, N)
    logits = jnp.einsum("BTKGN,BSKN->BKGTS", grouped, key, preferred_element_type=wide(query.dtype))
    logits = logits.reshape(B, H, T, S) * cfg.scale
    if cfg.attention_softcap is not None:
        logits = cfg.attention_softcap * jnp.tanh(logits / cfg.attention_softcap)
    return logits if bias is None else logits + bias


def visible_keys(cfg: BlockConfig, query: jax.Array, around: Surroundings) -> jax.Array:
    """Tells which query sees which key: bool [B or 1, 1, T, S]."""
    if around.mask is None and not cfg.causal:
        return jnp.ones((1, 1, 1, 1), bool)
    mask = causal_mask(query.shape[1], cfg.window)[None] if around.mask is None else around.mask
    return mask[:, None]


def attention_probs(cfg: BlockConfig, logits: jax.Array) -> jax.Array:
    """Turns masked logits into what the values are weighted by, float32."""
    return jax.nn.softmax(logits, axis=-1) if cfg.attention_weights is None else cfg.attention_weights(logits)


def mix_values(probs: jax.Array, value: jax.Array) -> jax.Array:
    """Mixes values [B, S, K, N] by probabilities [B, H, T, S] -> [B, T, H, N]."""
    B, H, T, S = probs.shape
    K, N = value.shape[2:]
    grouped = probs.reshape(B, K, H // K, T, S).astype(value.dtype)
    return jnp.einsum("BKGTS,BSKN->BTKGN", grouped, value).reshape(B, T, H, N)
