"""The linear map. Axis letters: see `massive_jax.probe.sites`; C contracted elements, Z for all leading axes."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# XLA's CPU backend adds the C terms of a float32 product up one after the other, so that the error grows with √C: at
# C = 1536 it is 2.8 times PyTorch's, and positions with massive activations carry it into the logits (3e-4). Sums of at
# least so many terms each, added up, are more exact than PyTorch's.
_TERMS = 128


class Projection(nn.Module):
    """A linear map given by its einsum, with an optional bias shaped like the axes it adds.

    Attributes:
      shape: of the kernel.
      equation: e.g. "BTD,DHN->BTHN".
      use_bias: adds a bias.
    """

    shape: tuple[int, ...]
    equation: str
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the map in the dtype of `x`."""
        inputs, output = self.equation.split("->")
        axes, kernel_axes = inputs.split(",")
        contracted = [i for i, axis in enumerate(kernel_axes) if axis not in output]
        kept = [i for i, axis in enumerate(kernel_axes) if axis in output]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=contracted, out_axis=kept)
        kernel = self.param("kernel", init, self.shape)
        # Leading axes as one: XLA's CPU backend takes twice as long for the gradient of a kernel otherwise.
        n = next(i for i, (theirs, ours) in enumerate(zip(axes, output, strict=False)) if theirs != ours)
        flat = f"Z{axes[n:]},{kernel_axes}->Z{output[n:]}"
        y = _product(flat, x.reshape(-1, *x.shape[n:]), kernel.astype(x.dtype))
        y = y.reshape(*x.shape[:n], *y.shape[1:])
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), tuple(self.shape[i] for i in kept))
            y = y + bias.astype(x.dtype)
        return y


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The einsum of `x` and `kernel`; on CPU in several sums."""
    inputs, output = equation.split("->")
    axes, kernel_axes = inputs.split(",")
    contracted = "".join(axis for axis in kernel_axes if axis not in output)
    kept, added = ("".join(axis for axis in names if axis in output) for names in (axes, kernel_axes))
    C = math.prod(kernel.shape[kernel_axes.index(axis)] for axis in contracted)
    pieces = max((n for n in range(1, C // _TERMS + 1) if C % n == 0), default=1)
    if pieces == 1 or x.dtype != jnp.float32 or jax.default_backend() != "cpu":
        return jnp.einsum(equation, x, kernel)
    x = jnp.einsum(f"{axes}->{kept}{contracted}", x)
    kernel = jnp.einsum(f"{kernel_axes}->{contracted}{added}", kernel)
    shape = (*x.shape[: len(kept)], *kernel.shape[len(contracted) :])
    rows = jnp.split(x.reshape(-1, C), pieces, axis=1)
    columns = jnp.split(kernel.reshape(C, -1), pieces, axis=0)
    total = functools.reduce(jnp.add, map(jnp.matmul, rows, columns))
    return jnp.einsum(f"{kept}{added}->{output}", total.reshape(shape))


@_product.defjvp
def _product_jvp(equation: str, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """In training one sum is exact enough, and faster."""
    return jax.jvp(functools.partial(jnp.einsum, equation), primals, tangents)
