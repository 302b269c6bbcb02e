"""Forward passes of the default model against Hugging Face's PyTorch, in one run, on the same tokens and threads.

  python -m benchmarks.forward --batch=4 --context=512 --repeats=5

Prints a line a task: seconds (median over repeats) of each and their ratio. Both are warmed up; the repeats alternate.
The tasks: logits; the largest three magnitudes and the median of every layer; whole hidden states of every layer;
perplexity.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from absl import app, flags

import massive_jax as mj
from benchmarks.peer import torch_llama
from massive_jax.data import cut_windows, load_text
from massive_jax.evaluate import token_nll

_BATCH = flags.DEFINE_integer("batch", 4, "Sequences.")
_CONTEXT = flags.DEFINE_integer("context", 512, "Tokens of a sequence.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each.")


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    model = mj.load("smollm2_135m")
    tokens = cut_windows(model, load_text(), context=_CONTEXT.value, windows=_BATCH.value).tokens
    peer = torch_llama(model)
    ids = torch.from_numpy(tokens.astype(np.int64))

    def torch_hidden() -> list[torch.Tensor]:
        return list(peer.model(ids, output_hidden_states=True).hidden_states)

    def torch_statistics() -> None:
        for hidden in torch_hidden():
            magnitude = hidden.abs().flatten(1)
            magnitude.topk(3)
            magnitude.median(dim=1)

    def torch_nll() -> None:
        logits = peer(ids).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    largest = mj.Capture("block_out", top_k=3, median=True)
    tasks: dict[str, tuple[Callable, Callable]] = {
        "logits": (lambda: model(tokens), lambda: peer(ids)),
        "top-3 and median, all layers": (lambda: model(tokens, capture=largest, logits=False), torch_statistics),
        "hidden states, all layers": (
            lambda: model(tokens, capture=mj.Capture("block_out"), logits=False),
            torch_hidden,
        ),
        "negative log-likelihood": (lambda: token_nll(model, tokens), torch_nll),
    }
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0]}, {torch.get_num_threads()} torch threads"
    )
    print(f"{'task':32}{'ours, s':>10}{'torch, s':>10}{'torch / ours':>14}")
    with torch.inference_mode():
        for name, (ours, theirs) in tasks.items():
            mine, its = zip(*[(_seconds(ours), _seconds(theirs)) for _ in range(_REPEATS.value + 1)][1:], strict=True)
            ratio = statistics.median(b / a for a, b in zip(mine, its, strict=True))
            print(f"{name:32}{statistics.median(mine):10.3f}{statistics.median(its):10.3f}{ratio:14.2f}", flush=True)


def _seconds(run: Callable) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


if __name__ == "__main__":
    app.run(main)
