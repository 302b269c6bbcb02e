"""Meshes and sharding rules, and several processes."""

from massive_jax.parallel.meshes import (
    AXES,
    BATCH_AXES,
    batch_axes,
    check_mesh,
    make_mesh,
    mesh_of_params,
    mesh_set,
    mesh_sizes,
    mesh_text,
    parse_mesh,
)
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
from massive_jax.parallel.rules import RULES, param_sharding, spec_of
from massive_jax.parallel.together import agree, bytes_from_first, check_same, everywhere, fetch, leave, watch

__all__ = [
    "AXES",
    "BATCH_AXES",
    "RULES",
    "agree",
    "batch_axes",
    "bytes_from_first",
    "check_mesh",
    "check_same",
    "check_shared",
    "everywhere",
    "fetch",
    "from_first",
    "in_any",
    "is_first",
    "leave",
    "make_mesh",
    "mesh_of_params",
    "mesh_set",
    "mesh_sizes",
    "mesh_text",
    "on_mesh",
    "once",
    "param_sharding",
    "parse_mesh",
    "process_part",
    "spec_of",
    "watch",
    "whole",
]
