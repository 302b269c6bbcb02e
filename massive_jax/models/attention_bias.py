"""Explicit attention bias (paper, section 5): the slots, and their merge with what a kernel computes.

With an output o and a log-sum-exp lse of the tokens' logits, and slots with logits s and values v′,

    o′ = σ(lse − logsumexp(s)) · o + σ(logsumexp(s) − lse) · softmax(s) v′

is exactly softmax([logits, s]) [V; v′]: no column is added to the keys, and any kernel will do (`TokenMixture`).
The gradient takes one call of a kernel that takes o′ and its log-sum-exp for its own (`attend_merged`), and two of any
other (`attend_with_lse`). Where s are products with keys, and the kernel's own mask can show the slots to every query,
they may be tokens in front instead, at one call of any kernel (`attend_behind`): which it is, `KERNELS` says.
Axis letters: see `massive_jax.probe.sites`; G = H / K, n slots.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.dtypes import wide
from massive_jax.models.kernels import (
    KERNELS,
    Options,
    attention_with_lse,
    fused_attention,
    gradient_at,
    has_gradient_at,
)
from massive_jax.models.linear import Projection
from massive_jax.models.options import Size, check_options
from massive_jax.models.parameters import Module
from massive_jax.models.positions import apply_rope
from massive_jax.parallel import current_mesh, split

if TYPE_CHECKING:
    from massive_jax.models.config import BlockConfig


@dataclasses.dataclass(frozen=True)
class BiasKind:
    """Describes one kind of attention bias.

    One with neither `weights` nor `gate` is slots: n more entries of the softmax, each with a logit s and a value v′,
    which every query sees; both are 0 but for what is learned.

    Attributes:
      words: what it is.
      key: k′ is learned, a key/value head; s = q·k′ / √d.
      value: v′ is learned, a key/value head.
      logit: s is a learned number, a head.
      tokens: k′ and v′ are those of learned tokens in front of the sequence, which run through the blocks beside it.
      gate: axes of a gate on the heads' outputs, "H" or "HN".
      weights: what the values are weighted by in place of the softmax, of logits [B, H, T, S], element by element; 0
        of the lowest finite number.
    """

    words: str
    key: bool = False
    value: bool = False
    logit: bool = False
    tokens: bool = False
    gate: str | None = None
    weights: Callable[[jax.Array], jax.Array] | None = None

    @property
    def has_slots(self) -> bool:
        """Tells whether it adds entries to the softmax, instead of changing the attention itself."""
        return self.gate is None and self.weights is None


_GATED = "the heads' outputs times a sigmoid of a linear map of the block's normed input, one {} (arXiv 2505.06708)"
ATTENTION_BIASES: Mapping[str, BiasKind] = {
    "kv": BiasKind("softmax(Q [Kᵀ k′] / √d) [V; v′ᵀ], both learned (paper, equation 3)", key=True, value=True),
    "k": BiasKind("k′ learned, v′ = 0", key=True),
    "v": BiasKind("v′ learned, s = 0", value=True),
    "softmax1": BiasKind("s = 0, v′ = 0: a softmax with n more in the denominator"),
    "sink": BiasKind("s a learned number a head, v′ = 0 (gpt-oss)", logit=True),
    "sink_token": BiasKind("k′ and v′ of n learned tokens in front of the sequence (paper, appendix)", tokens=True),
    "gate_head": BiasKind(_GATED.format("a head"), gate="H"),
    "gate_element": BiasKind(_GATED.format("an element"), gate="HN"),
    "sigmoid": BiasKind("sigmoid(logits), not normalised, for the softmax (arXiv 2410.10781)", weights=jax.nn.sigmoid),
}
SLOT_KINDS = tuple(name for name, kind in ATTENTION_BIASES.items() if kind.has_slots)


@dataclasses.dataclass(frozen=True)
class AttentionBias:
    """Configures what attention can rest on other than a token: an explicit attention bias (paper, section 5).

    Most kinds are slots in the softmax; the others change the attention itself. `ATTENTION_BIASES` says what each is.

    Examples:
      >>> from massive_jax.models import AttentionBias
      >>> AttentionBias("kv", slots=2).num_slots
      2
    """

    kind: Annotated[str, tuple(ATTENTION_BIASES)]
    """A name in `ATTENTION_BIASES`."""
    slots: Size = 1
    """n, the number of slots."""
    shared: bool = False
    """Whether there is one slot for all heads, instead of one a key/value head (sinks: a query head)."""
    prefix: bool = False
    """Of "kv" only: the slots are tokens that stood in front of the sequence, at positions 0 to n - 1: k′ is turned by
    the rotary embedding of its place, windows and ALiBi count it, and the sequence's positions begin at n.
    """
    offset: bool = False
    """Whether a learned number a head is added to s."""

    def __post_init__(self) -> None:
        check_options(self, "attention bias", self._inconsistencies())

    def _inconsistencies(self) -> Iterator[str]:
        if not self.traits.has_slots and (self.slots > 1 or self.shared or self.prefix or self.offset):
            yield f"{self.kind!r} has no slots: leave slots, shared, prefix and offset out"
        elif self.prefix and not (self.traits.key and self.traits.value):
            yield f"{self.kind!r} cannot stand for a prefix; only 'kv' can"
        if self.traits.tokens and self.shared:
            yield f"{self.kind!r} has a key and a value for every head: it cannot be shared"

    @property
    def traits(self) -> BiasKind:
        """Says what the kind does."""
        return ATTENTION_BIASES[self.kind]

    @property
    def num_slots(self) -> int:
        """Gives the number of slots, n; 0 for the kinds that have no slots."""
        return self.slots if self.traits.has_slots else 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotPlaces:
    """Holds what the slots of an attention bias need to know about a layer; all None for slots without a place.

    Attributes:
      rope: cos and sin of a prefix, each float32 [1, n, P], or [B, n, P] where they differ by the sequence.
      bias: float32 [B or 1, H, 1, n], added to the logits (ALiBi).
      mask: bool [B, T, n], which query sees which slot; None for all.
      tokens: keys and values of this layer's sink tokens, each [1, n, K, N].
    """

    rope: tuple[jax.Array, jax.Array] | None = None
    bias: jax.Array | None = None
    mask: jax.Array | None = None
    tokens: tuple[jax.Array, jax.Array] | None = None

    def rows(self, start: Any, size: int) -> SlotPlaces:
        """Gives the same for `size` of the queries, from `start` on."""
        mask = None if self.mask is None else jax.lax.dynamic_slice_in_dim(self.mask, start, size, axis=1)
        return dataclasses.replace(self, mask=mask)


_FEW = 4  # slots


@dataclasses.dataclass(frozen=True)
class Slots:
    """Holds what a query sees beside the tokens.

    Attributes:
      logits: float32 [B, H, T, n]; the lowest finite number where a slot is out of sight.
      values: [K, n, N]; None for zeros.
      keys: [B or 1, K, n, N], whose scaled products with the queries the logits are; None where they are something
        else.
      mask: bool [B or 1, T, n], which query sees which slot; None for all.
    """

    logits: jax.Array
    values: jax.Array | None
    keys: jax.Array | None = None
    mask: jax.Array | None = None


class AttentionSlots(Module):
    """Holds the learned slots of one layer. Parameters: key, value [K, n, N], logit [H]."""

    config: BlockConfig

    @nn.compact
    def __call__(self, query: jax.Array, places: SlotPlaces) -> Slots:
        """Gives the slots that queries [B, T, H, N] see, as those enter the attention."""
        cfg, bias = self.config, self.config.attention_bias
        assert bias is not None
        B, T, H, N = query.shape
        K, n = cfg.num_kv_heads, bias.slots
        init = nn.initializers.normal(0.02)  # paper's released code
        one = "1" if bias.shared else None  # in place of the axis of heads

        def learned(name: str) -> jax.Array:
            x = self.declare(name, f"{one or 'K'}nN", "slot", init, (1 if one else K, n, N)).astype(query.dtype)
            return jnp.broadcast_to(x, (K, n, N))

        key = value = None
        if places.tokens is not None:
            key, value = (jnp.moveaxis(x[0], 0, 1) for x in places.tokens)
        else:
            key = learned("key") if bias.traits.key else None
            value = learned("value") if bias.traits.value else None
        logits, keys = jnp.zeros((B, H, T, n), wide(query.dtype)), jnp.zeros((1, K, n, N), query.dtype)
        keys = of_own_heads(keys, 1, H)
        if key is not None:
            keys = key[None]
            if places.rope is not None:
                turned = apply_rope(jnp.moveaxis(keys, 1, 2), *places.rope, interleaved=cfg.rope.interleaved)
                keys = jnp.moveaxis(turned, 1, 2)
            keys = of_own_heads(keys, 1, H)
            logits = _products(query, keys, logits.dtype) * cfg.scale
        if cfg.attention_softcap is not None:
            logits = cfg.attention_softcap * jnp.tanh(logits / cfg.attention_softcap)
        if bias.traits.logit or bias.offset:
            offset = self.declare("logit", one or "H", "slot", init, (1 if one else H,))
            logits = logits + offset.astype(logits.dtype)[:, None, None]
        if places.bias is not None:
            logits = logits + places.bias
        if places.mask is not None:
            logits = jnp.where(places.mask[:, None], logits, jnp.finfo(jnp.float32).min)
        products = not bias.traits.logit and not bias.offset and places.bias is None
        value = None if value is None else of_own_heads(value, 0, H)
        return Slots(logits, value, keys if products else None, places.mask)


def of_own_heads(x: jax.Array, axis: int, heads: int) -> jax.Array:
    """Gives keys or values, which every device has all of, of its own query heads: one for each, K -> H along an axis.

    That is on a mesh over whose "tensor" the H query heads are split and their K own heads, too few, are not; anywhere
    else they stay as they are.
    """
    mesh, K = current_mesh(), x.shape[axis]
    devices = 1 if mesh is None else mesh.shape["tensor"]
    if devices == 1 or K % devices == 0 or heads % devices:
        return x
    axes = "".join("H" if i == axis else "1" for i in range(x.ndim))
    return split(jnp.repeat(x, heads // K, axis=axis), "B" + axes[1:] if axis else axes)


class OutputGate(Module):
    """Multiplies the heads' outputs by σ(x W), one gate a head or an element (arXiv 2505.06708, equation 5)."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """Gates the heads' outputs [B, T, H, N] by the block's normed input [B, T, D]."""
        D, axes, sizes = self.config.hidden_size, self.config.gate_axes, mixed.shape[2:]
        assert axes is not None
        gate = Projection((D, *sizes[: len(axes)]), f"BTD,D{axes}->BT{axes}", name="gate")(x)
        return mixed * jax.nn.sigmoid(gate).reshape(*gate.shape, *(1,) * (mixed.ndim - gate.ndim))


