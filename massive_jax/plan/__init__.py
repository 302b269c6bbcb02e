"""What a program will take on chips that need not be there, from shapes alone, and what the compiler says of it."""

from massive_jax.plan.advice import Job, check_fits, meshes
from massive_jax.plan.collectives import Collective
from massive_jax.plan.compiled import Compiled, compile_program, mesh_for
from massive_jax.plan.describe import config_of
from massive_jax.plan.estimate import Estimate, estimate, time_of
from massive_jax.plan.place import abstract_mesh, abstract_params, bytes_a_chip
from massive_jax.plan.programs import Program
from massive_jax.plan.work import Work, work_of

__all__ = [
    "Collective",
    "Compiled",
    "Estimate",
    "Job",
    "Program",
    "Work",
    "abstract_mesh",
    "abstract_params",
    "bytes_a_chip",
    "check_fits",
    "compile_program",
    "config_of",
    "estimate",
    "mesh_for",
    "meshes",
    "time_of",
    "work_of",
]
