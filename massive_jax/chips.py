"""What accelerators can do, in one table, and the names that sets of them go by.

Numbers are of one chip, from the vendors' pages, read in November 2026:
  TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. The bidirectional interconnect bandwidth there is of all links;
    half of it is what a chip sends.
  NVIDIA: the data sheets of A100 80GB SXM, H100 SXM and PCIe, and H200 SXM: products in 16 bits without sparsity; of
    NVLink's bidirectional bandwidth half is what a GPU sends.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from massive_jax.arguments import shown

_GB, _GIB = 10**9, 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Describes one chip.

    Attributes:
      kind: what jax calls the device (`device_kind`), or how that begins.
      platform: "tpu" or "gpu".
      memory: bytes.
      flops: FLOP/s of dense products in 16 bits.
      float32: FLOP/s of products in float32 at full precision.
      bandwidth: of the memory, in bytes/s.
      sends: to the others, in bytes/s, over all its links.
      axes: of its interconnect, each with two links: what runs along one axis of a mesh has one of them; 1 where all
        is reached through a switch.
      usable: bytes that programs can have: of a TPU what its compiler allows (libtpu 0.0.42.1: "exceeds available HBM
        (15.75G)", and 31.25 of a v6e), or what it has, if less; of a GPU what jax takes at first, 75 % (docs.jax.dev,
        GPU memory allocation).
    """

    kind: str
    platform: str
    memory: int
    flops: float
    float32: float
    bandwidth: float
    sends: float
    axes: int
    usable: int

    @property
    def sends_along_axis(self) -> float:
        """Gives the bytes/s that a chip sends along one axis of a mesh."""
        return self.sends / self.axes

    def flops_of(self, dtype: str) -> float:
        """Gives the FLOP/s of products in a dtype."""
        return self.float32 if dtype in ("float32", "float64") else self.flops


def _tpu(kind: str, memory: int, flops: float, bandwidth: float, both_ways: float, axes: int, usable: float) -> Chip:
    # In float32 a product is six passes of bfloat16 (docs.jax.dev, jax.lax.Precision: HIGHEST).
    return Chip(kind, "tpu", memory, flops, flops / 6, bandwidth, both_ways / 2, axes, int(usable * _GIB))


def _gpu(kind: str, memory: int, flops: float, float32: float, bandwidth: float, both_ways: float) -> Chip:
    return Chip(kind, "gpu", memory, flops, float32, bandwidth, both_ways / 2, 1, memory * 3 // 4)


CHIPS: Mapping[str, Chip] = {
    "v4": _tpu("TPU v4", 32 * _GIB, 275e12, 1200e9, 600e9, 3, 30.75),
    "v5e": _tpu("TPU v5 lite", 16 * _GIB, 197e12, 819e9, 400e9, 2, 15.75),
    "v5p": _tpu("TPU v5", 95 * _GIB, 459e12, 2765e9, 1200e9, 3, 95.0),
    "v6e": _tpu("TPU v6 lite", 32 * _GIB, 918e12, 1638e9, 800e9, 2, 31.25),
    "a100": _gpu("NVIDIA A100", 80 * _GB, 312e12, 19.5e12, 2039e9, 600e9),
    "h100-pcie": _gpu("NVIDIA H100 PCIe", 80 * _GB, 756e12, 51e12, 2000e9, 600e9),
    "h100": _gpu("NVIDIA H100", 80 * _GB, 989e12, 67e12, 3350e9, 900e9),
    "h200": _gpu("NVIDIA H200", 141 * _GB, 989e12, 67e12, 4800e9, 900e9),
}

# Chips of a slice -> its shape, as libtpu names it.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_SLICES: Mapping[str, Mapping[int, str]] = {"v4": _CUBE, "v5e": _FLAT, "v5p": _CUBE, "v6e": _FLAT}
_CORES = {"v4": 2, "v5p": 2}  # TensorCores of a chip, which the names of these count
_NODES = (1, 2, 4, 8)  # GPUs that one switch connects


@dataclasses.dataclass(frozen=True)
class Chips:
    """Names several chips of one kind: a slice of a TPU pod, or the GPUs of a machine.

    Attributes:
      generation: a name in `CHIPS`.
      count: how many chips.
    """

    generation: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Chips:
        """Reads "v5e-16" (16 chips), "v5p-16" (16 TensorCores: 8 chips), "h100:8"; ValueError for what is none.

        Examples:
          >>> from massive_jax.chips import Chips
          >>> Chips.parse("v5p-16").count, str(Chips.parse("H100:8"))
          (8, 'h100:8')
        """
        known = f"known: {', '.join(CHIPS)}, such as v5e-16, v5p-16 (8 chips: its name counts cores) or h100:8"
        found = re.fullmatch(r"(v\d\w*|[ah]\d+(?:-pcie)?)(?:[-:](\d{1,6}))?", text.strip().lower())
        generation = found[1].replace("v5litepod", "v5e") if found else ""
        if found is None or generation not in CHIPS:
            raise ValueError(f"chips {shown(text)} are not known; {known}.")
        number = int(found[2] or 1) if found[2] or generation not in _CORES else 0
        cores = _CORES.get(generation, 1)
        chips = cls(generation, number // cores)
        if number % cores or chips.count not in chips.sizes:
            sizes = ", ".join(str(cls(generation, count)) for count in chips.sizes)
            raise ValueError(f"chips {shown(text)}: there is no set of that size; there are {sizes}.")
        return chips

    def __str__(self) -> str:
        """Writes it as `parse` reads it."""
        sign = "-" if self.chip.platform == "tpu" else ":"
        return f"{self.generation}{sign}{self.count * _CORES.get(self.generation, 1)}"

    @property
    def chip(self) -> Chip:
        """Gives what each of them is."""
        return CHIPS[self.generation]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Gives the numbers of chips that there are sets of."""
        return tuple(_SLICES.get(self.generation, dict.fromkeys(_NODES, "")))

    @property
    def topology(self) -> str | None:
        """Gives the slice's name for libtpu, "v5e:4x4"; None of GPUs."""
        shapes = _SLICES.get(self.generation)
        return None if shapes is None else f"{self.generation}:{shapes[self.count]}"

    @property
    def larger(self) -> tuple[Chips, ...]:
        """Gives the sets of more chips of this kind, the smallest first."""
        return tuple(Chips(self.generation, count) for count in self.sizes if count > self.count)


def chip_of(kind: str) -> Chip | None:
    """Gives the chip that jax calls `kind`; None for one that is not in the table."""
    longest = sorted(CHIPS.values(), key=lambda chip: -len(chip.kind))
    return next((chip for chip in longest if kind.startswith(chip.kind)), None)
