"""Meshes and sharding rules, and several processes."""

from massive_jax.parallel.processes import (
    check_shared,
    from_first,
    in_any,
    is_first,
    on_mesh,
    once,
    process_part,
    whole,
)
from massive_jax.parallel.rules import RULES, check_mesh, make_mesh, mesh_of_params, mesh_set, param_sharding, spec_of

__all__ = [
    "RULES",
    "check_mesh",
    "check_shared",
    "from_first",
    "in_any",
    "is_first",
    "make_mesh",
    "mesh_of_params",
    "mesh_set",
    "on_mesh",
    "once",
    "param_sharding",
    "process_part",
    "spec_of",
    "whole",
]
