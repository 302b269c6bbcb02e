"""Perplexity, in all and by window, without a [B, T, V] array. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from massive_jax.arguments import shown, whole_number
from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import Progress, batches, check_edits_of, checked_inputs, edits_for
from massive_jax.evaluate.scores import Scores
from massive_jax.forward import forward
from massive_jax.model import Model, TextModel
from massive_jax.models import head_of
from massive_jax.models.loss import sequence_nll
from massive_jax.parallel import fetch, mesh_of_params, mesh_set
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

    Examples:
      >>> from massive_jax.data import cut_windows
      >>> from massive_jax.evaluate import perplexity
      >>> windows = cut_windows(model, "It was a bright cold day in April, and the clocks were striking.", context=8)
      >>> print(f"{perplexity(model, windows):.4g}")
      92.52
    """
    return window_nll(model, windows, edits, progress, skip).value


def window_nll(
    model: Model,
    windows: Windows,
    edits: Edit | Sequence[Edit] | None = None,
    progress: Progress | None = None,
    skip: int = 0,
) -> Scores:
    """Computes every window's negative log-likelihood, of which a perplexity and its interval are made.

    Arguments and errors are those of `perplexity`.

    Examples:
      >>> from massive_jax.data import cut_windows, load_text
      >>> from massive_jax.evaluate import window_nll
      >>> windows = cut_windows(model, load_text("python"), windows=4, context=32)
      >>> plain = window_nll(model, windows)
      >>> plain.sums.shape, plain.counts.tolist()
      ((4,), [31, 31, 31, 31])
      >>> bool(plain.estimate().low < plain.value < plain.estimate().high)
      True
    """
    check_windows(model, windows)
    skip = whole_number("skip", skip, 0, max(0, int(windows.lengths.min()) - 2))
    edits = check_edits_of(edits, len(windows.tokens))
    sums = []
    for rows, tokens in batches(windows.tokens, progress):
        nll = token_nll(model, tokens, edits_for(edits, rows), windows.rows(rows))
        sums.append(np.sum(nll[:, skip:], axis=1, dtype=np.float64))
    return Scores("perplexity", np.concatenate(sums), windows.lengths - 1 - skip)


def check_windows(model: Model, windows: Windows) -> None:
    """Raises a ValueError where `windows` are none, or empty."""
    if not isinstance(windows, Windows) or getattr(windows.tokens, "ndim", 0) != 2 or not len(windows.tokens):
        raise ValueError(f"windows is {shown(windows)}; give Windows of one window at least, as `cut_windows` makes.")
    checked_inputs(model, windows.tokens, windows.mask)


def token_nll(model: Model, tokens: Any, edits: Edit | Sequence[Edit] | None = None, mask: Any = None) -> np.ndarray:
    """Computes every token's negative log-likelihood after the first, in nats: int [B, T] -> float32 [B, T - 1].

    Args:
      model: the model.
      tokens: int [B, T].
      edits: interventions.
      mask: bool [B, T], False for padding; None for none.

    Returns:
      At [b, i] that of sequence b's own token i + 1; 0 beyond its end.

    Raises:
      ValueError: a single token; an edit of the logits, which are never whole here; see also `Model.__call__`.
    """
    tokens, positions = TextModel.of(model).check_inputs(tokens, mask)
    if (tokens.shape[1] if mask is None else np.asarray(mask).sum(axis=1).min()) < 2:
        raise ValueError("perplexity needs at least two tokens a window: the first is not predicted.")
    compiled = model.compile_edits(edits, tokens, mask)
    if "logits" in compiled:
        raise ValueError("perplexity does not build the logits whole, so it cannot edit them; use model(…).logits.")
    with mesh_set(mesh_of_params(model.params)):
        return fetch(_nll(model.module, model.params, compiled, tokens, positions))


@functools.partial(jax.jit, static_argnames=("module",))
def _nll(module: Any, params: Any, edits: Any, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
    hidden = forward(module, params, edits, CapturePlan(), tokens, logits=False, positions=positions).last_hidden
    return sequence_nll(module.config, hidden, head_of(module.config, params), tokens, positions)