@dataclasses.dataclass(frozen=True)
class TokenMixture:
    """Holds what queries see of the tokens, before it is divided by the sum of its weights.

    Attributes:
      mixed: Σ exp(logit − largest) · value, [B, T, H, N].
      largest: float32 [B, H, T], what is subtracted from the logits: the largest, without a gradient, or a kernel's
        log-sum-exp; None where nothing is to be divided by (no softmax).
      total: float32 [B, H, T], Σ exp(logit − largest); None likewise.
    """

    mixed: jax.Array
    largest: jax.Array | None
    total: jax.Array | None

    @staticmethod
    def concatenate(parts: Sequence[TokenMixture]) -> TokenMixture:
        """Joins the mixtures of consecutive runs of queries into that of all of them, in order."""

        def joined(name: str, axis: int) -> Any:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else jnp.concatenate(found, axis)

        return TokenMixture(joined("mixed", 1), joined("largest", 2), joined("total", 2))

    def with_slots(self, slots: Slots | None) -> jax.Array:
        """Gives the heads' outputs [B, T, H, N], with the slots, if any, in the same softmax.

        Weights are relative to one largest logit: a difference of log-sum-exps would carry their rounding, which is
        that of numbers ten times as large.
        """
        mixed, largest, total = self.mixed, self.largest, self.total
        if largest is None or total is None:
            return mixed
        if slots is None:
            return mixed / _by_query(total, mixed.dtype)
        top = jax.lax.stop_gradient(jnp.maximum(largest, jnp.max(slots.logits, axis=-1)))
        scale, weights = jnp.exp(largest - top), jnp.exp(slots.logits - top[..., None])
        total = total * scale + jnp.sum(weights, axis=-1)
        out = mixed * _by_query(scale / total, mixed.dtype)
        if slots.values is None:
            return out
        return out + mix_slots(weights / total[..., None], slots.values).astype(mixed.dtype)


