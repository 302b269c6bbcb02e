"""LoRA (arXiv 2106.09685): low-rank changes of a model's kernels, trained in place of them.

Which axes of a kernel a linear map reads and which it writes, and where it is split on a mesh, is what the parameter
declares (`massive_jax.models.declared`): any family, grouped heads and experts included. Adapters are a dict, so that
optax trains them as it trains parameters. Axis letters: see `massive_jax.probe.sites`; r the rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import seed_number, shown, whole_number
from massive_jax.model import Model
from massive_jax.models import declared
from massive_jax.parallel import mesh_of_params, param_sharding

Adapters: TypeAlias = dict[str, dict[str, jax.Array]]
QUERY_AND_VALUE = "layers/attn/(query|value)/kernel"  # where the paper puts them (section 4.2)


def lora_init(model: Model, rank: int = 8, where: str = QUERY_AND_VALUE, seed: int = 0) -> Adapters:
    """Makes adapters that change nothing yet, split over a mesh as the kernels are.

    Args:
      model: its kernels are adapted.
      rank: r, of each layer's change.
      where: a regular expression of the paths of kernels: "layers/.*/kernel" for every linear map of the blocks.
      seed: of the draws.

    Returns:
      path -> {"down": [L, …, r], normal with variance 1 / fan-in, "up": [L, r, …], zeros}, float32.

    Raises:
      ValueError: no regular expression; no kernel has such a path; a rank below 1.
    """
    try:
        pattern = re.compile(where)
    except (re.error, TypeError) as error:
        raise ValueError(f"where is {shown(where)}, no regular expression: {error}.") from None
    rank, rng = whole_number("rank", rank, 1), np.random.default_rng(seed_number(seed))
    parameters, mesh = declared(Model.of(model).module), mesh_of_params(model.params)
    paths = [path for path, it in parameters.items() if it.matrix and pattern.fullmatch(path)]
    if not paths:
        kernels = ", ".join(path for path, it in parameters.items() if it.matrix)
        raise ValueError(f"no kernel has a path that {where!r} matches; there are {kernels}.")
    adapters: Adapters = {}
    for path in paths:
        it = parameters[path]
        (inputs, outputs), r = it.matrix or ((), ()), len(it.axes)  # the rank's axis
        stacked = tuple(range(inputs[0]))
        axes, shape = it.axes + "r", (*it.shape, rank)
        made = {}
        for name, kept in (("down", (*stacked, *inputs, r)), ("up", (*stacked, r, *outputs))):
            sizes = tuple(shape[i] for i in kept)
            x = np.zeros(sizes, np.float32)
            if name == "down":
                x = rng.standard_normal(sizes, np.float32) / math.sqrt(math.prod(shape[i] for i in inputs))
            made[name] = jax.device_put(x, param_sharding("".join(axes[i] for i in kept), sizes, mesh))
        adapters[path] = made
    return adapters


def lora_merge(params: Mapping[str, Any], adapters: Adapters, scale: float = 1.0) -> dict[str, Any]:
    """Adds adapters to the kernels that they are of: kernel + scale · down · up. Pure: `jax.grad` goes through it.

    Args:
      params: of the model.
      adapters: what `lora_init` made, trained perhaps.
      scale: α / r in the paper's words.

    Raises:
      ValueError: something else; an adapter of no kernel that is there, or of one of another shape.
    """
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    if not isinstance(adapters, Mapping) or any(not {"down", "up"} <= {*it} for it in adapters.values()):
        raise ValueError(f"adapters is {shown(adapters)}; give what lora_init made.")
    for path, it in adapters.items():
        if path not in flat:
            raise ValueError(f"there is no kernel {path}, which has an adapter: it is another model's.")
        kernel, down, up = flat[path], it["down"], it["up"]
        stacked = down.ndim + up.ndim - 2 - kernel.ndim
        lead, ins, outs = "abc"[:stacked], "ijk"[: down.ndim - 1 - stacked], "xyz"[: up.ndim - 1 - stacked]
        change = jnp.einsum(f"{lead}{ins}r,{lead}r{outs}->{lead}{ins}{outs}", down, up)
        if change.shape != kernel.shape:
            raise ValueError(f"{path} is {list(kernel.shape)}, its adapter {list(change.shape)}: another model's.")
        flat[path] = (kernel.astype(change.dtype) + scale * change).astype(kernel.dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
