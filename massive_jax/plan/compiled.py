"""What the compiler itself says of a program: for TPUs by libtpu, without one; for the devices that are here.

A TPU's program is compiled for a topology: `pip install 'massive_jax[tpu]'` is enough, with JAX_PLATFORMS=cpu.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from massive_jax.chips import Chips
from massive_jax.parallel import AXES, make_mesh, mesh_set
from massive_jax.plan.collectives import Collective, in_program
from massive_jax.plan.place import Config, bytes_a_chip
from massive_jax.plan.programs import Program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Holds what the compiler plans for each chip, in bytes.

    Attributes:
      arguments: what the program is given, parameters that it does not read among it: they are in memory, too.
      outputs: its results that are not in the place of an argument.
      temporary: what it holds besides.
      collectives: what is sent.
      text: the program.
    """

    arguments: int
    outputs: int
    temporary: int
    collectives: tuple[Collective, ...]
    text: str

    @property
    def total(self) -> int:
        """Gives the bytes that a chip has to have."""
        return self.arguments + self.outputs + self.temporary


def topology_devices(topology: str) -> np.ndarray:
    """Gives the devices of a TPU topology ("v5e:4x4"), which need not be there, to compile for.

    Raises:
      ValueError: libtpu is not installed, or does not know the topology.
    """
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it asks a machine that is none of Google's who it is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several may compile side by side: no chip is taken
    # It takes a host to have four chips, in a square, and a topology to be of whole hosts.
    alone: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        return np.array(topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone).devices)
    except Exception as error:  # of jaxlib's or libtpu's, by what is missing
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"libtpu does not give the topology {topology} ({reason}): pip install 'massive_jax[tpu]', and set "
            "JAX_PLATFORMS=cpu where there is no TPU."
        ) from None


def mesh_on(devices: np.ndarray, sizes: Mapping[str, int]) -> Mesh:
    """Makes a mesh of the first devices of a topology, of axis -> devices along it."""
    shape = tuple(sizes[axis] for axis in AXES)
    return Mesh(devices.reshape(-1)[: math.prod(shape)].reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_for(chips: Chips, sizes: Mapping[str, int]) -> Mesh:
    """Makes a mesh to compile for: of a TPU topology, or of this machine's GPUs; ValueError where these are others."""
    if chips.topology is not None:
        return mesh_on(topology_devices(chips.topology), sizes)
    kind = jax.devices()[0].device_kind
    if not kind.startswith(chips.chip.kind) or len(jax.devices()) < chips.count:
        raise ValueError(
            f"--compile for {chips} needs {chips.count} of them here; there are {len(jax.devices())} × {kind}. Leave "
            "it out, or give a TPU, which libtpu compiles for anywhere."
        )
    return make_mesh(**sizes)


@contextlib.contextmanager
def as_on(mesh: Mesh) -> Iterator[None]:
    """Traces what follows as on a mesh's devices: kernels ask for the platform, to be interpreted where it is none."""
    platform, asked = mesh.devices.flat[0].platform, jax.default_backend
    jax.default_backend = lambda: platform
    try:
        with mesh_set(mesh):
            yield
    finally:
        jax.default_backend = asked


def compile_program(program: Program, config: Config, mesh: Mesh) -> Compiled:
    """Compiles a program for the devices of a mesh.

    Raises:
      ValueError: the compiler refuses it, one line of what it says: more memory than there is, most often.
    """
    with as_on(mesh):
        call = program.make(config, program.batch, mesh)
        lowered = call.function.lower(*call.arguments)
        try:
            with warnings.catch_warnings():
                # What is compiled for chips that are not here is written to jax's cache, but cannot be read from it.
                warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
                found = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"the compiler refuses {program.name!r}: {_refusal(str(error))}") from None
    memory, text = found.memory_analysis(), found.as_text() or ""
    return Compiled(
        arguments=max(memory.argument_size_in_bytes, bytes_a_chip(_arrays(call.arguments))),  # jax leaves some out
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        collectives=tuple(in_program(text, dict(mesh.shape))),
        text=text,
    )


def _arrays(arguments: Any) -> list[Any]:
    """Those of the arguments that are arrays, or the shapes of some."""
    return [x for x in jax.tree.leaves(arguments) if hasattr(x, "shape") and hasattr(x, "dtype")]


def _refusal(message: str) -> str:
    """What of the compiler's message says most, in a line."""
    found = re.search(r"Ran out of memory[^\n]*", message)
    return found[0] if found else message.strip().splitlines()[0][:300]
