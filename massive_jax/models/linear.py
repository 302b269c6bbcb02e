"""The linear map. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


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
        y = jnp.einsum(flat, x.reshape(-1, *x.shape[n:]), kernel.astype(x.dtype))
        y = y.reshape(*x.shape[:n], *y.shape[1:])
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), tuple(self.shape[i] for i in kept))
            y = y + bias.astype(x.dtype)
        return y
