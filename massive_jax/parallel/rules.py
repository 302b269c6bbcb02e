"""Which axis of which parameter is split over which axis of the mesh: one table for every model.

Axis letters: see `massive_jax.probe.sites`. The mesh has two axes: "data" (batches are split over it, and the width of
the parameters, as in fully sharded data parallelism) and "model" (heads, MLP width and vocabulary are split over it).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from massive_jax.arguments import shown

# Pattern of the end of a parameter's path -> mesh axes of its last axes; leading axes (layers, experts) are not split.
RULES: Sequence[tuple[str, tuple[str | None, ...]]] = (
    (r"(query|key|value)/kernel", ("data", "model", None)),  # [D, H, N]
    (r"(query|key|value)/bias", ("model", None)),  # [H, N]
    (r"attn/out/kernel", ("model", None, "data")),  # [H, N, D]
    (r"attn/slots/(key|value)", ("model", None, None)),  # [K, n, N]
    (r"attn/slots/logit", ("model",)),  # [H]
    (r"attn/gate/gate/kernel", ("data", "model", None)),  # [D, H, N]
    (r"mlp/(gate|up)/kernel", ("data", "model")),  # [D, F]
    (r"mlp/(gate|up)/bias", ("model",)),  # [F]
    (r"mlp/down/kernel", ("model", "data")),  # [F, D]
    (r"experts/(gate|up)", ("data", "model")),  # [D, F]
    (r"experts/(gate|up)_bias", ("model",)),  # [F]
    (r"experts/down", ("model", "data")),  # [F, D]
    (r"(^|/)(embedding|head)", ("model", "data")),  # [V, D]
    (r"head_bias", ("model",)),  # [V]
    (r".*", ()),  # norms and the rest: everywhere
)


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


def spec_of(path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Gives the rule for the parameter at `path` ("layers/attn/query/kernel"); axes that do not divide stay whole."""
    axes = next(axes for pattern, axes in RULES if re.search(pattern + "$", path))
    padded = (None,) * (len(shape) - len(axes)) + axes
    fitting = (
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(padded, shape, strict=True)
    )
    return PartitionSpec(*fitting)


def param_sharding(path: str, shape: Sequence[int], mesh: Mesh | None) -> NamedSharding | None:
    """Says where the parameter at `path` is kept on `mesh`; None without one."""
    return None if mesh is None else NamedSharding(mesh, spec_of(path, shape, mesh))