def _by_query(x: jax.Array, dtype: Any) -> jax.Array:
    """[B, H, T] -> [B, T, H, 1], to multiply heads' outputs with."""
    return jnp.moveaxis(x, 1, 2)[..., None].astype(dtype)


def _products(x: jax.Array, slots: jax.Array, dtype: Any) -> jax.Array:
    """[B, T, H, N] times each of [B or 1, K, n, N], summed over N: [B, H, T, n]."""
    B, T, H, N = x.shape
    K, n = slots.shape[1:3]
    grouped = x.reshape(B, T, K, H // K, N)
    if x.dtype.itemsize > 2 or n > _FEW:
        own, slots = ("BKnN", slots) if len(slots) > 1 else ("KnN", slots[0])
        found = jnp.einsum(f"BTKGN,{own}->BKGTn", grouped, slots, preferred_element_type=dtype)
        return found.reshape(B, H, T, n)
    # A GPU reads x once for a sum of products, and lays it out anew for a matrix product with so few columns.
    each = [jnp.sum(grouped.astype(dtype) * slots[:, None, :, None, j].astype(dtype), axis=-1) for j in range(n)]
    return jnp.moveaxis(jnp.stack(each, axis=-1).reshape(B, T, H, n), 1, 2)


def mix_slots(probs: jax.Array, values: jax.Array) -> jax.Array:
    """Gives what the slots add to the heads' outputs: probabilities [B, H, T, n], values [K, n, N] -> [B, T, H, N]."""
    B, H, T, n = probs.shape
    K, N = values.shape[0], values.shape[-1]
    grouped = probs.reshape(B, K, H // K, T, n).astype(values.dtype)
    if n == 1:
        return (jnp.moveaxis(grouped, 3, 1) * values[:, None, 0]).reshape(B, T, H, N)
    return jnp.einsum("BKGTn,KnN->BTKGN", grouped, values).reshape(B, T, H, N)


def attend_with_slots(
    slots: Slots,
    options: Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    can_precede: bool = True,
) -> jax.Array:
    """Gives the heads' outputs [B, T, H, N] of a kernel with slots in the same softmax, in the way that costs least.

    Args:
      slots: what the queries see beside the tokens.
      options: static options of the kernel, see `fused_attention`.
      query: [B, T, H, N].
      key: [B, S, K, N].
      value: [B, S, K, N].
      mask: bool [B or 1, H or 1, T, S]; None for none.
      can_precede: whether slots that have keys may be tokens in front.
    """
    name = dict(options)["implementation"]
    merges = has_gradient_at(name)
    if slots.keys is not None and can_precede and not (merges and KERNELS[name].slots == "merged"):
        return attend_behind(slots, options, query, key, value, mask)
    if merges:
        return attend_merged(options, query, key, value, slots.logits, slots.values, mask)
    mixed, lse = attend_with_lse(options, query, key, value, mask)
    return TokenMixture(mixed, lse, jnp.ones_like(lse)).with_slots(slots)


def attend_behind(
    slots: Slots, options: Options, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Gives the heads' outputs [B, T, H, N] of a kernel with the slots, which have keys, as tokens in front.

    Where the kernel is causal, what the slots see themselves is dropped, and a window counts them as tokens. See
    `attend_with_lse` for the arguments.
    """
    assert slots.keys is not None
    n, T = slots.keys.shape[2], query.shape[1]
    values = jnp.zeros_like(slots.keys) if slots.values is None else slots.values[None]

    def behind(x: jax.Array, slot: jax.Array) -> jax.Array:
        first = jnp.moveaxis(slot, 2, 1).astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], *first.shape[1:])), x], axis=1)

    if mask is not None:
        seen = jnp.ones((1, 1, 1, 1), bool) if slots.mask is None else slots.mask[:, None]
        mask = jnp.concatenate([jnp.broadcast_to(seen, (*mask.shape[:3], n)), mask], axis=3)
    elif dict(options)["is_causal"]:
        query = jnp.pad(query, ((0, 0), (n, 0), (0, 0), (0, 0)))
    return fused_attention(options, mask)(query, behind(key, slots.keys), behind(value, values))[:, -T:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_with_lse(
    options: Options, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Gives a kernel's mixture and its log-sum-exp, float32 [B, H, T], both differentiable.

    The kernels' own has no gradient. With p the probabilities, ∂lse/∂q = Σ_j p_j k_j · scale, which is the same
    attention with the keys for values, and ∂lse/∂k_j = p_j q · scale, the gradient of those values: so the kernel
    itself does both. In a 16-bit dtype `jax.nn.dot_product_attention` rounds the log-sum-exp to it, "splash" does not.

    Args:
      options: static options of the kernel, see `fused_attention`.
      query: [B, T, H, N].
      key: [B, S, K, N].
      value: [B, S, K, N].
      mask: bool [B or 1, H or 1, T, S]; None for none.
    """
    out, lse = fused_attention(options, mask)(query, key, value, return_residual=True)
    return out, jnp.moveaxis(lse.astype(jnp.float32), 1, 2)


def _forward(options: Options, query: Any, key: Any, value: Any, mask: Any) -> Any:
    return attend_with_lse(options, query, key, value, mask), (query, key, value, mask)


def _backward(options: Options, kept: Any, cotangents: Any) -> Any:
    query, key, value, mask = kept
    of_out, of_lse = cotangents
    scale, attention = dict(options)["scale"], fused_attention(options, mask)
    of_query, of_key, of_value = jax.vjp(attention, query, key, value)[1](of_out)
    mean_key, of_values = jax.vjp(functools.partial(attention, query, key), key)
    weight = scale * jnp.moveaxis(of_lse, 1, 2)[..., None]
    of_query += (weight * mean_key).astype(query.dtype)
    of_key += of_values((weight * query).astype(query.dtype))[0]
    return of_query, of_key, of_value, None


attend_with_lse.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_merged(
    options: Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    logits: jax.Array,
    values: jax.Array | None,
    mask: jax.Array | None,
) -> jax.Array:
    """Gives the heads' outputs [B, T, H, N] of a kernel with slots, with a gradient of one call of it.

    With o′ and its log-sum-exp lse′ for its own, a kernel's backward pass has the probabilities exp(logit − lse′) of
    the longer softmax, and δ = Σ_N ∂o′ · o′, which is all it needs of the slots. Theirs is element by element:
    p = exp(s − lse′), ∂v′ = Σ p ∂o′, ∂s = p (∂o′ · v′ − δ).

    Args:
      options: static options of a kernel that `gradient_at` takes.
      query: [B, T, H, N].
      key: [B, S, K, N].
      value: [B, S, K, N].
      logits: of the slots, see `Slots`.
      values: of the slots, see `Slots`.
      mask: bool [B or 1, H or 1, T, S]; None for none.
    """
    return _merged_forward(options, query, key, value, logits, values, mask)[0]


def _merged_forward(
    options: Options, query: Any, key: Any, value: Any, logits: Any, values: Any, mask: Any
) -> tuple[jax.Array, Any]:
    mixed, lse = attention_with_lse(options, query, key, value, mask)
    lse = jnp.moveaxis(lse.astype(logits.dtype), 1, 2)
    mixture = TokenMixture(mixed.astype(logits.dtype), lse, jnp.ones_like(lse))  # rounded once, when it is merged
    out = mixture.with_slots(Slots(logits, values)).astype(query.dtype)
    lse = jnp.logaddexp(lse, jax.nn.logsumexp(logits, axis=-1))
    return out, (query, key, value, logits, values, mask, out, lse)


def _merged_backward(options: Options, kept: Any, of_out: jax.Array) -> Any:
    query, key, value, logits, values, mask, out, lse = kept
    of_tokens = gradient_at(options, query, key, value, mask, out, jnp.moveaxis(lse, 1, 2), of_out)
    probs = jnp.exp(logits - lse[..., None])
    mean = jnp.moveaxis(jnp.sum(of_out.astype(lse.dtype) * out.astype(lse.dtype), axis=-1), 1, 2)
    of_probs, of_values = jnp.zeros((), lse.dtype), None
    if values is not None:
        of_probs, of_products = jax.vjp(
            lambda slots: _products(of_out, slots, lse.dtype), values[None].astype(of_out.dtype)
        )
        of_values = of_products(probs.astype(of_probs.dtype))[0][0].astype(values.dtype)
    return *of_tokens, probs * (of_probs - mean[..., None]), of_values, None


attend_merged.defvjp(_merged_forward, _merged_backward)
