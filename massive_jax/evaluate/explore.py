"""One input looked at closely: what a page shows of it, and what the model says where single activations are changed.

Axis letters: see `massive_jax.probe.sites`; K next tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.analysis import DEFINITION, Thresholds, attention_shares, massive_tokens, padded_sets, stands_apart
from massive_jax.arguments import whole_number
from massive_jax.dtypes import product_precision
from massive_jax.evaluate.attention import APART
from massive_jax.evaluate.attention_block import layers_by_window, value_updates, visible_tokens
from massive_jax.evaluate.batches import Progress
from massive_jax.model import Model, TextModel
from massive_jax.models.loss import logits_nll
from massive_jax.parallel import fetch
from massive_jax.probe import Capture, Edit
from massive_jax.probe.order_statistics import median_magnitude

_BYTES = 1 << 31  # of all attention maps together
_TOKENS = 512


@dataclasses.dataclass(frozen=True, eq=False)
class ImplicitBias:
    """Says what the massive tokens add to the others: means over the queries that see one; float64 [L].

    Attributes:
      share: of the attention that they get, over heads.
      update_norm, rest_norm: of what attention takes from them, and from the others.
      spread, rest_spread: how much that changes from query to query: mean of ‖u − ū‖ over ‖ū‖; 0 for a bias.
    """

    share: np.ndarray
    update_norm: np.ndarray
    rest_norm: np.ndarray
    spread: np.ndarray
    rest_spread: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Explored:
    """Holds one input's numbers.

    Attributes:
      states: every block's output, float32 [L, T, D].
      median: median magnitude of each [L].
      dims: the dim of every token's largest magnitude, int [L, T].
      values: its value [L, T].
      probs: attention, [L, H, T, S].
      massive: the positions that are massive in some layer, and stand apart there, as in `measure_attention`.
      bias: what these add to the others; None without any.
    """

    states: np.ndarray
    median: np.ndarray
    dims: np.ndarray
    values: np.ndarray
    probs: np.ndarray
    massive: tuple[int, ...]
    bias: ImplicitBias | None


def most_tokens(model: Model, rows: int = 2) -> int:
    """Gives how many tokens `explore` takes: their attention maps, of every layer and head, have to fit in memory."""
    config = model.config
    return min(_TOKENS, math.isqrt(_BYTES // (4 * rows * config.num_layers * config.num_heads)))


def most_images(model: Model, tokens: int) -> int:
    """Gives how many images of so many tokens `explore` takes together, by the same memory; 0 where not one fits."""
    config = model.config
    return _BYTES // (4 * config.num_layers * config.num_heads * tokens**2)


def explore(model: Model, inputs: Any, mask: Any = None, *, thresholds: Thresholds = DEFINITION) -> list[Explored]:
    """Measures each of a few inputs, which run together, in one program.

    Args:
      model: the model.
      inputs: tokens, int [B, T], at most `most_tokens`; or images [B, height, width, 3], at most `most_images`.
      mask: bool [B, T], False for padding in front; None for none.
      thresholds: what is massive.

    Raises:
      ValueError: as `Model.__call__`.

    Examples:
      >>> from massive_jax.evaluate import explore
      >>> found = explore(model, model.tokenize("Summer is warm. Winter is cold."))[0]
      >>> found.massive, found.values.shape  # layers, tokens
      ((0,), (30, 8))
    """
    sites = ("block_out", "attn_probs", "value", "head_out")
    kept = fetch(model(inputs, mask=mask, capture=Capture(sites), logits=False).intermediates)
    found = []
    for row in range(kept["block_out"].shape[1]):
        T = kept["block_out"].shape[2]
        pad = 0 if mask is None else T - int(np.asarray(mask)[row].sum())
        own = {name: np.asarray(kept[name][:, row], np.float32) for name in sites}
        own |= {name: own[name][:, pad:] for name in ("block_out", "value", "head_out")}
        own["attn_probs"] = own["attn_probs"][:, :, pad:, pad:]
        found.append(_explored(model, own, thresholds))
    return found


def _explored(model: Model, own: dict[str, np.ndarray], thresholds: Thresholds) -> Explored:
    """Of one input, without padding."""
    states = own["block_out"]
    dims, median = np.abs(states).argmax(axis=-1), np.asarray(median_magnitude(jnp.asarray(states)))
    values = np.take_along_axis(states, dims[..., None], axis=-1)[..., 0]
    largest = np.abs(values)
    member = (massive_tokens(largest, median, thresholds) & stands_apart(largest, APART)).any(axis=0)
    massive = tuple(np.flatnonzero(member).tolist())
    bias = _bias(model, own, member) if massive else None
    return Explored(states, median, dims, values, own["attn_probs"], massive, bias)


def _bias(model: Model, own: dict[str, np.ndarray], member: np.ndarray) -> ImplicitBias:
    T, config = len(member), model.config
    visible = np.empty((config.num_layers, T, T), bool)
    for window, layers in layers_by_window(config, T).items():
        visible[np.asarray(layers) - 1] = visible_tokens(T, config.causal, window)
    size = 1 << int(member.sum() - 1).bit_length()  # one program for a power of two of massive tokens
    tensors = {name: own[name][:, None] for name in ("attn_probs", "value", "head_out")}
    found = fetch(_updates(tensors, visible, padded_sets(member[None], size)[:, None]))
    mass = own["attn_probs"].mean(axis=2)[:, None]
    return ImplicitBias(
        share=attention_shares(mass, np.flatnonzero(member).tolist()),
        **{name: np.asarray(values, float).reshape(config.num_layers) for name, values in found.items()},
    )


@jax.jit
def _updates(tensors: dict[str, jax.Array], visible: jax.Array, sets: jax.Array) -> dict[str, jax.Array]:
    """Of every layer: tensors [L, 1, …], visible [L, T, T]."""

    def of_layer(its: Any) -> dict[str, jax.Array]:
        found = value_updates(its[0], its[1], sets)
        return {name: found[name] for name in ("update_norm", "rest_norm", "spread", "rest_spread")}

    with product_precision(jnp.float32):
        return jax.lax.map(of_layer, (tensors, visible))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Holds what a model says of a text: its perplexity, and the likeliest next tokens, by id, with probabilities."""

    perplexity: float
    next_ids: tuple[int, ...]
    next_probabilities: tuple[float, ...]


