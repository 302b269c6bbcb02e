"""Training steps against nanoGPT-style PyTorch (compiled), in one run, on the same shapes, tokens and threads.

  python -m benchmarks.train --layers=4 --heads=4 --width=256 --vocabulary=8192 --batch=4 --context=256
  python -m benchmarks.train --variants="unroll=4,unroll=4 remat=cheap,unroll=4 chunk=0"
  python -m benchmarks.train --sweep

Both do a whole step in float32 on CPU, in bfloat16 (weights in float32) on GPU: forward, backward, clipping, AdamW.
All are warmed up; the repeats alternate. Prints of each the median seconds of a step, torch / ours, which is above 1
where this project is faster, its temporary memory and compile time, and the losses, which start from the same
distribution of weights. By default one variant (`benchmarks.training.Variant`) and the same with the explicit attention
bias.
"""

from __future__ import annotations

import statistics

import jax
import torch
from absl import app, flags

from benchmarks.torch_gpt import torch_step
from benchmarks.training import RECIPE, SWEEP, Shape, Variant, compile_all, interleaved, ratio
from massive_jax.memory import keep_freed_memory

_LAYERS = flags.DEFINE_integer("layers", 4, "Layers.")
_HEADS = flags.DEFINE_integer("heads", 4, "Heads.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width.")
_VOCABULARY = flags.DEFINE_integer("vocabulary", 8192, "Tokens of the vocabulary.")
_BATCH = flags.DEFINE_integer("batch", 4, "Sequences of a step.")
_CONTEXT = flags.DEFINE_integer("context", 256, "Tokens of a sequence.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed steps of each.")
_COMPILE = flags.DEFINE_bool("compile", True, "Whether PyTorch compiles its model.")
_VARIANTS = flags.DEFINE_list("variants", None, "What to time, each as `unroll=4 remat=cheap`; by default as trained.")
_SWEEP = flags.DEFINE_bool("sweep", False, "Whether to time all variants of `benchmarks.training.SWEEP`.")


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    keep_freed_memory()  # as the experiments that train do
    shape = Shape(
        _LAYERS.value, _HEADS.value, _WIDTH.value, _VOCABULARY.value, context=_CONTEXT.value, batch=_BATCH.value
    )
    variants = [Variant.parse(text) for text in _chosen()]
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    compiled = compile_all(shape, variants)
    peer = "torch, compiled" if _COMPILE.value else "torch"
    steps = {name: step.run for name, step in compiled.items() if not isinstance(step, Exception)}
    steps = steps | {peer: torch_step(shape, RECIPE, shape.random_tokens(), device=device, compiled=_COMPILE.value)}
    print(f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0]}, {torch.get_num_threads()} threads")
    seconds, losses = interleaved(steps, _REPEATS.value)
    for name in (*variants, peer):
        step = compiled.get(name)
        if isinstance(step, Exception):
            print(f"{name!s:40} failed: {str(step).splitlines()[0]}")
            continue
        found = seconds[name]
        line = (
            f"{name!s:40} {statistics.median(found):8.4f} s a step  {shape.tokens / statistics.median(found):10,.0f} "
            f"tokens/s  torch / it {ratio(seconds[peer], found):5.2f}  loss {losses[name][0]:.4f} -> "
            f"{losses[name][-1]:.4f}"
        )
        if step is not None:
            memory = "?" if step.temporary_bytes is None else f"{step.temporary_bytes / 2**20:,.0f}"
            line += f"  {memory} MiB  compiled in {step.compile_seconds:.0f} s"
        print(line)


def _chosen() -> tuple[str, ...]:
    if _SWEEP.value:
        return SWEEP
    plain = "unroll=0"  # as the presets have it: a loop over blocks costs time
    return tuple(_VARIANTS.value or (plain, f"{plain} bias=kv"))


if __name__ == "__main__":
    app.run(main)
