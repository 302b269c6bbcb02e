"""What a program takes, from the shapes that it is traced with: FLOPs, bytes of memory moved, the most held at once.

The program is read as jax traced it, equation by equation, with an idealised compiler in mind: what is computed element
by element is part of what reads it, and is written down only where several products read it; products, sorts, gathers
and loops write their results. Loops count as often as they run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_PASSES = 5  # of a loop that ends when something is found: the search for a median, say
# What writes its result. Everything else is element by element, or a view.
_IN_PLACE = frozenset({"scatter", "scatter-add", "dynamic_update_slice"})
_WRITES = frozenset({"gather", "sort", "top_k", "cumsum", "concatenate", "eigh", "pallas_call", *_IN_PLACE})
_READS = frozenset({"sort", "top_k", "cumsum", "argmax", "argmin", "reduce"})
_LOOPS = frozenset({"scan", "while", "cond"})
_VIEWS = frozenset({"reshape", "transpose", "squeeze", "convert_element_type", "broadcast_in_dim"})


@dataclasses.dataclass(frozen=True)
class Work:
    """Holds what one run of a program takes.

    Attributes:
      flops: of products.
      moved: bytes read from and written to memory by products, reductions and sorts.
      held: bytes held at once beside what the program is given, its results among them.
    """

    flops: float = 0.0
    moved: float = 0.0
    held: int = 0

    def __add__(self, other: Work) -> Work:
        """Adds what is done one after the other."""
        return Work(self.flops + other.flops, self.moved + other.moved, max(self.held, other.held))

    def times(self, runs: float) -> Work:
        """Gives that of several runs."""
        return Work(self.flops * runs, self.moved * runs, self.held)


def work_of(traced: Any) -> Work:
    """Reads a traced program: what `jax.jit(f).trace(…)` gives."""
    return _read(traced.jaxpr.jaxpr)


def size_of(aval: Any) -> int:
    """Gives the bytes of an array, from its shape and dtype; 0 of what has none."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None:
        return 0
    size = 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize  # a random key
    return math.prod(aval.shape) * int(size)


@dataclasses.dataclass(eq=False)
class _Value:
    """A value of a program, by identity."""

    aval: Any

    @property
    def size(self) -> int:
        return size_of(self.aval)


@dataclasses.dataclass(frozen=True)
class _Step:
    """An equation."""

    name: str
    inputs: tuple[_Value | None, ...]  # None for a number in the program
    outputs: tuple[_Value, ...]
    avals: tuple[Any, ...]  # of the inputs
    params: Mapping[str, Any]

    @property
    def read(self) -> int:
        return sum(map(size_of, self.avals))

    @property
    def written(self) -> int:
        return sum(value.size for value in self.outputs)


def _steps(jaxpr: Jaxpr, values: dict[Any, _Value | None]) -> Iterator[_Step]:
    """The equations of a program, with those of the functions that it calls in their places."""

    def of(var: Any) -> _Value | None:
        return None if isinstance(var, Literal) else values[var]

    for var in jaxpr.constvars:
        values[var] = _Value(var.aval)
    for eqn in jaxpr.eqns:
        name, bodies = eqn.primitive.name, _bodies(eqn)
        inputs = tuple(map(of, eqn.invars))
        if len(bodies) == 1 and name not in _LOOPS | _WRITES | _READS and len(bodies[0].invars) == len(inputs):
            inner: dict[Any, _Value | None] = dict(zip(bodies[0].invars, inputs, strict=True))
            yield from _steps(bodies[0], inner)
            found = [None if isinstance(var, Literal) else inner[var] for var in bodies[0].outvars]
            values.update(zip(eqn.outvars, found, strict=True))
            continue
        outputs = tuple(_Value(var.aval) for var in eqn.outvars)
        values.update(zip(eqn.outvars, outputs, strict=True))
        yield _Step(name, inputs, outputs, tuple(var.aval for var in eqn.invars), eqn.params)


def _bodies(eqn: Any) -> list[Jaxpr]:
    """The programs inside of an equation."""
    found = []
    for value in eqn.params.values():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, Jaxpr):
                found.append(one)
    return found