def outcomes(
    model: TextModel,
    tokens: np.ndarray,
    edits: Sequence[Sequence[Edit]],
    *,
    top: int = 5,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Runs a text under each of several interventions: one program, whose answers are whole (`sweep` gives a number).

    Args:
      model: a language model.
      tokens: int [1, T], two at least.
      edits: of each intervention; as many in each.
      top: K, how many next tokens.
      progress: called with the number of tokens after each.

    Raises:
      ValueError: as `Model.__call__`; a text of a single token.
    """
    tokens, top = np.asarray(tokens), whole_number("top", top, 1, model.config.vocab_size)
    if tokens.ndim != 2 or len(tokens) != 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens have shape {tokens.shape}; give one text of at least two tokens, [1, T].")
    found = []
    for each in edits:
        loss, probabilities, ids = fetch(_outcome(model(tokens, edits=each).logits, tokens, top))
        with np.errstate(over="ignore"):  # then it is infinite
            perplexity = float(np.exp(np.float64(loss)))
        found.append(Outcome(perplexity, tuple(ids.tolist()), tuple(probabilities.tolist())))
        if progress is not None:
            progress(tokens.shape[1])
    return found


@functools.partial(jax.jit, static_argnames="top")
def _outcome(logits: jax.Array, tokens: jax.Array, top: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    loss = jnp.sum(logits_nll(logits, tokens)) / (tokens.shape[1] - 1)
    return loss, *jax.lax.top_k(jax.nn.softmax(logits[0, -1]), top)
