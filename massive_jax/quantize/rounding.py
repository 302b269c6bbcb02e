"""Rounding of weights, and of what enters linear maps. Bits and scales are data: one program serves all settings.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.model import Model
from massive_jax.models import TransformerConfig, VisionConfig, declared
from massive_jax.parallel import mesh_of_params, mesh_set
from massive_jax.probe import ALL_SITES, Edit
from massive_jax.probe.operations import nearest

# What enters a linear map: queries, keys and values; attention's output projection; the MLP's two; the output head.
LINEAR_INPUTS = ("attn_norm", "head_out", "mlp_norm", "mlp_hidden", "final_norm")
LINEAR = ("kernel", "residual", "head")  # roles of their weights
SCALES: Mapping[str, str] = {
    "tensor": "one a matrix, and one a sequence's tensor",
    "token": "one an output channel of the weights, and one a token (of keys and values, a token and head)",
    "channel": "one an output channel of the weights, and one a channel of the inputs",
}
"""What shares a scale, by name."""
_CACHE = ("key", "value")


def to_grid(x: jax.Array, largest: jax.Array, bits: jax.Array | int) -> jax.Array:
    """Gives the nearest of 2^bits - 1 evenly spaced numbers from -largest to largest; `x` itself for 0 bits."""
    return jnp.where(bits == 0, x, nearest(jnp.clip(x, -largest, largest), largest, bits))


def round_inputs(x: jax.Array, value: Any) -> jax.Array:
    """Rounds a site's tensor [B, T, …], as the function of an `Edit`.

    Args:
      x: the tensor.
      value: bits (0 for none); scales, a number in the order of `SCALES`; and apart, bool [B or 1, T or 1]: the tokens
        that are left as they are and have no part in the scales of others.
    """
    apart = value["apart"].reshape(*value["apart"].shape, *(1,) * (x.ndim - 2))
    size = jnp.where(apart, 0.0, jnp.abs(x))
    # Of keys and values [B, T, K, N] a token's scale is a head's own; of a head_out too: its heads are cut alike.
    token = jnp.max(size, axis=tuple(range(2, x.ndim)), keepdims=True)
    tensor = jnp.max(token, axis=1, keepdims=True)
    channel = jnp.max(size, axis=1, keepdims=True)
    if value["heads"] is not None:
        token = jnp.max(size, axis=-1, keepdims=True)
    largest = jnp.where(value["scales"] == 0, tensor, jnp.where(value["scales"] == 1, token, channel))
    return jnp.where(apart, x, to_grid(x, largest, value["bits"]))


def input_edits(
    config: TransformerConfig | VisionConfig,
    bits: int,
    cache: int = 0,
    scales: str = "tensor",
    apart: np.ndarray | None = None,
) -> list[Edit]:
    """Makes edits that round every linear map's input, and keys and values.

    The same program runs them for other bits, scales and tokens.

    Args:
      config: of the model.
      bits: of the inputs; 0 leaves them.
      cache: bits of keys and values; 0 leaves them.
      scales: what shares a scale, a name in `SCALES`.
      apart: bool [B, T], the tokens that are kept as they are; None for none.
    """
    number = np.int32(list(SCALES).index(scales))
    kept = np.zeros((1, 1), bool) if apart is None else np.asarray(apart, bool)

    def edit(site: str, bits: int) -> Edit:
        heads = np.int32(1) if site in _CACHE else None
        value = {"bits": np.int32(bits), "scales": number, "apart": kept, "heads": heads}
        return Edit(site, layer="all" if ALL_SITES[site].per_layer else None, op=round_inputs, value=value)

    found = [edit(site, bits) for site in LINEAR_INPUTS if site not in config.absent_sites]
    return [*found, *(edit(site, cache) for site in _CACHE)]


def round_weights(model: Model, bits: int, scales: str = "tensor") -> Model:
    """Gives `model` with every linear map's weights rounded to `bits` bits; 0 leaves them.

    With one scale a map of a layer ("tensor"), or one for each of its outputs ("token", "channel"). The output head is
    a linear map, also where it is the embedding; tables, norms, biases and slots stay as they are. Weights on a mesh
    stay split as they are.
    """
    params = flax.traverse_util.flatten_dict(dict(model.params), sep="/")
    axes = []
    for path, parameter in declared(model.module).items():
        if parameter.role not in LINEAR:
            continue
        ndim = len(parameter.axes)
        whole = tuple(range(ndim - len(parameter.own_axes), ndim))
        inputs = (1,) if parameter.matrix is None else parameter.matrix[0]
        axes.append((path, whole, inputs))
    kernels = {path: params[path] for path, _, _ in axes}
    with mesh_set(mesh_of_params(model.params)):
        rounded = _rounded(kernels, jnp.int32(bits), jnp.bool(scales == "tensor"), axes=tuple(axes))
    # Where they were: programs that are compiled for the model's weights serve these, too.
    for path, x in rounded.items():
        held = params[path]
        params[path] = jax.device_put(x, held.sharding) if isinstance(held, jax.Array) else np.asarray(x)
    return model.with_params(model.config, flax.traverse_util.unflatten_dict(params, sep="/"))


@functools.partial(jax.jit, static_argnames="axes")
def _rounded(kernels: dict[str, jax.Array], bits: jax.Array, per_map: jax.Array, *, axes: Any) -> dict[str, jax.Array]:
    found = {}
    for path, whole, inputs in axes:
        x = kernels[path].astype(jnp.float32)
        channel = jnp.max(jnp.abs(x), axis=inputs, keepdims=True)
        largest = jnp.where(per_map, jnp.max(channel, axis=whole, keepdims=True), channel)
        found[path] = to_grid(x, largest, bits).astype(kernels[path].dtype)
    return found
