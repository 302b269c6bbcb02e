"""Rotary position embedding and ALiBi. Axis letters: see `massive_jax.probe.sites`; P turned pairs of dims."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.dtypes import wide
from massive_jax.models.options import Size, check_options

RopeKind: TypeAlias = Literal["default", "linear", "dynamic", "llama3", "yarn", "factors"]


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Configures the rotary position embedding (arXiv 2104.09864) and its context extensions."""

    theta: float = 10000.0
    """Base of the geometric series of wavelengths."""
    kind: RopeKind = "default"
    """Which extension of the context: "default" (none); "linear" (positions divided by `factor`); "dynamic" (NTK-aware:
    the base grows once the sequence is longer than `original_max_position`); "llama3" (wavelengths beyond the original
    context stretched by `factor`, smoothly); "yarn" (arXiv 2309.00071); "factors" (frequencies divided by `factors`).
    """
    factor: float = 1.0
    """Context extension factor."""
    original_max_position: Size | None = None
    """Context length before the extension, in tokens."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths longer than original_max_position / this are stretched in full."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths shorter than original_max_position / this are left alone."""
    beta_fast: float = 32.0
    """yarn: rotations over the original context above which a frequency is left alone."""
    beta_slow: float = 1.0
    """yarn: rotations below which a frequency is stretched in full."""
    attention_factor: float | None = None
    """yarn: multiplies cos and sin; None for the paper's 0.1·ln(factor) + 1."""
    mscale: float | None = None
    """yarn: with `mscale_all_dim`, the attention factor is a ratio of two such logarithms."""
    mscale_all_dim: float | None = None
    """See `mscale`."""
    truncate: bool = True
    """yarn: whether to round the bounds of the ramp to whole frequencies."""
    factors: tuple[float, ...] | None = None
    """factors: one divisor a frequency, rotary_dim / 2 of them."""
    rotary_dim: Size | None = None
    """How many of a head's dims are turned, the first ones; None for all."""
    interleaved: bool = False
    """Whether pairs are neighbouring dims (GPT-J) instead of dims half the width apart."""

    def __post_init__(self) -> None:
        check_options(self, "rope", self._inconsistencies())

    def _inconsistencies(self) -> Iterator[str]:
        if self.kind in ("dynamic", "llama3", "yarn") and not self.original_max_position:
            yield f"scaling {self.kind!r} needs original_max_position (got none)"
        if self.theta <= 0 or self.factor <= 0:
            yield f"theta and factor must be positive and finite; got {self.theta} and {self.factor}"
        if self.kind == "yarn" and self.theta == 1:
            yield "scaling 'yarn' needs a theta other than 1, whose wavelengths are all one"


@dataclasses.dataclass(frozen=True)
class AlibiConfig:
    """Configures a bias of the attention logits that grows linearly with the key's position (arXiv 2108.12409)."""

    max_exponent: float = 8.0
    """The steepest head's slope is 2^-(max_exponent / heads), the shallowest's 2^-max_exponent."""
    round_up: bool = True
    """For a number of heads that is no power of two, slopes are taken from the next larger power (MPT) instead of
    filled up from it after the next smaller one's (Falcon, BLOOM).
    """
    from_last: bool = True
    """Positions count from the last key, which has bias 0 (MPT), instead of from the first."""
    before_scale: bool = False
    """Added to q·k before the scaling by 1/√N (Falcon)."""
    bfloat16: bool = False
    """Slopes and biases are rounded to bfloat16, whatever the model's dtype (Falcon)."""

    def __post_init__(self) -> None:
        check_options(self, "alibi")


