"""Negative log-likelihood without a [B, T, V] array.

Axis letters: see `massive_jax.probe.sites`; C positions of a chunk, A tokens asked about at a position, P pieces of W.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from massive_jax.dtypes import product_precision, wide
from massive_jax.models.config import TransformerConfig
from massive_jax.models.language_model import Head, head_product, logits_of
from massive_jax.parallel import gathered

_CHUNK = 256  # tokens whose logits exist at one time …
_CHUNK_WITH_GRADIENT = 2048  # … and while training, where each chunk also reads and writes the head's gradient
_SUMMED = 128  # float32 products that are added up in one go, where log-likelihoods are compared
_FEWEST = 16  # positions of a chunk: a batch that is split over devices is as wide as they are many


def chunked_nll(config: TransformerConfig, hidden: jax.Array, head: Head, targets: jax.Array) -> jax.Array:
    """Computes -log p(target) from the final norm's output, some positions at a time.

    Args:
      config: the model's; float32 multiplies in full precision on every device.
      hidden: [B, T, D].
      head: the output head.
      targets: int [B, T].

    Returns:
      float32 [B, T].
    """
    return _by_chunk(_nll, head_product, config, hidden, head, targets)


def chunked_scores(
    config: TransformerConfig, hidden: jax.Array, head: Head, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes -log p of several tokens at each position, and which of them is the most likely one of all.

    Of float32 the logits are added up in pieces. One running sum over W, as XLA's on a CPU, is 7e-6 nats off where
    logits are about 20, and 1e-4 in a paragraph; that of pieces is a third of that.

    Args:
      config: see `chunked_nll`.
      hidden: [B, T, D].
      head: the output head.
      targets: int [B, T, A].

    Returns:
      float32 and bool, each [B, T, A].
    """

    def both(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        nll = jax.nn.logsumexp(logits, axis=-1, keepdims=True) - jnp.take_along_axis(logits, targets, axis=-1)
        return nll, jnp.argmax(logits, axis=-1, keepdims=True) == targets

    if hidden.dtype != jnp.float32:
        return _by_chunk(both, head_product, config, hidden, head, targets)
    pieces = _in_pieces(gathered(head.kernel.astype(hidden.dtype), "VW"))  # once for all chunks

    def product(x: jax.Array, _: Head) -> jax.Array:
        def add(total: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return total + head_product(piece[0], Head(piece[1])), None

        return jax.lax.scan(add, jnp.zeros((*x.shape[:-1], pieces.shape[1]), x.dtype), (_in_pieces(x), pieces))[0]

    return _by_chunk(both, product, config, hidden, head, targets)


def _in_pieces(x: jax.Array) -> jax.Array:
    """[..., W] -> [P, ..., W / P], padded with zeros."""
    count = -(-x.shape[-1] // _SUMMED)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % count)])
    return jnp.moveaxis(x.reshape(*x.shape[:-1], count, -1), -2, 0)


def _by_chunk(
    of_logits: Callable[[jax.Array, jax.Array], Any],
    product: Callable[[jax.Array, Head], jax.Array],
    config: TransformerConfig,
    hidden: jax.Array,
    head: Head,
    targets: jax.Array,
) -> Any:
    """What `of_logits` makes of logits [B, C, V] and targets [B, C, …], for all T positions: a tree of [B, T, …]."""
    B, T, _ = hidden.shape
    head = Head(gathered(head.kernel, "VW"), head.bias)  # once for all chunks, as below
    with product_precision(config.dtype):
        found = jax.lax.map(
            lambda xy: of_logits(logits_of(config, product(xy[0], head), head.bias), xy[1]),
            tuple(_chunks(array, _CHUNK) for array in (hidden, targets)),
        )
    return jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1).reshape(B, -1, *array.shape[3:])[:, :T], found)


def sequence_nll(
    config: TransformerConfig, hidden: jax.Array, head: Head, tokens: jax.Array, positions: jax.Array | None = None
) -> jax.Array:
    """Computes -log p of every token after the first, given those before it, some positions at a time.

    Args:
      config: see `chunked_nll`, as for the next two.
      hidden: [B, T, D].
      head: the output head.
      tokens: int [B, T].
      positions: int [B, T], each token's place in its sequence, ascending, -1 for padding; None for no padding.

    Returns:
      float32 [B, T - 1]: at [b, i] that of sequence b's own token i + 1; 0 beyond its end.
    """
    return _of_sequences(lambda x, targets: chunked_nll(config, x, head, targets), hidden, tokens, positions)


def logits_nll(logits: jax.Array, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
    """Computes what `sequence_nll` does from logits [B, T, V] that are there."""
    return _of_sequences(_nll, logits, tokens, positions)


def _of_sequences(
    nll_of: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, tokens: jax.Array, positions: jax.Array | None
) -> jax.Array:
    """-log p of every token after the first, from x [B, T, …] at the token before it."""
    if positions is not None:
        # Each sequence's own tokens first, in their order: a token is predicted by the one before it.
        order = jnp.argsort(positions < 0, axis=1, stable=True)
        x = jnp.take_along_axis(x, order[..., None], axis=1)
        tokens = jnp.take_along_axis(tokens, order, axis=1)
    nll = nll_of(x[:, :-1], tokens[:, 1:])
    if positions is None:
        return nll
    lengths = jnp.sum(positions >= 0, axis=1, keepdims=True)
    return jnp.where(jnp.arange(1, tokens.shape[1]) < lengths, nll, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def mean_nll(
    config: TransformerConfig,
    hidden: jax.Array,
    head: Head,
    targets: jax.Array,
    chunk: int | None = None,
    rounded: bool = False,
) -> jax.Array:
    """Gives the mean of `chunked_nll`, float32 []; to be differentiated.

    Its gradient is worked out while the logits of a chunk exist, so that they are neither kept nor computed twice.

    Args:
      config: see `chunked_nll`, as for the next three.
      hidden: [B, T, D].
      head: the output head.
      targets: int [B, T].
      chunk: tokens whose logits exist at one time while the gradient is worked out; None for 2048.
      rounded: the logits of the gradient are rounded to the dtype of `hidden`, which halves what is read and written of
        them (what PyTorch's autocast does).
    """
    return jnp.mean(chunked_nll(config, hidden, head, targets))


def _forward(
    config: TransformerConfig, hidden: jax.Array, head: Head, targets: jax.Array, chunk: int | None, rounded: bool
) -> tuple[jax.Array, Any]:
    (B, T, _), dtype = hidden.shape, wide(hidden.dtype)
    weights = jnp.full((1, T), 1 / (B * T), dtype)  # padding of the last chunk: 0
    chunks = tuple(_chunks(array, chunk or _CHUNK_WITH_GRADIENT, B) for array in (hidden, targets, weights))
    cast = Head(gathered(head.kernel.astype(hidden.dtype), "VW"), head.bias)  # once for all chunks

    def step(carry: tuple[jax.Array, Head], chunk: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, Head], jax.Array]:
        total, gradient = carry
        x, y, weight = chunk

        product = head_product(x, cast, x.dtype if rounded else None)
        # In the dtype of `x`, so that both products of the gradient are.
        found, product, bias = _gradient(config, product, head.bias, y, weight, x.dtype)
        kernel = jnp.einsum("BCV,BCW->VW", product, x, preferred_element_type=dtype)
        ours = Head(kernel.astype(head.kernel.dtype), bias)
        dx = jnp.einsum("BCV,VW->BCW", product, cast.kernel)
        return (total + found, jax.tree.map(jnp.add, gradient, ours)), dx

    with product_precision(config.dtype):
        carry = (jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, head))
        (total, gradient), dx = jax.lax.scan(step, carry, chunks)
    return total, (jnp.moveaxis(dx, 0, 1).reshape(B, -1, hidden.shape[-1])[:, :T], gradient)


def _gradient(
    config: TransformerConfig,
    product: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The weighted sum of `_nll`, and its gradients of the head's product [B, C, V], in `dtype`, and bias [V].

    By hand: the softmax is written once, and the target's place in it once more, where jax would add a second array as
    large that is zero but there.
    """
    index = targets[..., None]

    def logits_at(product: jax.Array, bias: jax.Array | None) -> Any:
        return jax.vjp(functools.partial(logits_of, config), product.astype(wide(product.dtype)), bias)

    of_target = jnp.take_along_axis(product, index, axis=-1)  # [B, C, 1], as all that is its own
    (logits, pullback), (its, its_pullback) = (
        logits_at(product, bias),
        logits_at(of_target, None if bias is None else bias[index]),
    )
    weights, largest = weights[..., None], jnp.max(logits, axis=-1, keepdims=True)
    # Divided by the sum, not exp(logits - log-sum-exp), which carries the rounding of a number ten times as large.
    exponentials = jnp.exp(logits - largest)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    of_product, of_bias = pullback(exponentials * (weights / total))
    less, less_bias = its_pullback(-weights * jnp.ones_like(its))
    if of_bias is not None:
        of_bias = of_bias.at[index].add(less_bias)
    replaced = its_pullback(jnp.exp(its - largest) * (weights / total))[0] + less
    set_rows = jax.vmap(jax.vmap(lambda row, i, value: row.at[i].set(value, unique_indices=True)))
    found = jnp.sum((jnp.log(total) + largest - its) * weights)
    return found, set_rows(of_product.astype(dtype), index, replaced.astype(dtype)), of_bias


def _backward(
    config: TransformerConfig, chunk: int | None, rounded: bool, gradients: Any, cotangent: jax.Array
) -> tuple[Any, ...]:
    hidden, head = jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), gradients)
    return hidden, head, None


mean_nll.defvjp(_forward, _backward)


def _nll(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[..., V] float32, int [...] -> [...]."""
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def _chunks(array: jax.Array, tokens: int, batch: int | None = None) -> jax.Array:
    """[B, T, ...] -> [chunks, B, C, ...], padded with zeros. The batch stays an axis: devices may share it."""
    B, T = array.shape[:2]
    C = min(T, max(_FEWEST, tokens // (batch or B)))
    array = jnp.pad(array, ((0, 0), (0, -T % C), *((0, 0),) * (array.ndim - 2)))
    return jnp.moveaxis(array.reshape(B, -1, C, *array.shape[2:]), 1, 0)
