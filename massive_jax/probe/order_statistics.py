"""Order statistics of magnitudes, exact: the median and the largest few of each sequence, without a sort of it all.

Magnitudes sort like the bit patterns of their floats, read as integers: the keys here. A key of a 16-bit float has 16
bits, so there are fewer to tell apart; integers know no rounding, and denormals are numbers like others.
Axis letters: R rows and W columns that a sequence's elements are laid out in, t thresholds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SMALL = 2048  # elements of a sequence; of no more, it takes as long to find where to look as to look everywhere
_NARROW = 128  # columns; narrower rows are joined
_ABOVE_ALL = np.iinfo(np.int32).max  # in place of the key of what does not count
_ELEMENTS_A_SAMPLE = 64  # at least so many for each of a sample, which takes about as long as to count them
_EVEN = 2  # of the thresholds after a sample's: they cut what is left in three, so that a search always ends soon


@dataclasses.dataclass(frozen=True)
class Search:
    """Says how the key of a given rank is found: by counting how many keys are below some thresholds, again and again.

    Every count is exact, so the key is, whatever the thresholds are; they only decide how soon it is found.

    Attributes:
      sample: how many elements to look at first: thresholds lie about the sample's own median, and then where the
        counts say that the rank is. 0 for thresholds that part what is left evenly.
      thresholds: t, how many are counted in one read.
      unrolled: reads before it is first asked whether the key is found. To ask costs a GPU a wait for its answer.
    """

    sample: int
    thresholds: int
    unrolled: int = 0


@dataclasses.dataclass(frozen=True)
class Shards:
    """Says that a tensor is one of several of equal shape along an axis, one a device (`massive_jax.probe.reduce`).

    Attributes:
      name: the axis of the mesh that they lie along.
      count: how many they are.
      dim: the axis of the tensor.
      mesh: all axes of the mesh. Its devices look for their medians together: they count as often, or some would wait.
    """

    name: str
    count: int
    dim: int
    mesh: tuple[str, ...]

    def whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Gives the shape of all of them together."""
        return tuple(size * self.count if dim == self.dim else size for dim, size in enumerate(shape))

    def gather(self, x: jax.Array) -> jax.Array:
        """Joins what each found, [B, n] -> [B, count · n]."""
        return lax.all_gather(x, self.name, axis=1, tiled=True)


SEARCHES = {
    # On an H200 a read of bfloat16 [4096, 4096] with 3 thresholds takes 14 µs, to sort a sample more.
    "cuda": Search(sample=0, thresholds=3, unrolled=8),
    "rocm": Search(sample=0, thresholds=3, unrolled=8),
    # A sample is a slice with a stride, which its compiler takes of a whole sequence in vector memory (v5e: 16 MB).
    "tpu": Search(sample=0, thresholds=7),
    "default": Search(sample=1024, thresholds=7),
}
"""How the median is found on each platform: what is fastest in `benchmarks/reductions.py`."""


def median_magnitude(
    x: jax.Array, valid: jax.Array | None = None, search: Search | None = None, shards: Shards | None = None
) -> jax.Array:
    """Finds the exact median of |x| over all axes but the first. [B, ...] -> [B] float32.

    Of an even count it is the lower of the two middle ones, as `torch.median` in the paper's released code; of data
    with a NaN it is NaN.

    Args:
      x: [B, ...].
      valid: bool that broadcasts to x: which elements count; None for all.
      search: how it is found; None for what is best on the platform it is compiled for.
      shards: what x is one of; None where it is all there is. As many elements count in each.

    Examples:
      >>> from massive_jax.probe.reduce import median_magnitude
      >>> median_magnitude(np.array([[3.0, -1.0, 2.0, -5.0]])).tolist()
      [2.0]
    """
    x = jnp.asarray(x)
    if search is not None:
        return _median(x, valid, search, shards)
    return lax.platform_dependent(
        x, valid, **{name: functools.partial(_median, search=how, shards=shards) for name, how in SEARCHES.items()}
    )


