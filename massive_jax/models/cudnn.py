"""cuDNN's attention with its log-sum-exp in float32, and its gradient at any output and log-sum-exp.

`jax.nn.dot_product_attention` rounds the log-sum-exp to 16 bits and differentiates its own output only. What it calls
does neither, and is private to jax: all that is known of it is here, and `is_known` tells whether it still is so
(jax 0.10 to 0.11.2). Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

_BACKWARD = (
    "scale",
    "seed",
    "dropout_rate",
    "variadic_args",
    "mask_type",
    "layout",
    "sliding_window_length",
    "is_training",
    "return_residual",
    "res",
    "grad_output",
)
_FORWARD = (
    "query",
    "key",
    "value",
    "bias",
    "mask",
    "q_seqlen",
    "kv_seqlen",
    "q_offsets",
    "kv_offsets",
    "fp8_params",
    "scale",
    "mask_type",
    "seed",
    "dropout_rate",
    "qkv_layout",
    "sliding_window_length",
    "use_fp8",
    "return_residual",
)


@functools.cache
def is_known() -> bool:
    """Tells whether this version of jax has the functions that are called here, with the arguments they are given."""
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        found = [
            tuple(inspect.signature(function).parameters)
            for function in (
                cudnn.dot_product_attention,
                cudnn._dot_product_attention_bwd_rule,
                cudnn.combine_bias_and_mask,
                cudnn.check_is_flash_attention,
            )
        ]
        masks = {"NO_MASK", "PADDING", "CAUSAL", "PADDING_CAUSAL"} <= set(cudnn.MaskType.__members__)
        layouts = "BTNH" in cudnn.AttentionLayout.__members__
    except (ImportError, AttributeError):
        return False
    expected = [_FORWARD, _BACKWARD, ("bias", "mask", "dtype")]
    checks = ("query", "key", "value", "layout", "cudnn_version", "has_bias", "is_training")
    return masks and layouts and found[:3] == expected and found[3][: len(checks)] == checks


def attention_with_lse(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, options: dict[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Computes attention [B, T, H, N] and the log-sum-exp of its logits, float32 [B, T, H].

    Args:
      query: [B, T, H, N].
      key: [B, S, K, N].
      value: [B, S, K, N].
      mask: bool [B or 1, H or 1, T, S]; None for none.
      options: "scale", "is_causal", "local_window_size", "query_seq_lengths" and "key_value_seq_lengths" of
        `jax.nn.dot_product_attention`; all but the first may be left out.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    out, lse = cudnn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        q_seqlen=options.get("query_seq_lengths"),
        kv_seqlen=options.get("key_value_seq_lengths"),
        scale=options["scale"],
        mask_type=_mask_type(options),
        sliding_window_length=_window(options),
        return_residual=True,
    )
    return out, jnp.moveaxis(lse, 1, 2)


def gradient_at(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    out: jax.Array,
    lse: jax.Array,
    cotangent: jax.Array,
    options: dict[str, Any],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives the gradients of queries, keys and values, of what is `out` [B, T, H, N] where the log-sum-exp is `lse`.

    The kernel takes exp(logit - lse) for the probabilities, and subtracts the mean Σ out · cotangent from their
    gradient, whatever both are. `lse` is float32 [B, T, H]; see `attention_with_lse` for the others.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    layout, unused = cudnn.AttentionLayout.BTNH.value, jnp.zeros(0, query.dtype)
    version, has_bias = cudnn.check_cudnn_version(), mask is not None
    cudnn.check_is_flash_attention(query, key, value, layout, version, True, True)  # as jax does, bias or not
    bias = cudnn.combine_bias_and_mask(None, mask, query.dtype) if has_bias else unused
    lengths = [options.get(name, unused) for name in ("query_seq_lengths", "key_value_seq_lengths")]
    kept = (query, key, value, bias, *lengths, unused, unused, unused, unused, jnp.moveaxis(lse, 2, 1), out)
    static = (has_bias, False), _mask_type(options), layout, _window(options), version, False
    return cudnn._dot_product_attention_bwd_rule(options["scale"], 42, 0.0, *static, kept, cotangent)[:3]


def _mask_type(options: dict[str, Any]) -> Any:
    from jax._src.cudnn.fused_attention_stablehlo import MaskType

    if options.get("query_seq_lengths") is not None:
        return MaskType.PADDING_CAUSAL if options.get("is_causal") else MaskType.PADDING
    return MaskType.CAUSAL if options.get("is_causal") else MaskType.NO_MASK


def _window(options: dict[str, Any]) -> int | None:
    """How many keys a query sees, its own among them."""
    window = options.get("local_window_size")
    return None if window is None else window[0] + 1