def _read(jaxpr: Jaxpr) -> Work:
    given = {var: _Value(var.aval) for var in jaxpr.invars}
    values: dict[Any, _Value | None] = dict(given)
    steps = list(_steps(jaxpr, values))
    products = _products_that_read(steps)
    # Of every value, which of those that are written down it is computed from; and until which step each is needed.
    roots: dict[_Value, frozenset[_Value]] = {value: frozenset({value}) for value in given.values()}
    sizes: dict[_Value, int] = {}
    last: dict[_Value, int] = {}
    total, inner = Work(), []
    nothing: frozenset[_Value] = frozenset()
    for number, step in enumerate(steps):
        found, writes = _of_step(step)
        total += dataclasses.replace(found, held=0)
        inner.append(found.held)
        read = nothing.union(*(roots.get(value, nothing) for value in step.inputs if value is not None))
        last.update(dict.fromkeys(read, number))
        for value in step.outputs:
            if not writes and products.get(value, 0) < 2:
                roots[value] = read
                continue
            roots[value] = frozenset({value})
            sizes[value], last[value] = value.size, number
            changed = step.inputs[0] if step.name in _IN_PLACE else None
            if changed is not None:  # it takes the place of what it changes
                replaced = (sizes.get(root, 0) for root in roots.get(changed, nothing))
                sizes[value] = max(0, value.size - max(replaced, default=0))
    results = [values[var] for var in jaxpr.outvars if not isinstance(var, Literal)]
    for result in results:
        last.update(dict.fromkeys(nothing if result is None else roots.get(result, nothing), len(steps)))
    return dataclasses.replace(total, held=_most_held(steps, inner, sizes, last))


def _most_held(
    steps: Sequence[_Step], inner: Sequence[int], sizes: Mapping[_Value, int], last: Mapping[_Value, int]
) -> int:
    ends: dict[int, int] = {}
    for value, size in sizes.items():
        ends[last[value]] = ends.get(last[value], 0) + size
    live = most = 0
    for number, (step, within) in enumerate(zip(steps, inner, strict=True)):
        live += sum(sizes.get(value, 0) for value in step.outputs)
        most = max(most, live + within)
        live -= ends.get(number, 0)
    return most


def _products_that_read(steps: Sequence[_Step]) -> Mapping[_Value, int]:
    """How many products read each value, through views of it or not."""
    counts: dict[_Value, int] = {}
    source: dict[_Value, _Value] = {}
    for step in steps:
        if step.name in _VIEWS and step.inputs[0] is not None:
            source[step.outputs[0]] = source.get(step.inputs[0], step.inputs[0])
        elif step.name == "dot_general":
            for value in {source.get(value, value) for value in step.inputs if value is not None}:
                counts[value] = counts.get(value, 0) + 1
    return counts


def _of_step(step: _Step) -> tuple[Work, bool]:
    """What an equation takes beside its results, and whether it writes them."""
    name, params, written = step.name, step.params, step.written
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        terms = math.prod(step.avals[0].shape[axis] for axis in contracted)
        return Work(2.0 * terms * math.prod(step.outputs[0].aval.shape), step.read + written), True
    if name == "scan":
        # The body's carry is the loop's; what it adds to the stacked results is written in its place.
        body, carry = _read(params["jaxpr"].jaxpr), sum(v.size for v in step.outputs[: params["num_carry"]])
        return dataclasses.replace(body.times(params["length"]), held=max(0, body.held - carry)), True
    if name == "while":
        body = _read(params["body_jaxpr"].jaxpr).times(_PASSES)
        return dataclasses.replace(body, held=max(0, body.held - written)), True
    if name == "cond":
        branches = [_read(branch.jaxpr) for branch in params["branches"]]
        held = max(0, max(branch.held for branch in branches) - written)
        return Work(max(b.flops for b in branches), max(b.moved for b in branches), held), True
    if name.startswith("reduce") or name in _READS:
        # Of one that has several operands, all are computed from what is read once.
        return Work(0.0, size_of(step.avals[0])), True
    if name in _IN_PLACE:
        return Work(0.0, 2.0 * sum(map(size_of, step.avals[1:]))), True
    if name in _WRITES:
        return Work(0.0, step.read + written if name == "pallas_call" else 2.0 * written), True
    return Work(), False