def top_k_magnitude(
    x: jax.Array, k: int, valid: jax.Array | None = None, shards: Shards | None = None
) -> tuple[jax.Array, jax.Array]:
    """Finds the k values of largest magnitude over all axes but the first, exactly.

    They lie in the k rows of largest maximum, so one read finds those rows, and the rest is looked for in them.

    Args:
      x: [B, ..., C].
      k: how many; clipped to the number of elements.
      valid: bool that broadcasts to x: which elements count; None for all.
      shards: what x is one of: the largest of all of them are found, and where they are in all; None if x is all.

    Returns:
      values [B, k] float32 (signed, largest magnitude first, NaN before all; ties to the lower index) and their flat
      indices [B, k] int32 into the reshaped [B, -1]; 0 and -1 where fewer than k elements count.

    Examples:
      >>> from massive_jax.probe.reduce import top_k_magnitude
      >>> values, indices = top_k_magnitude(np.array([[[3.0, -1.0], [2.0, -5.0]]]), 2)
      >>> values.tolist(), indices.tolist()
      ([[-5.0, 3.0]], [[3, 0]])
    """
    elements = _Elements.of(jnp.asarray(x), valid, k)
    B, R, W = elements.x.shape
    rows = None
    if k < R and R * W > _SMALL:
        largest, _ = _largest_and_nans(elements)
        # In their order, so that of equal magnitudes the lower index comes first.
        rows = jnp.sort(lax.top_k(_magnitudes(largest, elements.dtype), k)[1], axis=1)
        elements = elements.of_rows(rows)
    magnitudes = _magnitudes(elements.keys(-1), elements.dtype).reshape(B, -1)
    found, indices = lax.top_k(magnitudes, min(k, R * W))
    values = jnp.take_along_axis(elements.x.reshape(B, -1), indices, axis=1).astype(jnp.float32)
    if rows is not None:
        indices = jnp.take_along_axis(rows, indices // W, axis=1) * W + indices % W
    if valid is not None:
        counts = found != -1.0
        values, indices = jnp.where(counts, values, 0.0), jnp.where(counts, indices, -1)
    return (values, indices) if shards is None else _largest_of_all(shards, values, indices, x.shape, k)


def _largest_of_all(
    shards: Shards, values: jax.Array, indices: jax.Array, shape: tuple[int, ...], k: int
) -> tuple[jax.Array, jax.Array]:
    """The k of largest magnitude of all shards, of the largest [B, n] of each and where they are in it."""
    whole, dim = shards.whole(shape)[1:], shards.dim - 1
    places = list(jnp.unravel_index(indices, shape[1:]))
    places[dim] = places[dim] + lax.axis_index(shards.name) * shape[shards.dim]
    indices = jnp.where(indices < 0, -1, jnp.ravel_multi_index(tuple(places), whole, mode="clip").astype(jnp.int32))
    values, indices = shards.gather(values), shards.gather(indices)
    # In their order, so that of equal magnitudes the lower index comes first; what does not count is below zeros.
    order = jnp.argsort(indices, axis=1)
    values, indices = (jnp.take_along_axis(a, order, axis=1) for a in (values, indices))
    magnitudes = jnp.where(indices < 0, -1.0, jnp.abs(values))
    _, first = lax.top_k(magnitudes, min(k, math.prod(whole)))
    return jnp.take_along_axis(values, first, axis=1), jnp.take_along_axis(indices, first, axis=1)


# Keys -----------------------------------------------------------------------------------------------------------------


def _integer(dtype: Any) -> Any:
    """The integers that keys of a dtype come from: of the size of `_float`."""
    return jnp.int16 if jnp.dtype(_float(dtype)).itemsize == 2 else jnp.int32


def _float(dtype: Any) -> Any:
    """A float of 16 bits itself; float32 for all else, integers too."""
    return dtype if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 2 else jnp.float32


def _magnitudes(keys: jax.Array, dtype: Any) -> jax.Array:
    """Float32 magnitudes of keys of a dtype; -1 for a key below 0."""
    magnitudes = lax.bitcast_convert_type(keys.astype(_integer(dtype)), _float(dtype)).astype(jnp.float32)
    return jnp.where(keys < 0, -1.0, magnitudes)


def _infinity(dtype: Any) -> int:
    """The key of infinity; those of NaNs are above."""
    return int(np.asarray(np.inf, _float(dtype)).view(np.int16 if _integer(dtype) == jnp.int16 else np.int32))


# Elements -------------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Elements:
    """Holds the elements of each sequence in rows, and which of them count.

    Keys are worked out anew at every read: to write them down would cost another.

    Attributes:
      x: [B, R, W].
      valid: bool [B, R, W or 1]; None for all.
      shards: what they are one of; None where they are all.
    """

    x: jax.Array
    valid: jax.Array | None
    shards: Shards | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def of(cls, x: jax.Array, valid: jax.Array | None, k: int = 1, shards: Shards | None = None) -> _Elements:
        """`x` [B, ...] along its last axis where that gives rows that are long, and many more than k."""
        sizes = list(x.shape[1:]) or [1]
        width = sizes.pop()
        while sizes and width < _NARROW:
            width *= sizes.pop()
        rows = math.prod(sizes)
        while rows < 8 * k and width % 2 == 0:
            rows, width = 2 * rows, width // 2
        shape = (x.shape[0], rows, width)
        if valid is not None:
            # A row that counts as a whole, as a token's does, stays one element of it.
            whole = width == x.shape[-1] == valid.shape[-1] * x.shape[-1]
            own = jnp.broadcast_to(valid, (*x.shape[:-1], 1) if whole else x.shape)
            valid = own.reshape(*shape[:2], -1)
        return cls(x.reshape(shape), valid, shards)

    def total(self, count: jax.Array) -> jax.Array:
        """Gives the sum of a count over all shards."""
        return count if self.shards is None else lax.psum(count, self.shards.name)

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    def keys(self, invalid: int) -> jax.Array:
        """Int32 in the order of the magnitudes: 0 for zero, NaN above infinity; `invalid` where one does not count."""
        integer = _integer(self.dtype)
        bits = lax.bitcast_convert_type(self.x.astype(_float(self.dtype)), integer)
        keys = (bits & jnp.iinfo(integer).max).astype(jnp.int32)
        return keys if self.valid is None else jnp.where(self.valid, keys, invalid)

    def of_rows(self, rows: jax.Array) -> _Elements:
        """Those of some rows [B, r]: [B, r, W]."""
        return jax.tree.map(lambda a: jnp.take_along_axis(a, rows[:, :, None], axis=1), self)

    def every(self, step: int) -> _Elements:
        """Those at every step-th place: [B, 1, R·W / step]."""
        valid = None if self.valid is None else jnp.broadcast_to(self.valid, self.x.shape)
        return jax.tree.map(lambda a: a.reshape(len(a), 1, -1)[:, :, ::step], _Elements(self.x, valid))


def _reduce_rows(operands: Sequence[jax.Array], initial: Sequence[int], combine: Sequence[Any]) -> list[jax.Array]:
    """Reduces several int32 [B, R, W] along W, in one read of what they are computed from.

    One reduction of several operands is compiled to a loop that vectorises on CPU, where that of one is not, and to one
    kernel on GPU. Along rows first, as there may be one sequence only.
    """
    return lax.reduce(
        list(operands),
        [np.int32(value) for value in initial],
        lambda a, b: [f(left, right) for f, left, right in zip(combine, a, b, strict=True)],
        (2,),
    )


def _largest_and_nans(elements: _Elements) -> tuple[jax.Array, jax.Array]:
    """The largest key of each row (-1 for none) and how many are NaN's, each [B, R]."""
    keys = elements.keys(-1)
    nans = (keys > _infinity(elements.dtype)).astype(jnp.int32)
    # Both are kept, though one may be used by nobody: a reduction of integers alone is six times slower on CPU.
    largest, count = lax.optimization_barrier(_reduce_rows([keys, nans], [-1, 0], [lax.max, lax.add]))
    return largest, count


def _count_below(elements: _Elements, thresholds: jax.Array) -> jax.Array:
    """How many keys are below each of the thresholds [B, t]: int32 [B, t]."""
    t, keys = thresholds.shape[1], elements.keys(_ABOVE_ALL)
    below = [(keys < thresholds[:, i, None, None]).astype(jnp.int32) for i in range(t)]
    found = jnp.sum(jnp.stack(_reduce_rows(below, [0] * t, [lax.add] * t), axis=1), axis=2, dtype=jnp.int32)
    return elements.total(found)


# The median -----------------------------------------------------------------------------------------------------------


def _median(x: jax.Array, valid: jax.Array | None, search: Search, shards: Shards | None = None) -> jax.Array:
    elements = _Elements.of(x, valid, shards=shards)
    B, R, W = elements.x.shape
    number = jnp.full(B, R * W, jnp.int32)
    if elements.valid is not None:
        number = jnp.sum(elements.valid, axis=(1, 2), dtype=jnp.int32) * (W // elements.valid.shape[2])
    number = elements.total(number)
    found = _key_of_rank(elements, (number - 1) // 2, number, search)
    _, nans = _largest_and_nans(elements)
    broken = elements.total(jnp.sum(nans, axis=1, dtype=jnp.int32))
    return jnp.where(broken > 0, jnp.nan, _magnitudes(found, x.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Bracket:
    """Holds where a key is: in [low, high), with how many keys are below each; all int32 [B]."""

    low: jax.Array
    high: jax.Array
    below_low: jax.Array
    below_high: jax.Array


def _key_of_rank(elements: _Elements, rank: jax.Array, number: jax.Array, search: Search) -> jax.Array:
    """The key [B] that `rank` [B] keys are below, of `number` [B] that count; some NaN's where it is one's."""
    lowest, infinity = jnp.zeros_like(rank), _infinity(elements.dtype)
    bracket = _Bracket(lowest, jnp.full_like(rank, infinity + 2), lowest, number)
    sample = search.sample if math.prod(elements.x.shape[1:]) > _SMALL else 0

    def step(state: tuple[_Bracket, jax.Array]) -> tuple[_Bracket, jax.Array]:
        bracket = _narrowed(elements, rank, *state)
        return bracket, _next_thresholds(bracket, rank, search.thresholds, even=not sample)

    def unfinished(bracket: _Bracket) -> jax.Array:
        wide = jnp.any(bracket.high - bracket.low > 1)
        return wide if elements.shards is None else lax.pmax(wide.astype(jnp.int32), elements.shards.mesh) > 0

    if not sample:
        passes = _even_passes(infinity + 2, search.thresholds)
        first = _next_thresholds(bracket, rank, search.thresholds, even=True)
        unroll = passes <= search.unrolled
        return lax.fori_loop(0, passes, lambda _, state: step(state), (bracket, first), unroll=unroll)[0].low
    state = bracket, _thresholds_of_sample(elements, rank, number, search)
    for _ in range(search.unrolled):
        state = step(state)

    def again(state: tuple[tuple[_Bracket, jax.Array], jax.Array]) -> tuple[tuple[_Bracket, jax.Array], jax.Array]:
        found = step(state[0])
        return found, unfinished(found[0])

    return lax.while_loop(lambda state: state[1], again, (state, unfinished(state[0])))[0][0].low


def _even_passes(width: int, t: int) -> int:
    """After how many reads nothing is left of so many keys, where t thresholds part them evenly but for rounding."""
    passes = 1
    while width > t + 1:
        width = -(-width // (t + 1)) + (width >> 20)  # float32 rounds to 2^-24
        passes += 1
    return passes


def _narrowed(elements: _Elements, rank: jax.Array, bracket: _Bracket, thresholds: jax.Array) -> _Bracket:
    """The bracket between those of the thresholds [B, t] that `rank` [B] is between, by one read."""
    thresholds = jnp.clip(thresholds, bracket.low[:, None] + 1, bracket.high[:, None] - 1)
    below = _count_below(elements, thresholds)
    under = below <= rank[:, None]

    def highest(x: jax.Array, low: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.max(jnp.where(under, x, 0), axis=1), low)

    def lowest(x: jax.Array, high: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.min(jnp.where(under, _ABOVE_ALL, x), axis=1), high)

    return _Bracket(
        highest(thresholds, bracket.low),
        lowest(thresholds, bracket.high),
        highest(below, bracket.below_low),
        lowest(below, bracket.below_high),
    )


def _thresholds_of_sample(elements: _Elements, rank: jax.Array, number: jax.Array, search: Search) -> jax.Array:
    """About where the rank is in a sample, up to three standard deviations from there: [B, t]."""
    # An odd step, so that no column of a power of two of them is all that is seen.
    number_of_all = math.prod(elements.x.shape[1:])
    shards = elements.shards
    most = search.sample if shards is None else -(-search.sample // shards.count)
    wanted = min(most, number_of_all // _ELEMENTS_A_SAMPLE + 1)
    keys = elements.every(number_of_all // wanted | 1).keys(_ABOVE_ALL)[:, 0]
    taken = jnp.sort(keys if shards is None else shards.gather(keys), axis=1)
    counted = jnp.sum(taken < _ABOVE_ALL, axis=1, dtype=jnp.int32)[:, None]
    share = (rank.astype(jnp.float32) / jnp.maximum(number, 1).astype(jnp.float32))[:, None]
    away = np.linspace(-3.0, 3.0, search.thresholds - 1, dtype=np.float32)
    places = share * counted + jnp.sqrt(counted * share * (1 - share)) * away[np.argsort(abs(away), kind="stable")]
    places = jnp.clip(places.astype(jnp.int32), 0, jnp.maximum(counted - 1, 0))
    thresholds = jnp.take_along_axis(taken, places, axis=1)
    # And just above the nearest: of numbers with many ties it is the answer, and these two settle it.
    return jnp.concatenate([thresholds, thresholds[:, :1] + 1], axis=1)


def _next_thresholds(bracket: _Bracket, rank: jax.Array, t: int, even: bool) -> jax.Array:
    """Of what is left: all, where that is few; or its thirds, and about where the rank is, by the counts: [B, t]."""
    width = (bracket.high - bracket.low)[:, None]
    wide = width.astype(jnp.float32)
    parts = t if even else min(_EVEN, t)
    offsets = wide * (np.arange(1, parts + 1, dtype=np.float32) / np.float32(parts + 1))
    if t > parts:
        inside = (bracket.below_high - bracket.below_low)[:, None].astype(jnp.float32)
        share = ((rank - bracket.below_low)[:, None].astype(jnp.float32) + 0.5) / jnp.maximum(inside, 1.0)
        # Standard deviations of a rank among so many: half their square root.
        away = np.linspace(-1.5, 1.5, t - parts, dtype=np.float32) if t - parts > 1 else np.zeros(1, np.float32)
        near = wide * (share + 0.5 * away / jnp.sqrt(jnp.maximum(inside, 1.0)))
        offsets = jnp.concatenate([offsets, jnp.clip(near, 0.0, wide)], axis=1)
    every = jnp.arange(1, t + 1, dtype=jnp.int32)
    return bracket.low[:, None] + jnp.where(width <= t + 1, every, offsets.astype(jnp.int32))
