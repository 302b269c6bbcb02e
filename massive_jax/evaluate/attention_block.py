"""What `measure_attention` computes inside a block: numbers of its attention, given which tokens are massive.

Axis letters: see `massive_jax.probe.sites`; m tokens of a set (-1 where a window has fewer), R sets.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from massive_jax.dtypes import product_precision, wide
from massive_jax.models import BlockConfig
from massive_jax.models.attention import mix_values
from massive_jax.parallel import top_k
from massive_jax.probe.order_statistics import median_magnitude

VECTORS = ("attn_norm", "query", "key", "value")
"""The sites whose vectors are looked at, token by token."""
SITES = (*VECTORS, "attn_logits", "attn_probs", "head_out", "mlp_out", "block_out")
TOP = 0.01  # of the dims: sparsity is their share of a vector's squared norm

_Function = Callable[[Mapping[str, Any], Any], dict[str, Any]]


def largest_of_tokens(tensors: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """Gives the largest magnitude of every token [B, T], and the median magnitude of every sequence [B]."""
    x = tensors["block_out"]
    return {"largest": jnp.max(jnp.abs(x), axis=-1).astype(wide(x.dtype)), "median": median_magnitude(x)}


def visible_tokens(T: int, causal: bool, window: int | None) -> np.ndarray:
    """Tells whether query t sees token s, bool [T, T]."""
    distance = np.arange(T)[:, None] - np.arange(T)[None, :]
    seen = distance >= 0 if causal else np.ones((T, T), bool)
    return seen if window is None else seen & (distance < window)


def layers_by_window(config: BlockConfig, T: int) -> dict[int | None, list[int]]:
    """Gives window, or None where a query sees all before it -> the 1-based layers where it is so, of T tokens."""
    found: dict[int | None, list[int]] = {}
    for layer, windowed in enumerate(config.windowed_layers, 1):
        cuts = windowed and config.window is not None and config.window < T
        found.setdefault(config.window if cuts else None, []).append(layer)
    return found


def received_share(probs: jax.Array, visible: jax.Array) -> jax.Array:
    """Gives the share of attention that each token gets of the queries after it, mean over heads, [B, T]; NaN of none.

    Args:
      probs: [B, H, T, S], slots of an attention bias last.
      visible: bool [T, T], which query sees which token.
    """
    after = visible & ~jnp.eye(len(visible), dtype=bool)
    share = jnp.mean(probs[..., : len(visible)] / jnp.sum(probs, axis=-1, keepdims=True), axis=1)
    return _mean(share, after, axis=1)


@functools.cache
def numbers_of_block(causal: bool, window: int | None) -> _Function:
    """Makes the function of a block whose queries see so many tokens; one object, so that it is traced once.

    Its `data` are "sets", int32 [B, 1 + R, m]: positions of each window's massive tokens, and of its random sets; and
    "others", int32 [B, n]: of single tokens that are not massive. It gives
      concentration, slots [B, H]: share of attention on the massive tokens and on slots, mean over queries;
      logit_massive, logit_others [B, H]: mean logit of the massive keys and of the others that a query sees, mean over
        the queries that see both;
      bias [B, H, N]: mean over queries of the massive tokens' value updates; over those that see a massive token and
        are none, as everywhere below;
      update_norm, rest_norm, apart_norm [B]: mean norm, heads concatenated, of the massive tokens' value updates, of
        the other tokens', and of what the heads' outputs are beside both;
      error [B]: norm of the latter over that of the heads' outputs, of the query where it is largest;
      spread [B, 1 + R], spread_heads [B, 1 + R, H], rest_spread [B], rest_spread_heads [B, H]: spreads of the updates;
      of each of `VECTORS` {"massive", "others"}: sums over those tokens of the unit vectors ("direction", [B, F]), of
        the share of the squared norm in the largest dims ("top") and of the kurtosis [B];
      and of a causal model received [B, T]: share of attention that each token gets of the queries after it, mean over
        heads; mlp_norm, mlp_cosine [B, T]: norm of the MLP's output, and its cosine to the first token's hidden state.
    """

    def of_block(tensors: Mapping[str, Any], data: Any) -> dict[str, Any]:
        with product_precision(jnp.float32):
            x = {name: x.astype(wide(x.dtype)) for name, x in tensors.items() if name != "positions"}
            visible = jnp.asarray(visible_tokens(x["value"].shape[1], causal, window))
            found: dict[str, Any] = _shares(x, visible, data["sets"][:, 0]) | value_updates(x, visible, data["sets"])
            for name in VECTORS:
                flat = x[name].reshape(*x[name].shape[:2], -1)
                groups = {"massive": data["sets"][:, 0], "others": data["others"]}
                found[name] = {group: _vectors(flat, at) for group, at in groups.items()}
            return found | (_received(x, visible) if causal else {})

    return of_block


def _member(at: jax.Array, T: int) -> jax.Array:
    """Which tokens are of the sets: int [B, m] -> bool [B, T]."""
    return jnp.any(at[..., None] == jnp.arange(T), axis=1)


def _take(x: jax.Array, at: jax.Array) -> jax.Array:
    """The rows of [B, T, …] at int [B, m]; zeros at -1."""
    rows = jnp.take_along_axis(x, jnp.maximum(at, 0).reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)
    return jnp.where((at >= 0).reshape(*at.shape, *(1,) * (x.ndim - 2)), rows, 0)


def _shares(x: Mapping[str, jax.Array], visible: jax.Array, massive: jax.Array) -> dict[str, jax.Array]:
    """Concentration on the massive tokens, after and before the softmax."""
    probs, T = x["attn_probs"], len(visible)
    member = _member(massive, T)
    near = visible & member[:, None]  # [B, T, S]
    far = visible & ~member[:, None]
    both = jnp.any(near, axis=-1) & jnp.any(far, axis=-1)  # [B, T]
    total = jnp.sum(probs, axis=-1)  # 1 but where attention is no softmax

    def logit(keys: jax.Array) -> jax.Array:
        summed = jnp.sum(jnp.where(keys[:, None], x["attn_logits"][..., :T], 0), axis=-1)
        mean = summed / jnp.maximum(jnp.sum(keys, axis=-1), 1)[:, None]
        return _mean(mean, both[:, None], axis=2)

    return {
        "concentration": jnp.mean(jnp.sum(jnp.where(member[:, None, None], probs[..., :T], 0), -1) / total, axis=2),
        "slots": jnp.mean(jnp.sum(probs[..., T:], axis=-1) / total, axis=2),
        "logit_massive": logit(near),
        "logit_others": logit(far),
    }


def value_updates(x: Mapping[str, jax.Array], visible: jax.Array, sets: jax.Array) -> dict[str, jax.Array]:
    """Value updates of the massive tokens and of the rest, and how constant they and random tokens' are."""
    value, T = x["value"], len(visible)
    probs = x["attn_probs"][..., :T]
    B, H = probs.shape[:2]
    groups = H // value.shape[2]

    def spread(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Updates lie in the span of the set's few values, so that norms are forms of the values' products: nothing of
        # the width of a head is made for a query.
        shares, rows, queries = _of_set(probs, value, visible, at)
        products = jnp.repeat(jnp.einsum("BmKN,BnKN->BKmn", rows, rows), groups, axis=1)
        mean = _mean(shares, queries[:, None, :, None], axis=2)
        apart = shares - mean[:, :, None]
        far = jnp.maximum(jnp.einsum("BHTm,BHmn,BHTn->BHT", apart, products, apart), 0)
        size = jnp.maximum(jnp.einsum("BHm,BHmn,BHn->BH", mean, products, mean), 0)
        return _relative(far, size, queries)

    whole, heads = lax.map(spread, jnp.moveaxis(sets, 1, 0))
    massive = sets[:, 0]
    shares, rows, queries = _of_set(probs, value, visible, massive)
    grouped = shares.reshape(B, -1, groups, *shares.shape[2:])
    update = jnp.einsum("BKGTm,BmKN->BTKGN", grouped, rows).reshape(x["head_out"].shape)
    rest = mix_values(jnp.where(_member(massive, T)[:, None, None], 0, probs), value)
    apart = x["head_out"] - update - rest
    mean = _mean(rest, queries[..., None, None], axis=1)
    far = jnp.moveaxis(jnp.sum(jnp.square(rest - mean[:, None]), axis=-1), 1, 2)
    rest_spread, rest_heads = _relative(far, jnp.sum(jnp.square(mean), axis=-1), queries)
    return {
        "bias": _mean(update, queries[..., None, None], axis=1),
        "update_norm": _mean(_norm(update), queries, axis=1),
        "rest_norm": _mean(_norm(rest), queries, axis=1),
        "apart_norm": _mean(_norm(apart), queries, axis=1),
        "error": jnp.max(_norm(apart) / _norm(x["head_out"]), axis=1),
        "spread": whole.T,
        "spread_heads": jnp.moveaxis(heads, 0, 1),
        "rest_spread": rest_spread,
        "rest_spread_heads": rest_heads,
    }


def _of_set(
    probs: jax.Array, value: jax.Array, visible: jax.Array, at: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a set [B, m]: its shares [B, H, T, m], its values [B, m, K, N], and which queries see it, bool [B, T]."""
    keys = jnp.maximum(at, 0)
    shares = jnp.take_along_axis(probs, keys[:, None, None], axis=-1)
    seen = jnp.any(visible.T[keys] & (at >= 0)[..., None], axis=1)
    return jnp.where((at >= 0)[:, None, None], shares, 0), _take(value, at), seen & ~_member(at, len(visible))


def _relative(far: jax.Array, size: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Spreads, heads concatenated [B] and of each [B, H], of squared distances [B, H, T] to means of squared size."""
    whole = _mean(jnp.sqrt(jnp.sum(far, axis=1)), queries, axis=1) / jnp.sqrt(jnp.sum(size, axis=1))
    return whole, _mean(jnp.sqrt(far), queries[:, None], axis=2) / jnp.sqrt(size)


def _mean(x: jax.Array, where: jax.Array, axis: int) -> jax.Array:
    """Mean over some; nan of none."""
    return jnp.mean(x, axis=axis, where=where)


def _norm(x: jax.Array) -> jax.Array:
    """Norms over the last two axes, heads concatenated."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1)))


def _vectors(x: jax.Array, at: jax.Array) -> dict[str, jax.Array]:
    """Sums over the tokens `at` of what is looked at in their vectors [B, T, F]."""
    rows, there = _take(x, at), at >= 0  # [B, m, F]
    tiny = jnp.finfo(rows.dtype).tiny
    unit = rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), tiny)
    largest, _ = top_k(jnp.square(unit), math.ceil(TOP * x.shape[-1]), "BTD")
    centred = jnp.square(rows - jnp.mean(rows, axis=-1, keepdims=True))
    fourth, variance = jnp.mean(jnp.square(centred), axis=-1), jnp.mean(centred, axis=-1)
    kurtosis = fourth / jnp.maximum(jnp.square(variance), tiny)
    return {
        "direction": jnp.sum(unit, axis=1),
        "top": jnp.sum(largest, axis=(1, 2)),
        "kurtosis": jnp.sum(jnp.where(there, kurtosis, 0), axis=1),
    }


def _received(x: Mapping[str, jax.Array], visible: jax.Array) -> dict[str, jax.Array]:
    """What each token gets of the queries after it, and what the MLP adds to it."""
    added, stream = x["mlp_out"], x["block_out"]
    norm, first = jnp.linalg.norm(added, axis=-1), stream[:, 0]
    sizes = jnp.maximum(norm * jnp.linalg.norm(first, axis=-1)[:, None], jnp.finfo(norm.dtype).tiny)
    return {
        "received": received_share(x["attn_probs"], visible),
        "mlp_norm": norm,
        "mlp_cosine": jnp.einsum("BTD,BD->BT", added, first) / sizes,
    }
