"""A census of the default model against a plain forward pass over the same tokens, in one run.

  python -m benchmarks.census --windows=32 --context=64 --repeats=5

Prints seconds (median over repeats; wall and of the processor) of each, and their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
from absl import app, flags

import massive_jax as mj
from massive_jax.data import cut_windows, load_text
from massive_jax.evaluate import take_census
from massive_jax.evaluate.batches import batches

_MODEL = flags.DEFINE_string("model", "smollm2_135m", "The model.")
_WINDOWS = flags.DEFINE_integer("windows", 32, "Windows.")
_CONTEXT = flags.DEFINE_integer("context", 64, "Tokens of each.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each.")


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    model = mj.load(_MODEL.value)
    data = cut_windows(model, load_text(), context=_CONTEXT.value, windows=_WINDOWS.value)

    def plain() -> None:
        for _, batch in batches(data.tokens):
            jax.block_until_ready(model(batch, logits=False).last_hidden)

    tasks: dict[str, Callable[[], object]] = {"plain": plain, "census": lambda: take_census(model, data)}
    for run in tasks.values():
        run()
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(_REPEATS.value):
        for name, run in tasks.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            runs[name].append((time.perf_counter() - wall, time.process_time() - processor))
    print(f"jax {jax.__version__}, {jax.devices()[0]}; {_WINDOWS.value} windows of {_CONTEXT.value} tokens")
    for kind, which in (("wall", 0), ("processor", 1)):
        seconds = {name: statistics.median(run[which] for run in found) for name, found in runs.items()}
        ratio = statistics.median(b[which] / a[which] for a, b in zip(runs["plain"], runs["census"], strict=True))
        print(f"{kind:10} plain {seconds['plain']:.2f} s, census {seconds['census']:.2f} s, census / plain {ratio:.2f}")


if __name__ == "__main__":
    app.run(main)
