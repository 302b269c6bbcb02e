"""Which axis of which parameter is split over which axis of the mesh: one table for every model.

Axis letters: see `massive_jax.probe.sites`. The mesh has two axes: "data" (batches are split over it, and the width of
the parameters, as in fully sharded data parallelism) and "model" (heads, MLP width and vocabulary are split over it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from massive_jax.arguments import shown

# Axis letter -> the axis of the mesh that it is split over. The others (layers, experts, head widths …) are not split.
RULES: Mapping[str, str] = {
    "D": "data",
    "W": "data",
    "H": "model",
    "K": "model",
    "F": "model",
    "V": "model",
}
_STACKED = "LE"  # axes along which equal parameters are stacked


def make_mesh(data: int = 1, model: int = 1) -> Mesh:
    """Makes a mesh of data × model devices, for `load(…, mesh=…)`.

    Raises:
      ValueError: there are not that many devices.
    """
    available = len(jax.devices())
    if data < 1 or model < 1 or data * model > available:
        raise ValueError(f"a mesh of {data} × {model} needs {data * model} devices; {available} are here.")
    # Explicit axes, jax's default here, are not what Flax Linen's modules are written for.
    return jax.make_mesh(
        (data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: data * model]
    )


def check_mesh(mesh: object) -> None:
    """Checks that `mesh` is one that `make_mesh` makes, or None; ValueError otherwise."""
    if mesh is not None and not (isinstance(mesh, Mesh) and mesh.axis_names == ("data", "model")):
        raise ValueError(f"mesh is {shown(mesh)}; give what massive_jax.parallel.make_mesh makes, or None.")


def mesh_of_params(params: Any, *others: Any) -> Mesh | None:
    """Finds the mesh that parameters are split over; None for one device, and in a program that takes `others`."""
    leaves = jax.tree.leaves((params, others))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    sharding = getattr(leaves[0], "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def mesh_set(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Tells what is compiled inside the mesh: a kernel that the compiler does not split splits itself."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def spec_of(axes: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Gives the rule for the parameter at `path` ("layers/attn/query/kernel"); axes that do not divide stay whole.

    A vector along the width, a norm's scale or a bias, is whole everywhere: all of it is needed where it is used.

    Args:
      axes: the parameter's, as it declares them (`massive_jax.models.declared`): "LDHN".
      shape: a size for each.
      mesh: what `make_mesh` made.
    """
    wide = len(axes.translate({ord(letter): None for letter in _STACKED})) > 1
    free = set(mesh.shape)
    found: list[str | None] = []
    for letter, size in zip(axes, shape, strict=True):
        axis = RULES.get(letter)
        splits = axis in free and size % mesh.shape[axis] == 0 and (axis != "data" or wide)
        found.append(axis if splits else None)
        free -= {axis} if splits else set()
    return PartitionSpec(*found)


def param_sharding(axes: str, shape: Sequence[int], mesh: Mesh | None) -> NamedSharding | None:
    """Says where the parameter at `path` is kept on `mesh`; None without one."""
    return None if mesh is None else NamedSharding(mesh, spec_of(axes, shape, mesh))
