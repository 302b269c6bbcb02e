"""Where arrays are on a mesh of devices that need not be there, and what one chip's share of a model is.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from massive_jax.models import TransformerConfig, VisionConfig, build, declared
from massive_jax.models.parameters import LAYERS
from massive_jax.parallel import AXES, RULES, batch_axes, param_sharding
from massive_jax.plan.work import size_of

Config = TransformerConfig | VisionConfig


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """Makes a mesh without devices, of axis -> devices along it."""
    return AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES)


def abstract_params(config: Config, mesh: Any = None, dtype: Any = None) -> Any:
    """Gives the shapes, dtypes and shardings of a model's parameters, as `massive_jax.load` would put them on `mesh`.

    Args:
      config: of the model.
      mesh: concrete or abstract; None for one device.
      dtype: of the parameters; None for the config's.
    """
    found = {
        path: jax.ShapeDtypeStruct(
            it.shape, dtype or config.jnp_dtype, sharding=param_sharding(it.axes, it.shape, mesh)
        )
        for path, it in declared(build(config)).items()
    }
    return flax.traverse_util.unflatten_dict(found, sep="/")


def abstract_batch(shape: tuple[int, ...], dtype: Any, mesh: Any = None, axis: int = 0) -> jax.ShapeDtypeStruct:
    """Gives the shape, dtype and sharding of inputs [B, …], or with B at another axis, split over the batch's axes."""
    if mesh is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    spec = PartitionSpec(*(None,) * axis, batch_axes(shape[axis], mesh))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def bytes_a_chip(tree: Any) -> int:
    """Gives the bytes that one chip holds of arrays with shardings; those without one it holds whole."""

    def part(x: Any) -> int:
        sharding = getattr(x, "sharding", None)
        shape = sharding.shard_shape(x.shape) if isinstance(sharding, NamedSharding) else x.shape
        return size_of(jax.ShapeDtypeStruct(shape, x.dtype))

    return sum(map(part, jax.tree.leaves(tree)))


def rows_a_chip(batch: int, mesh: Any) -> int:
    """Gives how many of a batch's sequences a chip computes."""
    return batch // math.prod(mesh.shape[axis] for axis in batch_axes(batch, mesh) or ())


def share_of(config: Config, mesh: Any) -> Config:
    """Gives the model that one chip computes: its heads, its part of the MLP's width, the vocabulary and the experts.

    Its width is the whole one's: parameters that are split along it are gathered where they are used.
    """

    def part(letter: str, size: int) -> int:
        parts = mesh.shape.get(RULES.get(letter, ""), 1)
        return size // parts if size % parts == 0 else size

    heads, kv_heads = part("H", config.num_heads), part("K", config.num_kv_heads)
    # Where there are fewer key heads than chips, each needs those of its own queries.
    kv_heads = max(n for n in range(1, kv_heads + 1) if heads % n == 0)
    changes: dict[str, Any] = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "intermediate_size": part("F", config.intermediate_size),
    }
    if isinstance(config, TransformerConfig):
        changes["vocab_size"] = part("V", config.vocab_size)
    if config.experts is not None:
        experts = part("E", config.experts.num_experts)
        chosen = max(1, config.experts.num_chosen * experts // config.experts.num_experts)
        changes["experts"] = dataclasses.replace(config.experts, num_experts=experts, num_chosen=chosen)
    return dataclasses.replace(config, **changes)


def gathered(config: Config, mesh: Any, itemsize: int) -> tuple[int, int]:
    """Gives the bytes of the layers' parameters that a chip gathers along the axis "fsdp": one layer's, and all."""
    size = 0
    for axes, whole, part in _split(config, mesh):
        if "fsdp" in part and axes.startswith(LAYERS):
            size += whole * itemsize // math.prod(mesh.shape[axis] for axis in part if axis != "fsdp")
    return (size // config.num_layers, size) if mesh.shape["fsdp"] > 1 else (0, 0)


def _split(config: Config, mesh: Any) -> Iterator[tuple[str, int, set[str]]]:
    """Of every parameter its axes, its size, and the axes of the mesh that it is split over."""
    for it in declared(build(config)).values():
        sharding = param_sharding(it.axes, it.shape, mesh)
        spec = () if sharding is None else sharding.spec
        yield it.axes, math.prod(it.shape), {axis for axis in spec if isinstance(axis, str)}
