"""The kernel "splash": JAX's fused attention for TPUs (`jax.experimental.pallas.ops.tpu.splash_attention`).

It writes no logits and skips the blocks of keys that causality or a window hides. On a TPU it is compiled; anywhere
else it is interpreted, which is exact and slow. Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import PartitionSpec

from massive_jax.dtypes import product_precision
from massive_jax.parallel import batch_axes

_LANES = 128  # lengths and blocks are multiples of it
_BLOCKS = (512, 384, 256, _LANES)  # sizes of the blocks of queries and of keys: the first that divides the length,
_BLOCK_ELEMENTS = 512 * 256  # with no more elements than a TPU's vector memory has room for, backward in float32


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    is_causal: bool,
    local_window_size: tuple[int, int] | None = None,
    softcap: float | None = None,
    return_residual: bool = False,
) -> Any:
    """Computes attention by the splash kernel, with the names of `jax.nn.dot_product_attention`.

    Float32 is multiplied at the highest precision, forward and backward. With bfloat16, logits, softmax and sums are
    float32, and scaled queries are rounded once more: the kernel has no scale of its own. Lengths are padded to
    multiples of 128; heads have any width. The compiler for TPUs does not split a kernel over several devices: where a
    mesh is set (`massive_jax.parallel.mesh_set`, by whatever runs here), each runs it on its sequences and heads.

    Args:
      query: [B, T, H, N], float32 or bfloat16 (the compiler for TPUs has no float16).
      key: [B, S, K, N]; S = T if causal.
      value: [B, S, K, N].
      scale: multiplies the logits.
      is_causal: a query sees the keys up to its own place; else all.
      local_window_size: how many keys before and after its own place a query sees, if causal; None for all.
      softcap: logits become softcap · tanh(logits / softcap); None for none.
      return_residual: returns the log-sum-exp, too, float32 [B, T, H], which has no gradient.

    Returns:
      [B, T, H, N], or that and the log-sum-exp.

    Raises:
      ValueError: a window of attention that is not causal, or causal attention of other keys than the queries'.
    """
    if (is_causal and query.shape[1] != key.shape[1]) or (local_window_size is not None and not is_causal):
        raise ValueError(
            f"splash attention of {query.shape[1]} queries and {key.shape[1]} keys, is_causal={is_causal}, "
            f"local_window_size={local_window_size}: expected as many keys as queries for causal attention, and a "
            "window with it only; take jax.nn.dot_product_attention."
        )
    options = _Options(scale, is_causal, local_window_size, softcap)
    attend = functools.partial(_run, options, True) if return_residual else functools.partial(_attend, options)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return attend(query, key, value)
    # As the parameters are (`massive_jax.parallel.RULES`); an axis that does not divide is not split.
    heads = "tensor" if key.shape[2] % mesh.shape.get("tensor", key.shape[2] + 1) == 0 else None
    spec = PartitionSpec(batch_axes(query.shape[0], mesh), None, heads)
    return jax.shard_map(
        attend, in_specs=(spec,) * 3, out_specs=(spec, spec) if return_residual else spec, check_vma=False
    )(query, key, value)


class _Options(NamedTuple):
    """Those of `splash_attention`."""

    scale: float
    is_causal: bool
    window: tuple[int, int] | None
    softcap: float | None


def _run(options: _Options, with_lse: bool, query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
    (T, H), S = query.shape[1:3], key.shape[1]
    query = query * jnp.asarray(options.scale, query.dtype)
    query, key, value = (_heads_first(x) for x in (query, key, value))
    shape = query.shape[2], key.shape[2]
    segments = None
    if shape[1] > S and not options.is_causal:  # causality hides the padding from every query that is kept
        padding = (jnp.arange(shape[1]) >= S).astype(jnp.int32)
        segments = pallas.SegmentIds(jnp.zeros(shape[0], jnp.int32), padding)
    block_q, block_kv = (_block(length, query.shape[3]) for length in shape)
    kernel = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([_mask(options, shape)] * H),
        block_sizes=pallas.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        save_residuals=with_lse,
        attn_logits_soft_cap=options.softcap,
        interpret=jax.default_backend() != "tpu",
    )
    with product_precision(query.dtype):
        found = jax.vmap(functools.partial(kernel, segment_ids=segments))(query, key, value)
    return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, :T], 1, 2), (found[0], *found[1]) if with_lse else found)


def _mask(options: _Options, shape: tuple[int, int]) -> pallas.Mask:
    if options.window is not None:
        return pallas.LocalMask(shape, (options.window[0], 0), offset=0)
    return pallas.CausalMask(shape) if options.is_causal else pallas.FullMask(shape)


def _heads_first(x: jax.Array) -> jax.Array:
    """[B, T, H, N] -> [B, H, T rounded up, N]."""
    return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES), (0, 0), (0, 0))), 1, 2)


def _block(length: int, N: int) -> int:
    """How many queries or keys of width N are a block."""
    fitting = (block for block in _BLOCKS if length % block == 0 and block * N <= _BLOCK_ELEMENTS)
    return next(fitting, _LANES)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: _Options, query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
    return _run(options, False, query, key, value)


def _forward(options: _Options, query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
    return jax.vjp(functools.partial(_run, options, False), query, key, value)


def _backward(options: _Options, pullback: Any, cotangent: jax.Array) -> Any:
    # The kernel's own backward pass is traced here, out of the precision that the forward pass was traced in.
    with product_precision(cotangent.dtype):
        return pullback(cotangent)


_attend.defvjp(_forward, _backward)
