"""Norms. Statistics are float32 whatever the dtype of the activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.dtypes import wide
from massive_jax.models.options import NonNegative, Positive, check_options
from massive_jax.models.parameters import Module

NormKind: TypeAlias = Literal["rms", "layer", "dynamic_tanh"]


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """Configures a norm over the last axis, or what is in its place."""

    kind: NormKind = "rms"
    """"rms" (arXiv 1910.07467), "layer" (arXiv 1607.06450) or "dynamic_tanh": tanh(α·x), without statistics of x, α one
    learned number (arXiv 2503.10622). Its paper also multiplies a language model's embedding by a number that starts at
    √D and is learned; `embedding_scale` is one that stays.
    """
    eps: NonNegative = 1e-6
    """Added to the mean square, or to the variance; a dynamic tanh has none."""
    bias: bool = True
    """Of a layer norm or a dynamic tanh; an RMS norm has none."""
    scale: bool = True
    """Whether there is one; else it is 1."""
    unit_offset: bool = False
    """The stored scale is the scale minus one (Gemma)."""
    single_scale: bool = False
    """Whether the scale is one learned number for all dims, instead of one for each (arXiv 2506.19697)."""
    alpha: Positive = 0.5
    """Where the α of a dynamic tanh starts, in every norm of the model."""

    def __post_init__(self) -> None:
        check_options(self, "norm", self._inconsistencies())

    def _inconsistencies(self) -> Iterator[str]:
        if self.single_scale and not self.scale:
            yield "single_scale is of a scale, and scale is False"

    @property
    def has_bias(self) -> bool:
        """Tells whether something is added after the scale."""
        return self.bias and self.kind != "rms"


class Norm(Module):
    """Normalises over the last axis (or axes), as its config says. [..., D] -> [..., D], dtype kept.

    Parameters: scale [D], or [1] where it is a single one, bias [D], alpha [1] of a dynamic tanh.

    Attributes:
      config: which norm.
      axes: letters of the last axes, which are normalised together ("HN" for all heads of a query at once).
    """

    config: NormConfig
    axes: str = "D"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x`."""
        cfg = self.config
        axes = tuple(range(-len(self.axes), 0))
        shape = x.shape[-len(self.axes) :]
        init = nn.initializers.zeros_init() if cfg.unit_offset else nn.initializers.ones_init()
        dtype = wide(x.dtype)
        scale: jax.Array | float = 1.0
        if cfg.scale:
            its_axes, its_shape = ("1", (1,)) if cfg.single_scale else (self.axes, shape)
            scale = self.declare("scale", its_axes, "scale", init, its_shape).astype(dtype) + cfg.unit_offset
        y = x.astype(dtype)
        if cfg.kind == "layer":
            # Two passes: E[x²] - E[x]² loses all precision where the mean is large, as it is beside massive dims.
            y = y - jnp.mean(y, axis=axes, keepdims=True)
        if cfg.kind == "dynamic_tanh":
            start = nn.initializers.constant(cfg.alpha)
            y = jnp.tanh(self.declare("alpha", "1", "scale", start, (1,)).astype(dtype) * y) * scale
        else:
            y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=axes, keepdims=True) + cfg.eps) * scale
        if cfg.has_bias:
            y = y + self.declare("bias", self.axes, "bias", nn.initializers.zeros_init(), shape).astype(dtype)
        return y.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class FrozenNorm:
    """Holds what a norm is while its statistics stay as they are: factor · (x - the mean of x) + bias.

    Attributes:
      factor: [..., D] or [..., 1].
      centred: whether the mean is taken off.
      bias: [D], or 0.
    """

    factor: jax.Array
    centred: bool
    bias: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gives the norm of `x`, [..., D]."""
        return self._centred(x) * self.factor + self.bias

    def back(self, direction: jax.Array) -> jax.Array:
        """Gives the direction before the norm of what lies along `direction` after it: [..., D] -> [..., D]."""
        return self._centred(direction * self.factor)

    def _centred(self, x: jax.Array) -> jax.Array:
        return x - jnp.mean(x, axis=-1, keepdims=True) if self.centred else x


def frozen_norm(config: NormConfig, params: Any, x: jax.Array) -> FrozenNorm:
    """Gives the norm of these parameters with its statistics those of `x`, [..., D].

    A dynamic tanh has none: what stays is tanh(α·x) / x, a factor of each element in place of one a token.
    """
    y = x.astype(wide(x.dtype))
    centred = config.kind == "layer"
    if config.kind == "dynamic_tanh":
        alpha = params["alpha"].astype(y.dtype)
        y = alpha * y
        small = jnp.abs(y) < 1e-2  # where the quotient is 0 / 0, or nearly
        factor = alpha * jnp.where(small, 1 - jnp.square(y) / 3, jnp.tanh(y) / jnp.where(small, 1, y))
    else:
        y = y - jnp.mean(y, axis=-1, keepdims=True) if centred else y
        factor = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + config.eps)
    if config.scale:
        factor = factor * (params["scale"].astype(y.dtype) + config.unit_offset)
    return FrozenNorm(factor, centred, params["bias"].astype(y.dtype) if config.has_bias else 0.0)
