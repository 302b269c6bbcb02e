"""A padded batch of the default model against a rectangular one of the same shape, padding counted, in one run.

  python -m benchmarks.padding --batch=8 --context=128 --repeats=7

Eight sequences of eight lengths, padded in front, and as many of the longest's length without padding: what the mask
costs. Prints how many programs eight prompts compile (`Model.tokenize_batch`), one by one and together; and a line a
task: seconds (median over repeats) of each and their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags

import massive_jax as mj
from massive_jax.data import cut_windows, load_text

_BATCH = flags.DEFINE_integer("batch", 8, "Sequences.")
_CONTEXT = flags.DEFINE_integer("context", 128, "Tokens of the longest.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed runs of each.")

_COMPILED: list[str] = []


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    model = mj.load("smollm2_135m")
    B, T = _BATCH.value, _CONTEXT.value
    tokens = cut_windows(model, load_text(), context=T, windows=B).tokens
    lengths = np.linspace(T // 8, T, B).astype(int)
    mask = np.arange(T) >= T - lengths[:, None]
    decode = model.tokenizer.decode
    texts = [decode([int(i) for i in row[own]]) for row, own in zip(tokens, mask, strict=True)]

    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **kwargs: (
            _COMPILED.append(event) if event.endswith("backend_compile_duration") else None
        )
    )
    one_by_one = _programs(lambda: [_run(model, [text]) for text in texts])
    together = _programs(lambda: _run(model, texts))
    print(f"jax {jax.__version__}, {jax.devices()[0]}; {B} prompts of {lengths.min()} to {T} tokens")
    print(f"programs compiled: {one_by_one} for the prompts one by one, {together} more for all together")

    largest = mj.Capture("block_out", top_k=3, median=True)
    tasks: dict[str, dict] = {
        "logits": {},
        "top-3 and median, all layers": {"capture": largest, "logits": False},
        "hidden states, all layers": {"capture": mj.Capture("block_out"), "logits": False},
        "attention on each key, all layers": {"capture": mj.Capture("attn_probs", mass=True), "logits": False},
    }
    print(f"{'task':36}{'padded, s':>12}{'plain, s':>12}{'padded / plain':>16}")
    for name, options in tasks.items():
        runs = [
            (
                _seconds(lambda options=options: model(tokens, mask=mask, **options)),
                _seconds(lambda options=options: model(tokens, **options)),
            )
            for _ in range(_REPEATS.value + 1)
        ][1:]
        padded, plain = zip(*runs, strict=True)
        ratio = statistics.median(a / b for a, b in runs)
        print(f"{name:36}{statistics.median(padded):12.3f}{statistics.median(plain):12.3f}{ratio:16.2f}", flush=True)


def _run(model: mj.Model, texts: list[str]) -> None:
    tokens, mask = model.tokenize_batch(texts)
    jax.block_until_ready(model(tokens, mask=mask).logits)


def _programs(run: Callable) -> int:
    before = len(_COMPILED)
    run()
    return len(_COMPILED) - before


def _seconds(run: Callable) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


if __name__ == "__main__":
    app.run(main)
