"""`init`: a model with random parameters, of a preset's size or any other, without a download."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from massive_jax import zoo
from massive_jax.arguments import seed_number, shown
from massive_jax.dtypes import DTYPES, check_dtype
from massive_jax.memory import total_memory
from massive_jax.model import Model
from massive_jax.models import LanguageModel, TransformerConfig, VisionConfig, VisionTransformer, build, declared
from massive_jax.parallel import check_mesh, param_sharding
from massive_jax.weights.source import Origin


def init(
    model: str | Mapping[str, Any] | TransformerConfig | VisionConfig,
    seed: int = 0,
    dtype: str | None = None,
    mesh: Mesh | None = None,
) -> Model:
    """Makes a model with random parameters.

    The same seed gives the same parameters whatever the mesh, on which every device makes its own part only.

    Args:
      model: a zoo name, for the size of a preset; a Hugging Face config as a dict (`config.json`, read); or a config of
        this project.
      seed: of the draws, 32 bits.
      dtype: of parameters and activations, as for `load`; None for the config's own, float32 for most.
      mesh: devices to split the parameters over (see `massive_jax.parallel`); None for the default device.

    Returns:
      A `Model` without a tokenizer or an image processor.

    Raises:
      ValueError: no such preset; a config of no supported model type, or that cannot be; parameters that do not fit
        the devices' memory; an argument of a wrong type. Raised before anything is allocated.

    Examples:
      >>> import massive_jax as mj
      >>> config = {"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
      ...           "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
      >>> model = mj.init(config, seed=1)
      >>> model([[3, 1, 4]]).logits.shape
      (1, 3, 96)
    """
    seed = seed_number(seed)
    if dtype is not None:
        if not isinstance(dtype, str):
            raise ValueError(f"dtype is {shown(dtype)}; give one of {', '.join(DTYPES)}, or None.")
        check_dtype(dtype)
    check_mesh(mesh)
    name, config = described(model)
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    check_dtype(config.dtype)
    # Before the module is traced, which makes tables of a head's width: projections to queries alone.
    _check_fits(name, config, config.num_layers * config.hidden_size * config.num_heads * config.head_dim, mesh)
    module = build(config)
    parameters = declared(module)
    _check_fits(name, config, sum(math.prod(parameter.shape) for parameter in parameters.values()), mesh)
    shardings = flax.traverse_util.unflatten_dict(
        {path: param_sharding(it.axes, it.shape, mesh) for path, it in parameters.items()}, sep="/"
    )
    made = jax.jit(functools.partial(_drawn, module), out_shardings=None if mesh is None else shardings)
    words = f"random, seed {seed}"
    return Model(module, made(jax.random.key(seed)), config, name=f"{name} ({words})", origin=Origin(words))


def _check_fits(name: str, config: TransformerConfig | VisionConfig, count: int, mesh: Mesh | None) -> None:
    """ValueError where `count` parameters, of `name`, are more than the devices have memory for."""
    needed, there = count * config.jnp_dtype.itemsize, total_memory(mesh)
    if needed > there:
        raise ValueError(
            f"{name}: its parameters in {config.dtype} are {needed / 1e9:,.1f} GB or more, and the memory here is "
            f"{there / 1e9:,.1f} GB; give fewer layers or another dtype, or a mesh of more devices."
        )


def described(model: object) -> tuple[str, TransformerConfig | VisionConfig]:
    """Gives what `model` (see `init`) is called, and its config; ValueError where it is none."""
    if isinstance(model, TransformerConfig):
        return "language model", model
    if isinstance(model, VisionConfig):
        return "vision transformer", model
    if isinstance(model, str) and model in zoo.PRESETS:
        model = zoo.full_name(model)
        preset = zoo.PRESETS[model]
        if preset.config is None:
            raise ValueError(f"the sizes of {model} are in its checkpoint only; load it, or give a config.")
        return model, zoo.map_config(preset.config, model)[0]
    if isinstance(model, Mapping) and all(isinstance(key, str) for key in model):
        return str(model.get("model_type", "model")), zoo.map_config(model, "config")[0]
    raise ValueError(
        f"model is {shown(model)}; give a Hugging Face config as a dict, a TransformerConfig or VisionConfig, or a zoo "
        f"name: {', '.join(zoo.PRESETS)}."
    )


def _drawn(module: LanguageModel | VisionTransformer, key: jax.Array) -> Any:
    config = module.config
    params = module.init(key, jnp.zeros(config.example.shape, config.example.dtype))["params"]
    return jax.tree.map(lambda x: x.astype(config.jnp_dtype), params)
