"""Rotary position embedding. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.models.config import RopeConfig


def rope_frequencies(rope: RopeConfig, head_dim: int, seq_len: int) -> tuple[np.ndarray, float]:
    """Angular frequencies of the dim pairs, and the factor on cos and sin.

    Args:
      rope: which scaling, and its settings.
      head_dim: N.
      seq_len: number of positions of the sequence: dynamic scaling depends on it.

    Returns:
      float32 [N / 2] in radians a token, and the attention factor (1 but for yarn).
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    theta = rope.theta
    if rope.kind == "dynamic":
        original = rope.original_max_position or 1
        stretch = rope.factor * max(seq_len, original) / original - (rope.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    frequencies = (1.0 / np.power(np.float32(theta), exponent, dtype=np.float32)).astype(np.float32)
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor), 1.0
    if rope.kind == "factors":
        return frequencies / np.asarray(rope.factors, np.float32), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, frequencies), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, frequencies, head_dim), _yarn_attention_factor(rope)
    return frequencies, 1.0


def rope_tables(rope: RopeConfig, head_dim: int, positions: jax.Array, seq_len: int) -> tuple[jax.Array, jax.Array]:
    """Cos and sin of every position and dim pair: int [B, T] -> two float32 [B, T, N / 2]."""
    frequencies, attention_factor = rope_frequencies(rope, head_dim, seq_len)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (dim i, dim i + N/2) of `x` [B, T, H, N] by the angles in `cos`, `sin` [B, T, N/2].

    Worked in float32 and returned in x's dtype. The halves are paired as in Hugging Face checkpoints, not neighbours as
    in GGUF and the original LLaMA files: the loader un-permutes those.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _llama3(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a smooth blend between."""
    original = rope.original_max_position or 1
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return ((1 - smooth) * frequencies / rope.factor + smooth * frequencies).astype(np.float32)


def _yarn(rope: RopeConfig, frequencies: np.ndarray, head_dim: int) -> np.ndarray:
    """YaRN (arXiv 2309.00071, section 3.2): interpolate by how often a pair turns over the original context."""
    original = rope.original_max_position or 1

    def pair_with_rotations(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with_rotations(rope.beta_fast), pair_with_rotations(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0.0, 1.0)
    return (frequencies / rope.factor * ramp + frequencies * (1 - ramp)).astype(np.float32)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(scale: float) -> float:
        return 0.1 * scale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
