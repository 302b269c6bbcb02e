"""Forward passes of a 7B-shaped model with random weights: plain and with statistics of every block; PyTorch's."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import massive_jax as mj
from benchmarks.device.record import Context, bytes_accessed, measure, median

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}
_TOY = {
    **LLAMA_7B,
    **{"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 4},
}


def config_of(context: Context) -> dict[str, Any]:
    """Gives the Hugging Face config of the model."""
    return _TOY if context.small else LLAMA_7B


def model_of(context: Context) -> mj.Model:
    """Makes the model with random weights: bfloat16 and the fused kernel on an accelerator, float32 on CPU."""
    platform = jax.default_backend()
    kernel: Any = {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla")
    model = mj.init(config_of(context), dtype="float32" if platform == "cpu" else "bfloat16")
    return model.with_params(dataclasses.replace(model.config, attention_kernel=kernel), model.params)


def _batches(context: Context) -> list[np.ndarray]:
    shapes = [(1, 32)] if context.small else [(1, 4096), (4, 2048)]
    return [np.random.default_rng(0).integers(0, 256, shape).astype(np.int32) for shape in shapes]


def forward_flops(config: dict[str, Any], batch: int, length: int) -> float:
    """Counts the FLOPs of a forward pass without logits; of causal attention the half that is seen."""
    D, F, L = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    return batch * length * L * (2.0 * (4 * D * D + 3 * D * F) + 2.0 * D * length)


def ours(context: Context) -> None:
    """Times our forward pass: plain, with the top-3 and median of every block's output, and on the other kernel."""
    model = model_of(context)
    jax.block_until_ready(model.params)
    stats = mj.Capture("block_out", top_k=3, median=True)
    top = mj.Capture("block_out", top_k=3)
    middle = mj.Capture("block_out", median=True)
    plain_kernel = dataclasses.replace(model.config, attention_kernel="xla")
    jobs: list[tuple[str, Any, Any]] = [
        ("plain", model.config, None),
        ("top-3 and median", model.config, stats),
        ("top-3", model.config, top),
        ("median", model.config, middle),
        ("plain, attention written out", plain_kernel, None),
    ]
    for tokens in _batches(context):
        B, T = tokens.shape
        flops, base = forward_flops(config_of(context), B, T), None
        for name, config, capture in jobs:
            if context.seconds_left < 5:
                return
            started = time.perf_counter()
            try:
                run = _compiled(model, config, capture, tokens)
                compile_seconds = time.perf_counter() - started
                seconds = measure(lambda: run(model.params, tokens), 3 if context.small else 10)  # noqa: B023
            except Exception as error:
                context.add(f"{name}, {B} × {T}", failed=f"{type(error).__name__}: {error}".splitlines()[0][:300])
                continue
            base = base or median(seconds)
            context.add(
                f"{name}, {B} × {T}",
                seconds=median(seconds),
                fastest=min(seconds),
                over_plain=median(seconds) / base,
                flops_per_second=flops / median(seconds),
                tokens_per_second=tokens.size / median(seconds),
                temporary_bytes=getattr(run.memory_analysis(), "temp_size_in_bytes", None),
                bytes_accessed=bytes_accessed(run),
                compile_seconds=compile_seconds,
            )


def _compiled(model: mj.Model, config: Any, capture: Any, tokens: np.ndarray) -> jax.stages.Compiled:
    @jax.jit
    def run(params: Any, tokens: jax.Array) -> Any:
        out = model.with_params(config, params)(tokens, capture=capture, logits=False)
        return out.last_hidden, out.intermediates

    return run.lower(model.params, tokens).compile()


def reductions(context: Context) -> None:
    """Runs `benchmarks.reductions`, the statistics of one tensor alone."""
    seconds = max(5.0, context.seconds_left - 20)
    options = ["--shape=1,64,32", "--repeats=1", "--seconds=15"] if context.small else [f"--seconds={seconds}"]
    command = [sys.executable, "-m", "benchmarks.reductions", *options, f"--out={context.out / 'reductions.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    context.add("printed", text=done.stdout)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])


def peer(context: Context) -> None:
    """Times PyTorch's: eager and compiled, and eager with hooks that reduce every block's output on the device."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    fields = {name: value for name, value in config_of(context).items() if name != "model_type"}
    with torch.device(device):
        config = transformers.LlamaConfig(**fields, attn_implementation="sdpa")
        model = transformers.LlamaModel(config).eval()
    kept: list[Any] = []

    def hook(module: Any, inputs: Any, output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple) else output).abs().flatten(1)
        kept.append((hidden.topk(3), hidden.median(dim=1)))

    def with_hooks(ids: Any) -> None:
        handles = [layer.register_forward_hook(hook) for layer in model.layers]
        kept.clear()
        model(ids, use_cache=False)
        for handle in handles:
            handle.remove()

    jobs: list[tuple[str, Callable[[Any], Any]]] = [
        ("torch, eager", lambda ids: model(ids, use_cache=False)),
        ("torch, hooks: top-3 and median", with_hooks),
    ]
    if not context.small:
        compiled = torch.compile(model)
        jobs.append(("torch, compiled", lambda ids: compiled(ids, use_cache=False)))
    with torch.inference_mode():
        for tokens in _batches(context):
            B, T = tokens.shape
            ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
            for name, run in jobs:
                if context.seconds_left < 5:
                    return
                found = torch_seconds(lambda: run(ids), 3 if context.small else 10)  # noqa: B023
                context.add(
                    f"{name}, {B} × {T}",
                    seconds=statistics.median(found),
                    fastest=min(found),
                    flops_per_second=forward_flops(config_of(context), B, T) / statistics.median(found),
                    tokens_per_second=tokens.size / statistics.median(found),
                )


def torch_seconds(function: Callable[[], Any], repeats: int, seconds: float = 10.0) -> list[float]:
    """Times a PyTorch function after two runs that are not, the device waited for; none begun after `seconds`."""
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for _ in range(2):
        function()
    wait()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < repeats and (not found or time.perf_counter() - began < seconds):
        started = time.perf_counter()
        function()
        wait()
        found.append(time.perf_counter() - started)
    return found
