"""Loading the default model from its GGUF file and from a converted checkpoint, in one run, in turn.

  python -m benchmarks.load --repeats=5

Prints the median seconds of each, files in the page cache, and the ratio.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time

import jax
from absl import app, flags, logging

import massive_jax as mj
from massive_jax.loading import convert

_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed loads of each, after one that is not.")


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        converted = str(pathlib.Path(directory) / "smollm2_135m")
        convert("smollm2_135m", converted, progress=False)
        pairs = [(_seconds("smollm2_135m"), _seconds(converted)) for _ in range(_REPEATS.value + 1)][1:]
    gguf, orbax = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"GGUF {statistics.median(gguf):.2f} s, Orbax {statistics.median(orbax):.2f} s: {ratio:.1f} times as fast")


def _seconds(name: str) -> float:
    started = time.perf_counter()
    jax.block_until_ready(mj.load(name, progress=False).params)
    return time.perf_counter() - started


if __name__ == "__main__":
    app.run(main)
