"""The linear map.

Axis letters: see `massive_jax.probe.sites`; C elements that a map contracts, A that it adds, Z all leading axes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.parameters import Module, Role
from massive_jax.parallel import activation_spec, current_mesh

# XLA's CPU backend adds the C terms of a float32 product up one after the other, so that the error grows with √C: at
# C = 1536 it is 2.8 times PyTorch's, and positions with massive activations carry it into the logits (3e-4). Sums of at
# least so many terms each, added up, are more exact than PyTorch's.
_TERMS = 128


class Projection(Module):
    """Applies a linear map given by its einsum, with an optional bias shaped like the axes it adds.

    Attributes:
      shape: of the kernel.
      equation: e.g. "BTD,DHN->BTHN".
      use_bias: adds a bias.
      role: of the kernel: "residual" where the output is added to the stream.
    """

    shape: tuple[int, ...]
    equation: str
    use_bias: bool = False
    role: Role = "kernel"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the map in the dtype of `x`."""
        inputs, output = self.equation.split("->")
        kernel_axes = inputs.split(",")[1]
        contracted = [i for i, axis in enumerate(kernel_axes) if axis not in output]
        added = [i for i, axis in enumerate(kernel_axes) if axis in output]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=contracted, out_axis=added)
        kernel = self.declare("kernel", kernel_axes, self.role, init, self.shape)
        if kernel.dtype != x.dtype:  # a parameter that qwix has quantised takes no cast
            kernel = kernel.astype(x.dtype)
        # What is split over devices along C is added up in as many sums already, and would be gathered to be cut anew.
        C = math.prod(self.shape[i] for i in contracted)
        pieces = 1 if _is_split(kernel_axes, self.shape, contracted) else _pieces(C)
        # One product of the input and the parameter as it is: what quantisers that step in between (qwix) look for.
        y = jnp.einsum(self.equation, x, kernel, _dot_general=_as_matrices(pieces))
        if self.use_bias:
            shape, zeros = tuple(self.shape[i] for i in added), nn.initializers.zeros_init()
            bias = self.declare("bias", "".join(kernel_axes[i] for i in added), "bias", zeros, shape)
            y = y + bias.astype(x.dtype)
        return y


def _pieces(C: int) -> int:
    return max((n for n in range(1, C // _TERMS + 1) if C % n == 0), default=1)


def _is_split(axes: str, shape: tuple[int, ...], which: list[int]) -> bool:
    """Whether some of these axes of a kernel are split over devices where it is used."""
    mesh = current_mesh()
    return mesh is not None and any(activation_spec(axes, shape, mesh)[i] is not None for i in which)


@functools.cache  # one object for a number, by which JAX knows that it has traced it
def _as_matrices(pieces: int) -> Callable[..., jax.Array]:
    """`jax.lax.dot_general` of an input and a kernel without batch axes, by `_product`.

    As matrices: for the gradient of a kernel with more axes XLA's CPU backend transposes the larger factor, along with
    all that is computed on the way to it.
    """

    def product(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, *_: Any, **__: Any) -> jax.Array:
        pairs = sorted(zip(*dimension_numbers[0], strict=True), key=lambda pair: pair[1])  # in the kernel's order
        of_x, of_kernel = ([pair[i] for pair in pairs] for i in (0, 1))
        kept = [i for i in range(x.ndim) if i not in of_x]
        added = [i for i in range(kernel.ndim) if i not in of_kernel]
        x, kernel = jnp.transpose(x, kept + of_x), jnp.transpose(kernel, of_kernel + added)
        leading, trailing = x.shape[: len(kept)], kernel.shape[len(of_kernel) :]
        C = math.prod(kernel.shape[: len(of_kernel)])
        return _product(x.reshape(-1, C), kernel.reshape(C, -1), pieces).reshape(*leading, *trailing)

    return product


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, pieces: int) -> jax.Array:
    """[Z, C] and [C, A] -> [Z, A]; on CPU in several sums."""
    if pieces == 1 or x.dtype != jnp.float32 or jax.default_backend() != "cpu":
        return x @ kernel
    return functools.reduce(jnp.add, map(jnp.matmul, jnp.split(x, pieces, axis=1), jnp.split(kernel, pieces)))


@_product.defjvp
def _product_jvp(pieces: int, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """In training one sum is exact enough, and faster."""
    return jax.jvp(jnp.matmul, primals, tangents)
