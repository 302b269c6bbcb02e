"""GPT-2 124M training steps: ways to do ours, and compiled nanoGPT-style PyTorch."""

from __future__ import annotations

import collections
import pathlib
import tempfile
import time
from typing import Any

import jax

from benchmarks.device.record import Context, bytes_accessed, median
from benchmarks.training import RECIPE, SWEEP, Shape, Step, Variant, compile_all, interleaved, jax_step
from massive_jax.train.metrics import flops_per_token, peak_flops

_SMALL = Shape(layers=2, heads=2, width=32, vocabulary=256, context=32, batch=2)
_TOGETHER = 6  # variants that are compiled at the same time, and then timed in turn


def _shape(context: Context) -> Shape:
    return _SMALL if context.small else Shape()


def _timed(context: Context) -> tuple[int, int, int]:
    """Repeats, steps of the warm-up, steps in a row."""
    return (2, 2, 1) if context.small else (6, 2, 5)


def _add(context: Context, what: str, shape: Shape, seconds: list[float], losses: list[float], **others: Any) -> None:
    config = Variant().trainer(shape).module.config
    rate = shape.tokens / median(seconds)
    flops, peak = flops_per_token(config, shape.context) * rate, peak_flops(config.dtype)
    context.add(
        what,
        tokens_per_second=rate,
        seconds=median(seconds),
        fastest=min(seconds),
        flops_per_second=flops,
        mfu=None if peak is None else flops / peak,
        first_loss=losses[0],
        last_loss=losses[-1],
        **others,
    )


def sweep(context: Context) -> None:
    """Times the variants, those that matter first."""
    shape = _shape(context)
    variants = [Variant.parse(text) for text in (SWEEP[:2] if context.small else SWEEP)]
    for i in range(0, len(variants), _TOGETHER):
        if context.seconds_left < 5:
            return
        compiled = compile_all(shape, variants[i : i + _TOGETHER], threads=1 if context.small else _TOGETHER)
        steps: dict[Variant, Step] = {}
        for variant, step in compiled.items():
            if isinstance(step, Step):
                steps[variant] = step
            else:
                context.add(str(variant), failed=f"{type(step).__name__}: {step}".splitlines()[0][:300])
        for variant, step in dict(steps).items():  # once each, so that one that fails does not take the rest with it
            try:
                step.run(1)
            except Exception as error:
                context.add(str(variant), failed=f"{type(error).__name__}: {error}".splitlines()[0][:300])
                del steps[variant]
        seconds, losses = interleaved({v: step.run for v, step in steps.items()}, *_timed(context))
        for variant, step in steps.items():
            _add(
                context,
                str(variant),
                shape,
                seconds[variant],
                losses[variant],
                compile_seconds=step.compile_seconds,
                temporary_bytes=step.temporary_bytes,
                bytes_accessed=bytes_accessed(step.compiled),
            )
        compiled.clear()
        steps.clear()


def peer(context: Context) -> None:
    """Times PyTorch's step, compiled and not."""
    import torch

    from benchmarks.torch_gpt import torch_step

    shape, tokens = _shape(context), _shape(context).random_tokens()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, compiled in (("torch", False), ("torch, compiled", True)):
        if compiled and context.small:
            return
        started = time.perf_counter()
        step = torch_step(shape, RECIPE, tokens, device=device, compiled=compiled)
        first = step(1)
        compile_seconds = time.perf_counter() - started
        seconds, losses = interleaved({name: step}, *_timed(context))
        _add(context, name, shape, seconds[name], [first, *losses[name]], compile_seconds=compile_seconds)


def profile(context: Context) -> None:
    """Tells where the device's time goes in a step as it was and in one that keeps less: seconds by kernel."""
    shape = _shape(context)
    for text in SWEEP[:1] if context.small else ("remat=cheap chunk=0", "unroll=1", "unroll=0 chunk=0"):
        if context.seconds_left < 10:
            return
        step = jax_step(shape, Variant.parse(text))
        step.run(3)
        steps = 3
        with tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory):
                step.run(steps)
            kernels = _kernels(pathlib.Path(directory))
        total = sum(seconds for _, seconds in kernels.values())
        top = sorted(kernels.items(), key=lambda item: -item[1][1])[:60]
        context.add(
            text,
            busy_seconds=total / steps,
            kernels=[[name, count / steps, seconds / steps] for name, (count, seconds) in top],
        )


def _kernels(directory: pathlib.Path) -> dict[str, tuple[int, float]]:
    """Name -> how often and how many seconds, of what ran on the device."""
    found: dict[str, tuple[int, float]] = collections.defaultdict(lambda: (0, 0.0))
    for path in directory.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if line.name.startswith("Stream") or not any(x.name.startswith("Stream") for x in plane.lines):
                    for event in line.events:
                        count, seconds = found[event.name]
                        found[event.name] = (count + 1, seconds + event.duration_ns / 1e9)
    return found