def rope_frequencies(rope: RopeConfig, rotary_dim: int, seq_len: int) -> tuple[np.ndarray, float]:
    """Gives the angular frequencies of the dim pairs, and the factor on cos and sin.

    Args:
      rope: which scaling, and its settings.
      rotary_dim: N, or how many of a head's dims are turned.
      seq_len: number of positions of the sequence: dynamic scaling depends on it.

    Returns:
      float32 [rotary_dim / 2] in radians a token, and the attention factor (1 but for yarn).
    """
    exponent = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    theta = _dynamic_theta(rope, rotary_dim, seq_len) if rope.kind == "dynamic" else rope.theta
    frequencies = (1.0 / np.power(np.float32(theta), exponent, dtype=np.float32)).astype(np.float32)
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor), 1.0
    if rope.kind == "factors":
        return frequencies / np.asarray(rope.factors, np.float32), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, frequencies), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, frequencies, rotary_dim), _yarn_attention_factor(rope)
    return frequencies, 1.0


def rope_tables(
    rope: RopeConfig, head_dim: int, positions: jax.Array, seq_len: int, lengths: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Gives cos and sin of every position and pair of dims.

    Args:
      rope: settings.
      head_dim: N.
      positions: int [B, T].
      seq_len: for dynamic scaling, the number of positions of a sequence, or the most there may be.
      lengths: how many each sequence has, int32 [B], where they differ; None for `seq_len`.

    Returns:
      Two float32 [B, T, rotary_dim / 2].
    """
    rotary_dim = rope.rotary_dim or head_dim
    frequencies: Any
    frequencies, attention_factor = rope_frequencies(rope, rotary_dim, seq_len)
    if rope.kind == "dynamic" and lengths is not None:
        # By length, from the longest that is not scaled on: worked out here, to be what a sequence has by itself.
        shortest = min(rope.original_max_position or 1, seq_len)
        table = np.stack([rope_frequencies(rope, rotary_dim, n)[0] for n in range(shortest, seq_len + 1)])
        frequencies = jnp.asarray(table)[jnp.clip(lengths - shortest, 0, len(table) - 1)][:, None]
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor


def axial_rope_tables(
    rope: RopeConfig, head_dim: int, grid: tuple[int, int], prefix: int
) -> tuple[jax.Array, jax.Array]:
    """Gives cos and sin over a grid of patches (DINOv3, arXiv 2508.10104): rows in the first half, then columns.

    Args:
      rope: its theta.
      head_dim: N.
      grid: rows and columns of patches, whose centres run from -1 to 1.
      prefix: number of tokens before the patches, which are not turned.

    Returns:
      Two float32 [1, T, N / 2].
    """
    frequencies = 1 / np.float32(rope.theta) ** np.arange(0, 1, 4 / head_dim, dtype=np.float32)
    centres = [2 * np.arange(0.5, size, dtype=np.float32) / size - 1 for size in grid]
    places = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2, 1).astype(np.float32)
    angles = (np.float32(2 * math.pi) * places * frequencies).reshape(len(places), -1)
    angles = np.concatenate([np.zeros((prefix, angles.shape[1]), np.float32), angles])[None]
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))


def resize_table(table: jax.Array, native: tuple[int, int], grid: tuple[int, int], *, antialias: bool) -> jax.Array:
    """Resizes a position table [rows · columns, D] to another grid, by torch's bicubic interpolation; float32."""
    by_place = table.astype(jnp.float32).reshape(*native, -1)
    rows, columns = (jnp.asarray(_bicubic(old, new, antialias)) for old, new in zip(native, grid, strict=True))
    return jnp.einsum("rR,cC,RCD->rcD", rows, columns, by_place).reshape(-1, table.shape[-1])


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Turns pairs of the first dims of `x` [B, T, H, N] by the angles in `cos`, `sin` [B, T, P].

    Worked in float32, or float64 where that is its dtype, and returned in x's dtype. The first 2·P dims are turned:
    pair i is the dims i and i + P, as in most Hugging Face checkpoints, or the neighbours 2i and 2i + 1 if
    `interleaved`.
    """
    P = cos.shape[-1]
    turned, rest = x[..., : 2 * P].astype(wide(x.dtype)), x[..., 2 * P :]
    if interleaved:
        first, second = turned[..., ::2], turned[..., 1::2]
    else:
        first, second = jnp.split(turned, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = first * cos - second * sin, second * cos + first * sin
    if interleaved:
        turned = jnp.stack([first, second], axis=-1).reshape(turned.shape)
    else:
        turned = jnp.concatenate([first, second], axis=-1)
    turned = turned.astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def alibi_slopes(alibi: AlibiConfig, num_heads: int) -> np.ndarray:
    """Gives the slope of every head's bias: float32 [H]."""

    def powers(count: int) -> np.ndarray:
        return 2.0 ** (-np.arange(1, count + 1) * alibi.max_exponent / count)

    exponent = math.log2(num_heads)
    if exponent.is_integer():
        slopes = powers(num_heads)
    elif alibi.round_up:
        more = powers(2 ** math.ceil(exponent))
        slopes = np.concatenate([more[1::2], more[::2]])[:num_heads]
    else:
        fewer = 2 ** math.floor(exponent)
        slopes = np.concatenate([powers(fewer), powers(2 * fewer)[::2][: num_heads - fewer]])
    return slopes.astype(np.float32)


def alibi_bias(alibi: AlibiConfig, num_heads: int, positions: jax.Array) -> jax.Array:
    """Gives the bias of the logits by the keys' positions, int [B, S] -> float32 [B, H, 1, S].

    It is the same for every query, for the softmax takes up the difference.
    """

    def rounded(x: jax.Array) -> jax.Array:
        # Not a cast there and back, which XLA is free to leave out.
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) if alibi.bfloat16 else x

    positions = positions - (jnp.max(positions, axis=1, keepdims=True) if alibi.from_last else 0)
    slopes = jnp.asarray(alibi_slopes(alibi, num_heads))
    return rounded(rounded(slopes)[:, None, None] * rounded(positions.astype(jnp.float32))[:, None, None, :])


