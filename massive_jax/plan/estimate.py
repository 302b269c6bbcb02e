"""What a program takes on each of several chips, from shapes alone: memory by part, work, what is sent, the time.

The time is a roofline's: that of whichever takes longest of products, memory and interconnect, if each ran at the
vendor's figure and beside the others, up to their sum, if none did. Real programs reach a half or so of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax

from massive_jax.chips import Chips
from massive_jax.plan.collectives import Collective, expected
from massive_jax.plan.place import (
    Config,
    abstract_mesh,
    abstract_params,
    bytes_a_chip,
    gathered,
    rows_a_chip,
    share_of,
)
from massive_jax.plan.programs import Program
from massive_jax.plan.work import Work, size_of, work_of
from massive_jax.train import flops_per_token


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Holds what one run of a program takes on each chip.

    Attributes:
      name: of the program.
      runs: how often the experiment runs it.
      memory: part -> bytes held at once: "parameters", "captured", "cache", "optimiser", "gradients", "gathered
        parameters" (of a layer), "activations".
      flops: of products.
      moved: bytes read from and written to memory.
      collectives: what is sent.
      compute, bandwidth, interconnect: seconds that these would take alone.
    """

    name: str
    runs: int
    memory: Mapping[str, int]
    flops: float
    moved: float
    collectives: tuple[Collective, ...]
    compute: float
    bandwidth: float
    interconnect: float

    @property
    def total(self) -> int:
        """Gives the bytes held at once."""
        return sum(self.memory.values())

    @property
    def least(self) -> float:
        """Gives the seconds of one run where all that takes time overlaps."""
        return max(self.compute, self.bandwidth, self.interconnect)

    @property
    def most(self) -> float:
        """Gives the seconds of one run where nothing does."""
        return self.compute + self.bandwidth + self.interconnect


def estimate(program: Program, config: Config, chips: Chips, sizes: Mapping[str, int]) -> Estimate:
    """Works out what a program takes on each chip; nothing is allocated and nothing compiled.

    Args:
      program: see `massive_jax.plan.programs`.
      config: of the model, in the dtype that it runs in.
      chips: what it runs on.
      sizes: axis -> chips along it (`massive_jax.parallel.parse_mesh`).
    """
    mesh, chip = abstract_mesh(sizes), chips.chip
    whole = program.make(config, program.batch, mesh)
    memory = {part: bytes_a_chip(tree) for part, tree in whole.parts.items()}
    share, rows = share_of(config, mesh), rows_a_chip(program.batch, mesh)
    work, captured, kept_as = _worked(program, share, rows)
    of_layer, _ = gathered(config, mesh, config.jnp_dtype.itemsize)
    held = work.held
    if program.trains:
        # As a training counts them itself: what an attention kernel does inside is not in the program.
        of_token = flops_per_token(share, program.length)
        work = dataclasses.replace(work, flops=of_token * rows * program.length * program.passes)
        # The step's gradients are those of all layers, of the whole width: each chip keeps its part of them only.
        gradients = bytes_a_chip(abstract_params(config, mesh, "float32"))
        held -= bytes_a_chip(abstract_params(share, None, "float32"))
        memory["gradients"] = gradients
    memory[kept_as] = memory.get(kept_as, 0) + captured
    memory["gathered parameters"] = of_layer
    memory["activations"] = max(0, held - captured)
    sent = expected(
        config,
        mesh,
        program.batch,
        program.tokens or program.length,
        passes=program.passes,
        trains=program.trains,
        param_bytes=config.jnp_dtype.itemsize,
    )
    return Estimate(
        name=program.name,
        runs=program.runs,
        memory={part: size for part, size in memory.items() if size},
        flops=work.flops,
        moved=work.moved,
        collectives=tuple(sent),
        compute=work.flops / chip.flops_of(config.dtype),
        bandwidth=work.moved / chip.bandwidth,
        interconnect=sum(one.sent for one in sent) / chip.sends_along_axis,
    )


@functools.lru_cache(maxsize=64)  # meshes along data and along fsdp give a chip the same
def _worked(program: Program, share: Config, rows: int) -> tuple[Work, int, str]:
    """What a chip's share takes; of its results that were asked for the bytes, and the part of the memory."""
    call = program.make(share, rows, None)
    traced = call.function.trace(*call.arguments)
    captured = call.captured(traced.out_info)
    return work_of(traced), sum(map(size_of, jax.tree.leaves(captured))), call.kept_as


def time_of(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Gives the least and the most seconds of all runs."""
    return sum(one.runs * one.least for one in estimates), sum(one.runs * one.most for one in estimates)


def most_held(estimates: Sequence[Estimate]) -> int:
    """Gives the bytes that a chip has to have: programs run one after the other."""
    return max(one.total for one in estimates)


def fits(estimates: Sequence[Estimate], chips: Chips) -> bool:
    """Tells whether every program has room on a chip."""
    return most_held(estimates) <= chips.chip.usable
