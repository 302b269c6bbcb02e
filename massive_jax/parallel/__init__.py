"""Meshes and sharding rules."""

from massive_jax.parallel.rules import RULES, make_mesh, param_sharding, spec_of

__all__ = ["RULES", "make_mesh", "param_sharding", "spec_of"]
