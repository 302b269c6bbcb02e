"""Perplexity, without a [B, T, V] array. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from massive_jax.arguments import shown, whole_number
from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import Progress, batches, check_edits_of, edits_for
from massive_jax.model import Model, forward
from massive_jax.models import head_of
from massive_jax.models.loss import chunked_nll
from massive_jax.parallel import mesh_of_params, mesh_set
from massive_jax.probe import CapturePlan, Edit


def perplexity(
    model: Model,
    windows: Windows,
    edits: Edit | Sequence[Edit] | None = None,
    progress: Progress | None = None,
    skip: int = 0,
) -> float:
    """Computes exp(total negative log-likelihood / predicted tokens) over `windows`, under `edits`.

    Args:
      model: the model.
      windows: at least two tokens each; the first token of a window is not predicted.
      edits: interventions. A position given as an array has one position a window.
      progress: called with the number of tokens after every batch.
      skip: how many predictions to leave out at the start of every window.

    Returns:
      The perplexity; inf where the likelihood underflows, nan where the model gives nan.

    Raises:
      ValueError: no windows; a skip that is no whole number, negative, or leaves no prediction; see also `token_nll`.
    """
    check_windows(windows)
    skip = whole_number("skip", skip, 0, max(0, windows.tokens.shape[1] - 2))
    edits = check_edits_of(edits, len(windows.tokens))
    total = 0.0
    for rows, tokens in batches(windows.tokens, progress):
        total += float(np.sum(token_nll(model, tokens, edits_for(edits, rows))[:, skip:], dtype=np.float64))
    try:
        return math.exp(total / (windows.num_predicted - skip * len(windows.tokens)))
    except OverflowError:
        return math.inf


def check_windows(windows: Windows) -> None:
    """Raises a ValueError where `windows` are none, or empty."""
    if not isinstance(windows, Windows) or np.ndim(windows.tokens) != 2 or not len(windows.tokens):
        raise ValueError(f"windows is {shown(windows)}; give Windows of one window at least, as `cut_windows` makes.")


def token_nll(model: Model, tokens: Any, edits: Edit | Sequence[Edit] | None = None) -> np.ndarray:
    """Computes every token's negative log-likelihood after the first, in nats: int [B, T] -> float32 [B, T - 1].

    Raises:
      ValueError: a single token; an edit of the logits, which are never whole here; see also `Model.__call__`.
    """
    tokens = model.check_tokens(tokens)
    if tokens.shape[1] < 2:
        raise ValueError("perplexity needs at least two tokens a window: the first is not predicted.")
    compiled = model.compile_edits(edits, tokens)
    if "logits" in compiled:
        raise ValueError("perplexity does not build the logits whole, so it cannot edit them; use model(…).logits.")
    with mesh_set(mesh_of_params(model.params)):
        return np.asarray(_nll(model.module, model.params, compiled, tokens))


@functools.partial(jax.jit, static_argnames=("module",))
def _nll(module: Any, params: Any, edits: Any, tokens: jax.Array) -> jax.Array:
    hidden = forward(module, params, edits, CapturePlan(), tokens, logits=False).last_hidden
    return chunked_nll(module.config, hidden[:, :-1], head_of(module.config, params), tokens[:, 1:])
