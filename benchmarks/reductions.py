"""Each reduction of a hidden state by itself: what was, what is, and what else there could be, in one run.

  python -m benchmarks.reductions
  python -m benchmarks.reductions --shape=1,4096,4096 --dtype=bfloat16 --candidates='median|top' --seconds=80

Prints a line a candidate: milliseconds (median and least over repeats), and how often memory could have read the
tensor meanwhile, at the speed that a sum or a copy of it reaches in the same run: 1 is the speed of memory for what is
read once. What a candidate gives is compared with numpy, exactly (moments: to 1e-3); one that fails says so. Several
tensors take turns, so that none is found in a cache. The defaults suit the device; --seconds limits the whole run,
compilation included, in the order of the table. Which of the searches `median_magnitude` takes on which platform is
`massive_jax.probe.order_statistics.SEARCHES`.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

from massive_jax.probe.order_statistics import SEARCHES, Search, median_magnitude, top_k_magnitude
from massive_jax.probe.reduce import moments

_SEARCHES = (
    "1024-7-0",
    "4096-5-2",
    "1024-7-2",
    "2048-6-2",
    "4096-5-1",
    "4096-7-1",
    "16384-8-1",
    "0-15-8",
    "0-7-8",
    "0-3-8",
)
_COPIES = 4  # tensors that take turns
_RUN = 0.02  # seconds that a timed run lasts, at least


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    given = flags.FLAGS
    found = measure(
        [int(size) for size in given.shape or ()],
        given.dtype,
        top_k=given.top_k,
        candidates=given.candidates,
        searches=given.searches,
        repeats=given.repeats,
        seconds=given.seconds,
    )
    if given.out:
        with open(given.out, "w", encoding="utf-8") as out:
            json.dump(found, out, indent=1)
    if wrong := [name for name, row in found["candidates"].items() if not row["right"]]:
        raise SystemExit(f"not what numpy gives: {', '.join(wrong)}.")


def measure(
    shape: Sequence[int] = (),
    dtype: str | None = None,
    *,
    top_k: int = 3,
    candidates: str = "",
    searches: Sequence[str] = _SEARCHES,
    repeats: int = 7,
    seconds: float = 80.0,
) -> dict[str, Any]:
    """Times the candidates, printing as it goes, and gives all that it found; the arguments are the flags."""
    started, on_cpu = time.perf_counter(), jax.default_backend() == "cpu"
    shape = tuple(shape) or ((4, 512, 576) if on_cpu else (1, 4096, 4096))
    dtype = dtype or ("float32" if on_cpu else "bfloat16")
    tensors = _tensors(shape, dtype)
    size, device = tensors[0].nbytes, jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}; {dtype}{list(shape)}, {size / 1e6:.1f} MB")

    ceilings = {
        "sum": (size, lambda x: jnp.sum(x, axis=-1, dtype=jnp.float32)),
        "copy": (2 * size, lambda x: -x),
    }
    speeds = {name: moved / min(_times(jax.jit(run), tensors, repeats)) for name, (moved, run) in ceilings.items()}
    speed = max(speeds.values())
    print("memory: " + ", ".join(f"{name} {found / 1e9:.0f} GB/s" for name, found in speeds.items()))

    rows: dict[str, dict[str, Any]] = {}
    print(f"{'candidate':44}{'ms':>9}{'least':>9}{'reads':>8}")
    expected: dict[str, Callable[[np.ndarray], Any]] = {
        "median": _numpy_median,
        "top_k": functools.partial(_numpy_top_k, k=top_k),
        "moments": _numpy_moments,
    }
    values = np.asarray(tensors[0]).astype(np.float32)
    wanted = functools.cache(lambda kind: expected[kind](values))
    for name, run in _candidates(top_k, searches).items():
        if not re.search(candidates, name):
            continue
        if time.perf_counter() - started > seconds:
            print(f"{name:44}{'not begun':>9}")
            continue
        program = jax.jit(run)
        right = _same(program(tensors[0]), [wanted(kind) for kind in name.split(":")[0].split(" and ")])
        times = _times(program, tensors, repeats)
        reads = min(times) * speed / size
        rows[name] = {"seconds": times, "reads": reads, "right": right}
        note = "" if right else "  NOT AS NUMPY"
        print(f"{name:44}{statistics.median(times) * 1e3:9.3f}{min(times) * 1e3:9.3f}{reads:8.1f}{note}", flush=True)
    return {
        "jax": jax.__version__,
        "device": device,
        "shape": shape,
        "dtype": dtype,
        "memory": speeds,
        "candidates": rows,
    }


def _candidates(k: int, searches: Sequence[str]) -> dict[str, Callable[[jax.Array], Any]]:
    """What is timed, the most worth knowing first: kinds of result before the colon, how after it."""
    found: dict[str, Callable[[jax.Array], Any]] = {
        "median: as it is": lambda x: [median_magnitude(x)],
        "top_k: as it is": lambda x: [top_k_magnitude(x, k)],
        "median and top_k: as they are": lambda x: [median_magnitude(x), top_k_magnitude(x, k)],
    }
    for name in searches:
        search = Search(*(int(number) for number in name.split("-")))
        median = functools.partial(median_magnitude, search=search)
        found[f"median: search {name}{_platforms(search)}"] = functools.partial(_results, [median])
        found[f"median and top_k: search {name}"] = functools.partial(
            _results, [median, functools.partial(top_k_magnitude, k=k)]
        )
    return found | {
        "top_k: one at a time": lambda x: [_one_at_a_time(x, k)],
        "moments: two passes, as it is": lambda x: [moments(x)],
        "moments: one pass": lambda x: [_moments_in_one_pass(x)],
        "top_k: of each row, then of all (old)": lambda x: [_top_k_of_rows(x, k)],
        "median: a bit a pass (old)": lambda x: [_median_by_bits(x)],
    }


def _results(reductions: Sequence[Callable[[jax.Array], Any]], x: jax.Array) -> list[Any]:
    return [reduce(x) for reduce in reductions]


def _platforms(search: Search) -> str:
    own = [name for name, taken in SEARCHES.items() if taken == search]
    return f" ({', '.join(own)})" if own else ""


def _tensors(shape: tuple[int, ...], dtype: str) -> list[jax.Array]:
    """Like a hidden state: every dim has its own scale, and a few values are massive, two of them the same."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32) * rng.lognormal(0, 1, shape[-1]).astype(np.float32)
    x.reshape(len(x), -1)[:, [5, 7, 3 * shape[-1] + 5]] = [-900.0, 2500.0, 900.0]
    return [jax.device_put(x.astype(jnp.dtype(dtype))) for _ in range(_COPIES)]