def _dynamic_theta(rope: RopeConfig, rotary_dim: int, seq_len: int) -> float:
    """The base of dynamic NTK scaling for a sequence of `seq_len` positions, as Hugging Face has it."""
    original = rope.original_max_position or 1
    stretch = rope.factor * max(seq_len, original) / original - (rope.factor - 1)
    return rope.theta * stretch ** (rotary_dim / (rotary_dim - 2))


def _llama3(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a smooth blend between."""
    original = rope.original_max_position or 1
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return ((1 - smooth) * frequencies / rope.factor + smooth * frequencies).astype(np.float32)


def _yarn(rope: RopeConfig, frequencies: np.ndarray, rotary_dim: int) -> np.ndarray:
    """YaRN (arXiv 2309.00071, section 3.2): interpolate by how often a pair turns over the original context."""
    original = rope.original_max_position or 1

    def pair_with_rotations(rotations: float) -> float:
        return rotary_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with_rotations(rope.beta_fast), pair_with_rotations(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(rotary_dim // 2, dtype=np.float32) - low) / width, 0.0, 1.0)
    return (frequencies / rope.factor * ramp + frequencies * (1 - ramp)).astype(np.float32)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(scale: float) -> float:
        return 0.1 * scale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _bicubic(old: int, new: int, antialias: bool) -> np.ndarray:
    """Weights [new, old] of torch's `interpolate(mode="bicubic", align_corners=False)` along one axis.

    Without antialiasing the kernel has a = -0.75 and samples over the edge are the edge's; with it a = -0.5, the kernel
    is as wide as a new sample and what is over the edge is left out.
    """
    a, scale = (-0.5 if antialias else -0.75), old / new
    stretch = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * scale - 0.5
    reach = math.ceil(2 * stretch) + 1
    taps = np.floor(centres)[:, None] + np.arange(-reach, reach + 1)
    x = np.abs(taps - centres[:, None]) / stretch
    weights = np.where(
        x <= 1,
        ((a + 2) * x - (a + 3)) * x * x + 1,
        np.where(x < 2, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a, 0.0),
    )
    if antialias:
        weights = np.where((taps >= 0) & (taps < old), weights, 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1).astype(int)), weights)
    return matrix.astype(np.float32)
