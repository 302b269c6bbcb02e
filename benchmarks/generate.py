"""Generating with the default model against Hugging Face's PyTorch, in one run, on the same prompts and threads.

  python -m benchmarks.generate --batch=1 --length=128 --new=64 --repeats=3

Prints of each: the prompt's tokens a second (the first new token included) and new tokens a second after that, medians
over repeats; how many programs are compiled for prompts of eight lengths of one bucket (`Model.tokenize_batch`); and
whether both generate the same text.
"""

from __future__ import annotations

import jax
import torch
from absl import app, flags

import massive_jax as mj
from benchmarks.generation import jax_runs, rates, torch_runs
from benchmarks.peer import torch_llama
from massive_jax.data import cut_windows, load_text

_BATCH = flags.DEFINE_integer("batch", 1, "Sequences.")
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of a prompt.")
_NEW = flags.DEFINE_integer("new", 64, "New tokens.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each.")

_COMPILED: list[str] = []


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **kwargs: (
            _COMPILED.append(event) if event.endswith("backend_compile_duration") else None
        )
    )
    model = mj.load("smollm2_135m")
    tokens = cut_windows(model, load_text(), context=_LENGTH.value, windows=_BATCH.value).tokens
    peer = torch_llama(model)
    ours, theirs = jax_runs(model, tokens), torch_runs(peer, tokens)
    same = (model.generate(tokens, max_new_tokens=8).tokens == theirs["torch, dynamic cache"](8).numpy()).all()
    print(f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0]}, {torch.get_num_threads()} threads")
    print(f"programs for prompts of eight lengths: {', '.join(map(str, programs_by_length(model)))}")
    print(f"the same text: {'yes' if same else 'no'}")
    print(f"{'':40}{'prompt, tokens/s':>18}{'new tokens/s':>18}")
    for name, run in {**ours, **theirs}.items():
        found = rates(run, _BATCH.value, _LENGTH.value, _NEW.value, _REPEATS.value)
        print(f"{name:40}{found.prompt_rate:18,.1f}{found.rate:18,.1f}")


def programs_by_length(model: mj.Model) -> list[int]:
    """Counts what is compiled to continue prompts of eight lengths below 64 tokens, one after another."""
    counts = []
    for length in range(7, 63, 7):
        before = len(_COMPILED)
        tokens, mask = model.tokenize_batch(["a " * (length // 2)])
        model.generate(tokens, mask=mask, max_new_tokens=2)
        counts.append(len(_COMPILED) - before)
    return counts


if __name__ == "__main__":
    app.run(main)
