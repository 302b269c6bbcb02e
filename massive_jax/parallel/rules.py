"""Which axis of which parameter is split over which axis of the mesh: one table for every model.

Axis letters: see `massive_jax.probe.sites`; axes of the mesh: see `massive_jax.parallel.meshes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
