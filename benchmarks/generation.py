"""Generating to be timed: the prompt, and then each new token. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import massive_jax as mj


@dataclasses.dataclass(frozen=True)
class Rates:
    """Holds what generating took.

    Attributes:
      prompt_seconds: of the prompt and the first new token.
      seconds: of all.
      prompt_rate: tokens of the prompts a second.
      rate: new tokens a second after the first, of all sequences together.
    """

    prompt_seconds: float
    seconds: float
    prompt_rate: float
    rate: float


def rates(run: Callable[[int], Any], batch: int, length: int, new: int, repeats: int) -> Rates:
    """Times `run(n)`, which generates n tokens, for n of 1 and of `new`, in turn, after one run of each that is not."""
    found: dict[int, list[float]] = {1: [], new: []}
    for repeat in range(repeats + 1):
        for count, seconds in found.items():
            started = time.perf_counter()
            run(count)
            if repeat:
                seconds.append(time.perf_counter() - started)
    prompt, total = (float(np.median(seconds)) for seconds in found.values())
    return Rates(prompt, total, batch * length / prompt, batch * (new - 1) / max(total - prompt, 1e-9))


def jax_runs(model: mj.Model, tokens: np.ndarray) -> dict[str, Callable[[int], Any]]:
    """Gives ways to generate with our model: plain, and with statistics of every block at every step."""
    stats = mj.Capture("block_out", top_k=3, median=True)

    def plain(count: int) -> Any:
        return model.generate(tokens, max_new_tokens=count).tokens

    def captured(count: int) -> Any:
        made = model.generate(tokens, max_new_tokens=count, capture=stats)
        return jax.block_until_ready((made.prompt, made.steps))

    return {"ours": plain, "ours, top-3 and median of every block": captured}


def torch_runs(peer: Any, tokens: np.ndarray) -> dict[str, Callable[[int], Any]]:
    """Gives ways to generate with a Hugging Face model: its static cache, and the one that grows."""
    import torch

    ids = torch.from_numpy(tokens.astype(np.int64)).to(peer.device)

    def run(count: int, **options: Any) -> Any:
        with torch.inference_mode():
            made = peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                **options,
            )
        return made.cpu()  # waits for the device

    return {
        "torch, dynamic cache": run,
        "torch, static cache": lambda count: run(count, cache_implementation="static"),
    }
