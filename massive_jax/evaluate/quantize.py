"""What a model costs when it is quantised: each linear map's input, and its weights, a scale per tensor."""

from __future__ import annotations

import flax.traverse_util
import jax
import numpy as np

from massive_jax.arguments import whole_number
from massive_jax.model import Model
from massive_jax.models import TransformerConfig, VisionConfig, declared
from massive_jax.parallel import fetch
from massive_jax.probe import ALL_SITES, Edit

# What enters a linear map: queries, keys and values; attention's output projection; the MLP's two; the output head.
LINEAR_INPUTS = ("attn_norm", "head_out", "mlp_norm", "mlp_hidden", "final_norm")
_LINEAR = ("kernel", "residual", "head")  # roles of their weights


def quantized_inputs(config: TransformerConfig | VisionConfig, bits: int = 8) -> list[Edit]:
    """Makes edits that round every linear map's input to `bits` bits, one scale for a sequence's whole tensor.

    One massive activation sets the scale, and everything else is rounded away: why quantisation methods treat it apart.
    """
    bits = whole_number("bits", bits, 2, 16)
    return [
        Edit(site, layer="all" if ALL_SITES[site].per_layer else None, op="quantize", value=bits)
        for site in LINEAR_INPUTS
        if site not in config.absent_sites
    ]


def quantized_weights(model: Model, bits: int = 8) -> Model:
    """Gives `model` with every linear map's weights rounded to `bits` bits, one scale for a map of a layer.

    As `quantized_inputs` rounds: to the nearest of 2^bits - 1 evenly spaced numbers, up to the largest magnitude. The
    output head is a linear map, also where it is the embedding; tables, norms, biases and slots stay as they are.
    Weights on a mesh stay split as they are.

    Raises:
      ValueError: a number of bits that is not from 2 to 16.
    """
    bits = whole_number("bits", bits, 2, 16)
    params = flax.traverse_util.flatten_dict(dict(model.params), sep="/")
    for path, parameter in declared(model.module).items():
        if parameter.role not in _LINEAR:
            continue
        x = np.asarray(fetch(params[path]), np.float32)
        axes = tuple(range(x.ndim - len(parameter.own_axes), x.ndim))
        step = np.abs(x).max(axis=axes, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
        step = np.maximum(step, np.finfo(np.float32).tiny)
        held, rounded = params[path], (np.round(x / step) * step).astype(params[path].dtype)
        # Where it was: programs that are compiled for the model's weights serve these, too.
        params[path] = jax.device_put(rounded, held.sharding) if isinstance(held, jax.Array) else rounded
    return model.with_params(model.config, flax.traverse_util.unflatten_dict(params, sep="/"))
