"""What chips send each other: counted from a model's declared parameters, or read in a compiled program."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from massive_jax.models import build, declared
from massive_jax.parallel import param_sharding
from massive_jax.plan.place import Config, gathered, rows_a_chip

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Says what one run of a program sends along an axis of the mesh.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter" …
      axis: of the mesh, or several, joined by "+"; "?" where the groups are those of no axis.
      size: chips along it.
      count: how many there are.
      bytes: of all of them, whole, on one chip: what is reduced, or what is gathered.
    """

    kind: str
    axis: str
    size: int
    count: int
    bytes: float

    @property
    def sent(self) -> float:
        """Gives the bytes that a chip sends, in a ring: twice for an all-reduce."""
        if self.kind == "collective-permute":
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.size - 1) / self.size


def expected(
    config: Config, mesh: Any, batch: int, length: int, *, passes: int = 1, trains: bool, param_bytes: int
) -> list[Collective]:
    """Counts the collectives of passes over [B, T] tokens.

    Args:
      config: of the model.
      mesh: concrete or abstract.
      batch: B, of all chips.
      length: T.
      passes: how many.
      trains: whether each is followed by one back.
      param_bytes: of a number among the parameters, as they are gathered.
    """
    found: list[Collective] = []

    def add(kind: str, axis: str, count: int, size: float) -> None:
        if mesh.shape[axis] > 1 and count:
            found.append(Collective(kind, axis, mesh.shape[axis], passes * count, passes * size))

    stream = rows_a_chip(batch, mesh) * length * config.hidden_size * config.jnp_dtype.itemsize
    # What a split map adds to the stream is a part of a sum; so are rows of a table that one chip of several has.
    sums = {"tensor": 0, "expert": 0}
    kept = gathers = 0
    tied = getattr(config, "tie_embeddings", False)
    for it in declared(build(config)).values():
        sharding = param_sharding(it.axes, it.shape, mesh)
        spec = [] if sharding is None else list(sharding.spec)
        kept += math.prod(it.shape) // math.prod(mesh.shape[axis] for axis in spec if axis is not None)
        layers = config.num_layers if it.per_layer else 1
        gathers += layers * ("fsdp" in spec and it.per_layer)
        looked_up = "V" in it.axes and it.role == ("head" if tied else "table")
        if it.role == "residual" or looked_up:
            for axis in sums:
                sums[axis] += layers * (axis in spec)
    _, weights = gathered(config, mesh, param_bytes)
    ways = 2 if trains else 1  # there and back
    for axis, count in sums.items():
        add("all-reduce", axis, ways * count, ways * count * stream)
    add("all-gather", "fsdp", ways * gathers, ways * weights)
    if trains:
        add("reduce-scatter", "fsdp", gathers, 4 * weights / param_bytes)  # gradients are float32
        add("all-reduce", "data", 1, 4 * kept)
    return found


def in_program(text: str, shape: Mapping[str, int]) -> list[Collective]:
    """Reads the collectives of a compiled program's text, those in loops as often as the loop runs.

    Args:
      text: what `compiled.as_text()` gives.
      shape: of the mesh, axis -> size.
    """
    runs = _runs(text)
    total: dict[tuple[str, str, int], tuple[int, float]] = {}
    channels: set[str] = set()
    for computation, line in _lines(text):
        match = re.search(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(", line)
        if match is None:
            continue
        # One that is dealt out to several fusions, to run beside them, is written in each, with the same channel.
        channel = re.search(r"channel_id=(\d+)", line)
        if channel is not None and channel[1] in channels:
            continue
        channels |= {channel[1]} if channel else set()
        kind, size = match[2], _bytes(match[1], last=bool(match[3]))
        axis, number = _axis(line, shape)
        if kind == "reduce-scatter":
            size *= number
        count, bytes_ = total.get((kind, axis, number), (0, 0.0))
        times = runs.get(computation, 1)
        total[kind, axis, number] = count + times, bytes_ + times * size
    return [Collective(kind, axis, n, count, size) for (kind, axis, n), (count, size) in sorted(total.items())]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Every line of a program, with the name of the computation that it is in."""
    name = ""
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[1]
        yield name, line


def _runs(text: str) -> dict[str, int]:
    """How often each computation runs: as its caller, times the trips of the loop where it is one's body."""
    callers: dict[str, tuple[str, int]] = {}
    ends: dict[str, set[int]] = {}  # of a loop's condition, the numbers in it
    for computation, line in _lines(text):
        if number := re.search(r"= s32\[\]\S* constant\((\d+)\)", line):
            ends.setdefault(computation, set()).add(int(number[1]))
    for computation, line in _lines(text):
        for match in re.finditer(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line):
            callers.setdefault(match[1], (computation, 1))
        for match in re.finditer(r"branch_computations=\{([^}]*)\}", line):
            callers.update((name.strip().lstrip("%"), (computation, 1)) for name in match[1].split(","))
        body, condition = (re.search(rf"\b{of}=%?([\w.\-]+)", line) for of in ("body", "condition"))
        if body and condition:
            known = re.search(r"known_trip_count\W+n\W+(\d+)", line)
            numbers = ends.get(condition[1], set())
            # Of a counter that is compared with a number; a loop that ends when something is found counts once.
            trips = int(known[1]) if known else max(numbers) if len(numbers) == 1 else 1
            callers[body[1]] = (computation, max(1, trips))

    def runs(name: str, depth: int = 0) -> int:
        if name not in callers or depth > 50:
            return 1
        caller, times = callers[name]
        return times * runs(caller, depth + 1)

    return {name: runs(name) for name in callers}


def _bytes(shapes: str, *, last: bool) -> float:
    """The bytes of the shapes in a result's type; of an asynchronous operation's, operands and results, the latter."""
    sizes = [
        _WIDTHS.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    ]
    return float(sum(sizes[len(sizes) // 2 :] if last and len(sizes) > 1 else sizes))


def _axis(line: str, shape: Mapping[str, int]) -> tuple[str, int]:
    """Which axes of the mesh the groups of an operation lie along, and how many chips each has."""
    groups = _groups(line)
    numbers = np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
    names = [axis for axis in shape if shape[axis] > 1]
    for bits in range(1, 1 << len(names)):
        axes = [name for i, name in enumerate(names) if bits >> i & 1]
        places = [list(shape).index(axis) for axis in axes]
        along = np.moveaxis(numbers, places, range(-len(places), 0)).reshape(-1, math.prod(shape[a] for a in axes))
        if {frozenset(map(int, row)) for row in along} == groups:
            return "+".join(axes), along.shape[1]
    return "?", max(map(len, groups), default=numbers.size)


def _groups(line: str) -> set[frozenset[int]]:
    """The groups of devices that talk to each other."""
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", line)
    if listed:
        return {frozenset(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])}
    if along := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", along[1])}
        axes = re.findall(r"'(\w+)'", along[2])
        rows = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        places = [list(sizes).index(axis) for axis in axes]
        rows = np.moveaxis(rows, places, range(-len(places), 0)).reshape(-1, math.prod(sizes[axis] for axis in axes))
        return {frozenset(map(int, row)) for row in rows}
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota is None:
        return set()
    dims = [int(n) for n in iota[3].split(",")]
    numbers = np.arange(math.prod(dims)).reshape(dims)
    if iota[4]:
        numbers = numbers.transpose([int(n) for n in iota[4].split(",")])
    return {frozenset(map(int, row)) for row in numbers.reshape(int(iota[1]), int(iota[2]))}
