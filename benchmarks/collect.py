"""Collecting activations of the default model against a PyTorch forward hook that writes the same, in one run.

  python -m benchmarks.collect --windows=64 --context=128 --layer=15 --repeats=3

Prints two lines a task: tokens per second (median over repeats; wall and of the processor) of `collect_activations`; of
Hugging Face's model with a hook on that layer, which is how most people do it; and of the same where the hook also ends
the pass there, as this project does. Both write rows, tokens, places, norms and the mask of massive tokens as
safetensors; the second task tells sinks too, for which PyTorch's attention has to be eager. Both are warmed up; the
repeats alternate. The largest difference of two rows is printed, relative to their norm.
"""

from __future__ import annotations

import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import safetensors.numpy
import torch
from absl import app, flags

import massive_jax as mj
from benchmarks.peer import torch_llama
from massive_jax.collect import ActivationStore, collect_activations
from massive_jax.data import Windows, cut_windows, load_text

_WINDOWS = flags.DEFINE_integer("windows", 64, "Windows.")
_CONTEXT = flags.DEFINE_integer("context", 128, "Tokens of each.")
_LAYER = flags.DEFINE_integer("layer", 15, "Layer whose output is collected.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each.")

_BATCH_TOKENS = 2048  # of a pass, on both sides
_QUERIES, _SHARE = 8, 0.3  # what a sink is: see `massive_jax.collect`
_Arrays = dict[str, np.ndarray]


class _DoneError(Exception):
    """Ends a forward pass."""


def hooked(peer: torch.nn.Module, windows: Windows, layer: int, path: pathlib.Path, *, sinks: bool, stop: bool) -> None:
    """Writes what PyTorch gives at `layer`."""
    found: dict[str, torch.Tensor] = {}
    block = peer.model.layers[layer - 1]

    def attention(module: torch.nn.Module, args: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        found["probs"] = output[1]

    def stream(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        found["rows"] = output
        if stop:
            raise _DoneError

    handles = [block.register_forward_hook(stream)]
    if sinks:
        handles.append(block.self_attn.register_forward_hook(attention))
    parts: list[_Arrays] = []
    T = windows.tokens.shape[1]
    size = max(1, _BATCH_TOKENS // T)
    with torch.inference_mode():
        for start in range(0, len(windows.tokens), size):
            ids = windows.tokens[start : start + size]
            with contextlib.suppress(_DoneError):
                peer.model(torch.from_numpy(ids.astype(np.int64)), use_cache=False)
            parts.append(_columns(found, ids, start, sinks))
    for handle in handles:
        handle.remove()
    safetensors.numpy.save_file({name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, path)


def _columns(found: dict[str, torch.Tensor], ids: np.ndarray, start: int, sinks: bool) -> _Arrays:
    rows, (B, T) = found["rows"], ids.shape
    magnitude = rows.abs()
    largest, median = magnitude.amax(dim=-1), magnitude.flatten(1).median(dim=1).values[:, None]
    arrays = {
        "rows": rows.reshape(B * T, -1).numpy(),
        "norm": rows.norm(dim=-1).flatten().numpy(),
        "token": ids.reshape(-1),
        "position": np.tile(np.arange(T, dtype=np.int32), B),
        "window": np.repeat(np.arange(start, start + B, dtype=np.int32), T),
        "massive": ((largest > 100) & (largest > 1000 * median)).flatten().numpy(),
    }
    if sinks:
        share = found["probs"].mean(dim=1)  # [B, T, S]
        after = torch.ones(T, T).tril(-1)
        received = (share * after).sum(dim=1) / after.sum(dim=0).clamp(min=1)
        received[:, T - _QUERIES :] = 0
        arrays["sink"] = (received > _SHARE).flatten().numpy()
    return arrays


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    model = mj.load("smollm2_135m", progress=False)
    windows = cut_windows(model, load_text(), context=_CONTEXT.value, windows=_WINDOWS.value)
    peers = {False: torch_llama(model), True: torch_llama(model)}
    peers[True].set_attn_implementation("eager")
    capture, count = mj.Capture("block_out", layers=_LAYER.value), windows.tokens.size
    print(f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0]}, {torch.get_num_threads()} threads")
    print(f"{count:,} tokens, layer {_LAYER.value} of {model.config.num_layers}, float32")
    print(f"{'tokens/s':32}{'ours':>8}{'hook':>8}{'ending':>8}{'ours / hook':>14}{'ours / ending':>15}{'apart':>10}")
    for sinks in (False, True):
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)

            def ours(run: int, root: pathlib.Path = root, sinks: bool = sinks) -> None:
                collect_activations(model, windows, root / f"ours{run}", capture, sinks=sinks)

            def theirs(run: int, stop: bool, root: pathlib.Path = root, sinks: bool = sinks) -> None:
                path = root / f"theirs{run}{stop}.safetensors"
                hooked(peers[sinks], windows, _LAYER.value, path, sinks=sinks, stop=stop)

            found: list[tuple[tuple[float, float], ...]] = []
            for run in range(_REPEATS.value + 1):
                seconds = (_time(ours, run), _time(theirs, run, False), _time(theirs, run, True))
                if run:
                    found.append(seconds)
            apart = _apart(ActivationStore(root / "ours1"), root / "theirs1True.safetensors", _LAYER.value)
            words = "rows, massive, sinks" if sinks else "rows, massive"
            for kind, which in (("wall", 0), ("processor", 1)):
                rates = [tuple(count / side[which] for side in seconds) for seconds in found]
                numbers = "".join(f"{statistics.median(rate):8,.0f}" for rate in zip(*rates, strict=True))
                ratios = [statistics.median(rate[0] / rate[i] for rate in rates) for i in (1, 2)]
                label = f"{words}, {kind}"
                print(f"{label:32}{numbers}{ratios[0]:14.2f}{ratios[1]:15.2f}{apart:10.1e}", flush=True)


def _apart(store: ActivationStore, path: pathlib.Path, layer: int) -> float:
    """How far rows are apart, relative to their norm; an error where masks or tokens differ."""
    theirs, shards = safetensors.numpy.load_file(path), [store.shard(i) for i in range(store.num_shards)]
    ours = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    for name in ("token", "position", "window", *(n for n in ("massive", "sink") if n in theirs)):
        if not np.array_equal(np.squeeze(ours[name]), theirs[name]):
            raise ValueError(f"{name} is not the same on both sides.")
    return float((np.linalg.norm(ours[f"block_out.{layer}"] - theirs["rows"], axis=1) / theirs["norm"]).max())


def _time(run: Callable[..., None], *args: object) -> tuple[float, float]:
    """Seconds of the wall and of the processors."""
    wall, processor = time.perf_counter(), time.process_time()
    run(*args)
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    app.run(main)
