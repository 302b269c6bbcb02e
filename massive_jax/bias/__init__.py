"""Explicit attention bias for trained models: pure functions from (config, params) to (config, params)."""

from massive_jax.bias.transforms import (
    absorb_mean,
    absorb_prefix,
    absorb_sink_token,
    add_bias,
    rebuild,
    remove_bias,
    sink_tokens_alone,
)

__all__ = [
    "absorb_mean",
    "absorb_prefix",
    "absorb_sink_token",
    "add_bias",
    "rebuild",
    "remove_bias",
    "sink_tokens_alone",
]
