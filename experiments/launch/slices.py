"""What a TPU slice is called where it is asked for, and how many hosts it has.

Sizes and shapes are `massive_jax.chips`'s. Read in November 2026: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for
names and hosts, docs.cloud.google.com/tpu/docs/runtimes for the software, and
docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus for what GKE calls its nodes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from massive_jax.chips import Chips


@dataclasses.dataclass(frozen=True)
class _Generation:
    on_one_host: int  # the most chips; what is larger has 4 a host
    runtime: str
    node: str  # GKE's label cloud.google.com/gke-tpu-accelerator
    machine: str  # of GKE, without the number of chips


_GENERATIONS: Mapping[str, _Generation] = {
    "v4": _Generation(4, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu"),
    "v5e": _Generation(8, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu"),
    "v5p": _Generation(4, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu"),
    "v6e": _Generation(8, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard"),
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
        found = re.fullmatch(r"(v[0-9][a-z]*)-[0-9]{1,6}", text.lower(), re.ASCII)
        name = found[1].replace("v5litepod", "v5e") if found else ""
        if name not in _GENERATIONS:
            raise ValueError(f"--accelerator={text}: give a TPU slice, such as v5litepod-16, v5p-16 or v6e-8.")
        try:
            chips = Chips.parse(text)
        except ValueError:
            sizes = ", ".join(cls(name, count).accelerator for count in Chips(name, 1).sizes)
            raise ValueError(f"--accelerator={text}: there is no slice of that size; there are {sizes}.") from None
        return cls(chips.generation, chips.count)

    @property
    def accelerator(self) -> str:
        """Gives the accelerator type: "v5litepod-16", or "v5p-16" (8 chips)."""
        return str(Chips(self.generation, self.chips)).replace("v5e", "v5litepod")

    @property
    def topology(self) -> str:
        """Gives its shape in chips, "4x4"."""
        return str(Chips(self.generation, self.chips).topology).partition(":")[2]

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
