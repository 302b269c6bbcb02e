"""Norms. Statistics are float32 whatever the dtype of the activations."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.dtypes import wide
from massive_jax.models.options import NonNegative, check_options
from massive_jax.models.parameters import Module

NormKind: TypeAlias = Literal["rms", "layer"]


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """Configures a norm over the last axis."""

    kind: NormKind = "rms"
    """"rms" (arXiv 1910.07467) or "layer" (arXiv 1607.06450)."""
    eps: NonNegative = 1e-6
    """Added to the mean square, or to the variance."""
    bias: bool = True
    """Of a layer norm."""
    scale: bool = True
    """Whether there is one; else it is 1."""
    unit_offset: bool = False
    """The stored scale is the scale minus one (Gemma)."""

    def __post_init__(self) -> None:
        check_options(self, "norm")


class Norm(Module):
    """Normalises over the last axis (or axes), as its config says. [..., D] -> [..., D], dtype kept.

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
            scale = self.declare("scale", self.axes, "scale", init, shape).astype(dtype) + cfg.unit_offset
        y = x.astype(dtype)
        if cfg.kind == "layer":
            # Two passes: E[x²] - E[x]² loses all precision where the mean is large, as it is beside massive dims.
            y = y - jnp.mean(y, axis=axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=axes, keepdims=True) + cfg.eps) * scale
        if cfg.kind == "layer" and cfg.bias:
            y = y + self.declare("bias", self.axes, "bias", nn.initializers.zeros_init(), shape).astype(dtype)
        return y.astype(x.dtype)
