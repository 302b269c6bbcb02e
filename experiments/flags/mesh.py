"""On which devices, and how they are split."""

from __future__ import annotations

import jax
from absl import flags
from jax.sharding import Mesh

from massive_jax.parallel import make_mesh, mesh_text, parse_mesh

MESH = flags.DEFINE_string(
    "mesh",
    None,
    "Devices: AXIS:SIZE,… of data (copies of the model), fsdp (its width is split), tensor (its heads and MLP) and "
    "expert; or two numbers, fsdp and tensor. None: one device, or of several processes fsdp over all.",
)


# Experiments that adopt the flags which all have, and load no model.
WITHOUT = frozenset({"ledger", "prepare_data"})


def _reads(text: str | None) -> bool:
    try:
        parse_mesh(text or "1,1")
    except ValueError as error:
        raise flags.ValidationError(str(error)) from None
    return True


flags.register_validator(MESH, _reads)


def sizes() -> dict[str, int]:
    """Devices along each axis, as the flags say."""
    if MESH.value is None:
        return parse_mesh(f"fsdp:{jax.device_count() if jax.process_count() > 1 else 1}")
    return parse_mesh(MESH.value)


def make() -> Mesh | None:
    """The mesh that the flags ask for; None for one device.

    Raises:
      ValueError: it needs more devices than there are; it leaves out some of several processes.
    """
    found = sizes()
    made = make_mesh(**found)
    if jax.process_count() == 1:
        return None if made.size == 1 else made
    if made.size != jax.device_count():
        raise ValueError(
            f"--mesh={mesh_text(found)} is {made.size} devices and leaves out some of the {jax.device_count()} of "
            f"{jax.process_count()} processes; give one of all, such as --mesh=fsdp:{jax.device_count()}."
        )
    return made
