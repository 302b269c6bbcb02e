"""Which axis of which array is split over which axis of the mesh: one table for every model.

Parameters are split by it, and activations, of which the width is whole and the batch is split: whatever the compiler
would rather do, a site's tensor is not gathered. Axis letters: see `massive_jax.probe.sites`; axes of the mesh: see
`massive_jax.parallel.meshes`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from massive_jax.parallel.meshes import batch_axes, current_mesh
from massive_jax.parallel.processes import on_mesh

# Axis letter -> the axis of the mesh that it is split over. The others (layers, head widths …) are not split.
RULES: Mapping[str, str] = {
    "D": "fsdp",
    "W": "fsdp",
    "H": "tensor",
    "K": "tensor",
    "F": "tensor",
    "V": "tensor",
    "E": "expert",
}
_LAYERS, _EXPERTS = "L", "E"  # axes along which equal parameters are stacked


def spec_of(axes: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Gives the rule for a parameter; an axis that does not divide stays whole.

    So do fewer key and value heads than there are devices along "tensor": each device has all, and query heads are
    split. A vector along the width, a norm's scale or a bias, is whole everywhere: all of it is needed where it is
    used; and so is a router, which every token meets whole.

    Args:
      axes: the parameter's, as it declares them (`massive_jax.models.declared`): "LDHN".
      shape: a size for each.
      mesh: what `make_mesh` made.
    """
    own = axes.removeprefix(_LAYERS).removeprefix(_EXPERTS)
    wide = len(own.replace(_EXPERTS, "")) > 1
    free = set(mesh.shape)
    found: list[str | None] = []
    for letter, size in zip(axes, shape, strict=True):
        axis = RULES.get(letter)
        whole = (axis == "fsdp" and not wide) or (letter == _EXPERTS and (not own or _EXPERTS in own))
        splits = axis in free and not whole and size % mesh.shape[axis] == 0 and mesh.shape[axis] > 1
        found.append(axis if splits else None)
        free -= {axis} if splits else set()
    return PartitionSpec(*found)


def param_sharding(axes: str, shape: Sequence[int], mesh: Mesh | None) -> NamedSharding | None:
    """Says where a parameter with these axes is kept on `mesh`; None without one."""
    return None if mesh is None else NamedSharding(mesh, spec_of(axes, shape, mesh))


def activation_spec(axes: str, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """Gives the rule for what is computed of a batch: axes "BTHN", say; what does not divide is whole.

    The batch is split over "data" and "fsdp", heads, MLP width and vocabulary over "tensor".
    """
    found: list[Any] = []
    for letter, size in zip(axes, shape, strict=True):
        if letter == "B":
            found.append(batch_axes(size, mesh))
            continue
        splits = RULES.get(letter) == "tensor" and "tensor" not in found and mesh.shape["tensor"] > 1
        found.append("tensor" if splits and size % mesh.shape["tensor"] == 0 else None)
    return PartitionSpec(*found)


def split(x: jax.Array, axes: str) -> jax.Array:
    """Tells the compiler how an activation with these axes is split; gives it back where no mesh is set."""
    if (mesh := current_mesh()) is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, activation_spec(axes, x.shape, mesh)))


def gathered(parameter: jax.Array, axes: str) -> jax.Array:
    """Gives a parameter, of one layer, as it is used: whole along "fsdp", split as before along the other axes.

    Its gradient is split as it is. Where no mesh is set, or it is not split along "fsdp", it is given back.
    """
    mesh = current_mesh()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return parameter
    spec, used = spec_of(axes, parameter.shape, mesh), used_spec(axes, parameter.shape, mesh)
    if spec == used:
        return parameter
    return _resplit(NamedSharding(mesh, spec), NamedSharding(mesh, used), parameter)


def used_spec(axes: str, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """Gives the rule for a parameter where it is used: as `spec_of`, but whole along "fsdp"."""
    return PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec_of(axes, shape, mesh)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _resplit(of_gradient: NamedSharding, wanted: NamedSharding, x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, wanted)


def _forward(of_gradient: NamedSharding, wanted: NamedSharding, x: jax.Array) -> tuple[jax.Array, None]:
    return _resplit(of_gradient, wanted, x), None


def _backward(of_gradient: NamedSharding, wanted: NamedSharding, kept: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(cotangent, of_gradient),)


_resplit.defvjp(_forward, _backward)


def put_batch(batch: Any, mesh: Mesh | None) -> Any:
    """Puts numpy arrays [B, …] on a mesh, each device its sequences; all of them where B does not divide.

    Of several processes each gives the whole batch. What is no numpy array stays as it is.
    """
    if mesh is None:
        return batch

    def put(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        return on_mesh(x, NamedSharding(mesh, PartitionSpec(batch_axes(len(x), mesh))))

    return jax.tree.map(put, batch)
