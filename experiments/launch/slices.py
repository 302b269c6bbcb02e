"""What a TPU slice is called where it is asked for, and how many hosts it has.

Read in November 2026: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for names, topologies and hosts,
docs.cloud.google.com/tpu/docs/runtimes for the software, and
docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus for what GKE calls its nodes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

# Chips -> topology.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}


@dataclasses.dataclass(frozen=True)
class _Generation:
    prefix: str  # of an accelerator type
    cores: int  # TensorCores of a chip, as far as the accelerator type counts them
    topologies: Mapping[int, str]
    on_one_host: int  # the most chips; what is larger has 4 a host
    runtime: str
    node: str  # GKE's label cloud.google.com/gke-tpu-accelerator
    machine: str  # of GKE, without the number of chips


_GENERATIONS: Mapping[str, _Generation] = {
    "v4": _Generation("v4", 2, _CUBE, 4, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu"),
    "v5e": _Generation("v5litepod", 1, _FLAT, 8, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu"),
    "v5p": _Generation("v5p", 2, _CUBE, 4, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu"),
    "v6e": _Generation("v6e", 1, _FLAT, 8, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Names a TPU slice.

    Attributes:
      generation: "v4", "v5e", "v5p" or "v6e".
      chips: how many.
    """

    generation: str
    chips: int

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Reads an accelerator type, "v5litepod-16" or "v5e-16"; ValueError for one that there is not, or a GPU."""
        found = re.fullmatch(r"(v[0-9][a-z]*)-([0-9]{1,6})", text.lower(), re.ASCII)
        name = found[1].replace("v5litepod", "v5e") if found else ""
        if found is None or name not in _GENERATIONS:
            raise ValueError(f"--accelerator={text}: give a TPU slice, such as v5litepod-16, v5p-16 or v6e-8.")
        generation = _GENERATIONS[name]
        chips, rest = divmod(int(found[2]), generation.cores)
        if rest or chips not in generation.topologies:
            sizes = ", ".join(cls(name, count).accelerator for count in generation.topologies)
            raise ValueError(f"--accelerator={text}: there is no slice of that size; there are {sizes}.")
        return cls(name, chips)

    @property
    def accelerator(self) -> str:
        """Gives the accelerator type: "v5litepod-16", or "v5p-16" (8 chips)."""
        return f"{self._generation.prefix}-{self.chips * self._generation.cores}"

    @property
    def topology(self) -> str:
        """Gives its shape in chips, "4x4"."""
        return self._generation.topologies[self.chips]

    @property
    def hosts(self) -> int:
        """Gives the number of machines."""
        return self.chips // self.per_host

    @property
    def per_host(self) -> int:
        """Gives the chips of a machine."""
        return self.chips if self.chips <= self._generation.on_one_host else 4

    @property
    def runtime(self) -> str:
        """Gives the software version that is usual on TPU VMs of this kind."""
        return self._generation.runtime

    @property
    def node(self) -> str:
        """Gives what GKE calls this kind in `cloud.google.com/gke-tpu-accelerator`."""
        return self._generation.node

    @property
    def machine(self) -> str:
        """Gives GKE's machine type, "ct5lp-hightpu-4t"."""
        return f"{self._generation.machine}-{self.per_host}t"

    @property
    def _generation(self) -> _Generation:
        return _GENERATIONS[self.generation]


def gpus(text: str) -> int:
    """Gives how many GPUs "h100:8" are; ValueError for what is none."""
    found = re.fullmatch(r"[a-z][a-z0-9-]*:([1-9][0-9]?)", text.lower(), re.ASCII)
    if found is None:
        raise ValueError(f"--accelerator={text}: give the GPUs of a node, such as h100:8.")
    return int(found[1])
