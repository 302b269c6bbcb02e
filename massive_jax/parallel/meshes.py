"""Meshes of devices: what their axes are for, and how one is named in a flag.

  data    copies of the parameters; the batch is split over it.
  fsdp    the batch is split over it, and the width of the parameters: each layer's are gathered where they are used, as
          in fully sharded data parallelism.
  tensor  heads, MLP width and vocabulary are split over it.
  expert  the experts of a mixture are split over it.

The results of an analysis are those of one device, whatever the mesh.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from massive_jax.arguments import is_index, shown, whole_number

AXES = ("data", "fsdp", "tensor", "expert")  # neighbours in a mesh differ in the last: the most is sent along it
BATCH_AXES = AXES[:2]
_PAIR = ("fsdp", "tensor")  # the axes that two bare numbers are the sizes of, from when there were only these
_FORMS = (
    "give two numbers of devices, those along fsdp and tensor, such as 8,1, or axes and their sizes, such as "
    "data:2,fsdp:4,tensor:2"
)


def make_mesh(
    data: int = 1, model: int = 1, *, fsdp: int | None = None, tensor: int | None = None, expert: int | None = None
) -> Mesh:
    """Makes a mesh of the first devices, for `load(…, mesh=…)`: see `massive_jax.parallel.meshes` for its axes.

    `make_mesh(data, model)` alone is the form from before there were four axes, and does what it did: it is
    `make_mesh(fsdp=data, tensor=model)`. With one of the other names, `data` counts copies of the parameters.

    Args:
      data: devices along the axis "data"; without any of the arguments after `model`, along "fsdp".
      model: the old name of `tensor`.
      fsdp: devices along the axis "fsdp"; likewise the others. None for 1.
      tensor: likewise.
      expert: likewise.

    Raises:
      ValueError: there are not that many devices; a number below 1; `model` beside its new name.
    """
    old = fsdp is None and tensor is None and expert is None
    if old:
        sizes = _checked({"data": 1, "fsdp": data, "tensor": model, "expert": 1})
    elif is_index(model) and model == 1:
        given = {"data": data, "fsdp": fsdp, "tensor": tensor, "expert": expert}
        sizes = _checked({axis: 1 if size is None else size for axis, size in given.items()})
    else:
        raise ValueError(f"model is {shown(model)}: the axis is called tensor beside fsdp, tensor or expert.")
    needed, available = math.prod(sizes.values()), len(jax.devices())
    if needed > available:
        named = f"{sizes['fsdp']} × {sizes['tensor']}" if old else mesh_text(sizes)
        raise ValueError(f"a mesh of {named} needs {needed} devices; {available} are here.")
    # Explicit axes, jax's default here, are not what Flax Linen's modules are written for.
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:needed]
    )


def parse_mesh(text: str) -> dict[str, int]:
    """Reads a mesh as a flag gives it: `make_mesh(**parse_mesh("data:2,fsdp:4,tensor:2"))`.

    Args:
      text: axes and their sizes, in any order, an axis that is left out being 1: "data:2,fsdp:4"; or two numbers, which
        are the sizes of fsdp and tensor: "8,1".

    Returns:
      Axis -> devices along it, every axis of `AXES` in that order.

    Raises:
      ValueError: neither of the two; an axis that there is not, or twice; a size that is no number from 1.
    """
    parts = [part.strip() for part in text.split(",")] if isinstance(text, str) else [""]
    if len(parts) == 2 and all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        named: list[tuple[str, str]] = list(zip(_PAIR, parts, strict=True))
    else:
        pieces = [part.partition(":") for part in parts]
        if not all(colon for _, colon, _ in pieces):
            raise ValueError(f"mesh is {shown(text)}; {_FORMS}.")
        named = [(axis.strip(), size.strip()) for axis, _, size in pieces]
    sizes = dict.fromkeys(AXES, 1)
    for number, (axis, size) in enumerate(named):
        if axis not in AXES:
            raise ValueError(f"mesh is {shown(text)}: there is no axis {shown(axis)}, only {', '.join(AXES)}.")
        if axis in dict(named[:number]):
            raise ValueError(f"mesh is {shown(text)}: {axis} is there twice.")
        if not re.fullmatch("0*[1-9][0-9]{0,8}", size, re.ASCII):
            raise ValueError(f"mesh is {shown(text)}: {shown(size)} devices along {axis}; {_FORMS}.")
        sizes[axis] = int(size)
    return sizes


def mesh_sizes(numbers: Sequence[int]) -> dict[str, int]:
    """Gives axis -> devices along it of a mesh that is a tuple: four numbers, as of `AXES`, or two, fsdp and tensor.

    Raises:
      ValueError: another count of numbers, or one below 1.
    """
    axes = {2: _PAIR, len(AXES): AXES}.get(len(numbers), ())
    if not axes or not all(is_index(n) and n >= 1 for n in numbers):
        raise ValueError(
            f"mesh is {shown(numbers)}, expected two numbers of devices, at least 1 each, along fsdp and tensor, or "
            f"four along {', '.join(AXES)}"
        )
    return dict.fromkeys(AXES, 1) | dict(zip(axes, map(int, numbers), strict=True))


def mesh_text(sizes: Mapping[str, int]) -> str:
    """Writes the sizes of a mesh as `parse_mesh` reads them, axes of one device left out: "fsdp:4,tensor:2"."""
    return ",".join(f"{axis}:{size}" for axis, size in sizes.items() if size > 1) or "data:1"


def check_mesh(mesh: object) -> None:
    """Checks that `mesh` is one that `make_mesh` makes, or None; ValueError otherwise."""
    if mesh is not None and not (isinstance(mesh, Mesh) and mesh.axis_names == AXES):
        raise ValueError(f"mesh is {shown(mesh)}; give what massive_jax.parallel.make_mesh makes, or None.")


def mesh_of_params(params: Any, *others: Any) -> Mesh | None:
    """Finds the mesh that parameters are split over; None for one device, and in a program that takes `others`."""
    leaves = jax.tree.leaves((params, others))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))
    return next((it.mesh for it in shardings if isinstance(it, NamedSharding) and isinstance(it.mesh, Mesh)), None)


def mesh_set(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Tells what is compiled inside the mesh: a kernel that the compiler does not split splits itself."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def current_mesh() -> Any:
    """Gives the mesh, abstract, that `mesh_set` has set for what is traced now; None for one device, or another's mesh.

    Inside `shard_map` there is none: each device works for itself there.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ours = mesh.axis_names == AXES and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if ours and mesh.size > 1 else None


def batch_axes(size: int, mesh: Any) -> tuple[str, ...] | None:
    """Says which axes of a mesh, concrete or abstract, a batch of `size` is split over; None where it does not divide.

    All that a batch is split over (`BATCH_AXES`), or else the first or the last of them alone.
    """
    for axes in (BATCH_AXES, BATCH_AXES[:1], BATCH_AXES[1:]):
        count = math.prod(mesh.shape.get(axis, 1) for axis in axes)
        if count > 1 and size % count == 0:
            return axes
    return None


def _checked(sizes: Mapping[str, Any]) -> dict[str, int]:
    return {axis: whole_number(axis, size, 1) for axis, size in sizes.items()}