def _times(program: Callable[[jax.Array], Any], tensors: Sequence[jax.Array], repeats: int) -> list[float]:
    """Seconds of one call, of each repeat: a run of many calls on tensors that take turns."""

    def run(calls: int) -> float:
        started = time.perf_counter()
        results = [program(tensors[i % len(tensors)]) for i in range(calls)]
        jax.block_until_ready(results)
        return (time.perf_counter() - started) / calls

    run(1)
    calls = max(1, int(_RUN / run(4)))
    return [run(calls) for _ in range(repeats)]


def _same(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether results are those of numpy: exactly, but for moments."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return all(
        np.array_equal(got, expected)
        if expected.dtype in (np.float32, np.int32)
        else np.allclose(got, expected, rtol=1e-3, atol=1e-3)
        for got, expected in pairs
    )


def _numpy_median(x: np.ndarray) -> np.ndarray:
    flat = np.abs(x).reshape(len(x), -1)
    middle = (flat.shape[1] - 1) // 2
    return np.partition(flat, middle, axis=1)[:, middle]


def _numpy_top_k(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    flat = x.reshape(len(x), -1)
    found = []
    for row in np.abs(flat):
        likely = np.flatnonzero(row >= np.partition(row, -k)[-k])
        found.append(likely[np.argsort(-row[likely], kind="stable")][:k])
    indices = np.stack(found).astype(np.int32)
    return np.take_along_axis(flat, indices, axis=1), indices


def _numpy_moments(x: np.ndarray) -> tuple[np.ndarray, ...]:
    flat = x.astype(np.float64).reshape(len(x), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    variance = np.mean(centred**2, axis=1)
    return flat.mean(axis=1), variance, np.mean(centred**4, axis=1) / variance**2


# Other ways -----------------------------------------------------------------------------------------------------------


def _median_by_bits(x: jax.Array) -> jax.Array:
    """A pass for each bit of float32, over all of a sequence at once."""
    flat = jnp.abs(x.astype(jnp.float32)).reshape(len(x), -1)
    bits = lax.bitcast_convert_type(flat, jnp.uint32)
    rank, last_bit = (flat.shape[1] - 1) // 2, 16 if x.dtype == jnp.bfloat16 else 0

    def settle(i: jax.Array, prefix: jax.Array) -> jax.Array:
        candidate = prefix | (jnp.uint32(1) << jnp.uint32(30 - i))
        below = jnp.sum(bits < candidate[:, None], axis=-1, dtype=jnp.int32)
        return jnp.where(below <= rank, candidate, prefix)

    found = lax.fori_loop(0, 31 - last_bit, settle, jnp.zeros(len(x), jnp.uint32))
    return lax.bitcast_convert_type(found, jnp.float32)


def _top_k_of_rows(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of every row, and of those the k largest."""
    rows = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])
    magnitude, dims = lax.top_k(jnp.abs(rows), k)
    _, winners = lax.top_k(magnitude.reshape(len(x), -1), k)
    flat = jnp.arange(rows.shape[1], dtype=jnp.int32)[:, None] * x.shape[-1] + dims
    indices = jnp.take_along_axis(flat.reshape(len(x), -1), winners, axis=-1)
    return jnp.take_along_axis(rows.reshape(len(x), -1), indices, axis=-1), indices


def _one_at_a_time(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The largest of all but those found before, k times, each by rows' maxima and where they are: no top-k at all."""
    rows = jnp.abs(x.astype(jnp.float32)).reshape(len(x), -1, x.shape[-1])
    B, R, W = rows.shape
    best = jnp.max(rows, axis=-1)
    flat = jnp.arange(W)
    indices: list[jax.Array] = []
    for _ in range(k):
        row = jnp.argmax(best, axis=1)
        own = jnp.take_along_axis(rows, row[:, None, None], axis=1)[:, 0]
        taken = functools.reduce(
            jnp.logical_or, [row[:, None] * W + flat == i[:, None] for i in indices], jnp.zeros((B, W), bool)
        )
        column = jnp.argmax(jnp.where(taken, -1.0, own), axis=1)
        indices.append((row * W + column).astype(jnp.int32))
        left = jnp.max(jnp.where(taken | (flat == column[:, None]), -1.0, own), axis=1)
        best = jnp.where(jnp.arange(R) == row[:, None], left[:, None], best)
    found = jnp.stack(indices, axis=1)
    return jnp.take_along_axis(x.reshape(B, -1), found, axis=1).astype(jnp.float32), found


def _moments_in_one_pass(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Powers of the distance from a sample's mean, and from their means those about the mean."""
    rows = x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32)
    number = rows[0].size
    sample = jnp.mean(x.reshape(len(x), -1)[:, :: number // 4096 | 1].astype(jnp.float32), axis=1)
    shifted = rows - jnp.where(jnp.isfinite(sample), sample, 0.0)[:, None, None]
    square = jnp.square(shifted)
    powers = (shifted, square, square * shifted, jnp.square(square))
    first, second, third, fourth = (jnp.sum(jnp.sum(p, axis=-1), axis=-1) / number for p in powers)
    variance = second - jnp.square(first)
    central = fourth - 4 * first * third + 6 * jnp.square(first) * second - 3 * first**4
    return sample + first, variance, central / jnp.square(variance)


def _define_flags() -> None:
    """Defines the flags where this is what is run, so that another benchmark may import it beside its own."""
    sizes = "Sizes of the tensor, the batch first; 4,512,576 on CPU, 1,4096,4096 elsewhere."
    flags.DEFINE_list("shape", None, sizes)
    flags.DEFINE_string("dtype", None, "Its dtype; float32 on CPU, bfloat16 elsewhere.")
    flags.DEFINE_integer("top_k", 3, "How many of the largest.")
    flags.DEFINE_string("candidates", "", "Regular expression: which candidates; empty for all.")
    flags.DEFINE_list("searches", list(_SEARCHES), "Of the median, each as sample-thresholds-unrolled.")
    flags.DEFINE_integer("repeats", 7, "Timed runs of each candidate.")
    flags.DEFINE_float("seconds", 80.0, "After which no other candidate is begun.")
    flags.DEFINE_string("out", None, "JSON file for the numbers; None for none.")


if __name__ == "__main__":
    _define_flags()
    app.run(main)
