"""Putting an explicit attention bias into a trained model, and taking it out (paper, section 5, and a step beyond).

A trained model keeps its bias implicitly: a token in front (BOS, say) carries massive activations, and its keys and
values, the same for every text, are what attention rests on. They can be had without the token: computed once, they
become the slots of an explicit bias, the token leaves the sequence, and the massive activations leave the residual
stream with it. Axis letters: see `massive_jax.probe.sites`; P tokens of a prefix, W sequences, n slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.forward import check_tokens, forward
from massive_jax.model import Model
from massive_jax.models import AttentionBias, LanguageModel, TransformerConfig
from massive_jax.parallel import fetch
from massive_jax.probe import Capture, Edit, EditCollection, compile_captures

Params: TypeAlias = Mapping[str, Any]
_SLOTS, _GATE, _SINK_TOKEN = "layers/attn/slots/", "layers/attn/gate/", "sink_token"
_OUT = "layers/attn/out/kernel"
_SEQUENCES = 16  # run together by `absorb_mean`


def absorb_prefix(
    config: TransformerConfig, params: Params, prefix: Sequence[int] | np.ndarray
) -> tuple[TransformerConfig, Params]:
    """Makes a model that computes without a fixed prefix what the given one computes behind it, exactly.

    The prefix's keys and values at every layer and head become slots; the sequence's positions begin after it. Give the
    new model the text without the prefix: its outputs are those of the given model at the text's positions. (Under
    dynamic rope scaling only up to the original context: beyond it, a prefix depends on the length of what follows.)

    Args:
      config: of a causal language model without an attention bias.
      params: its parameters.
      prefix: token ids, int [P]; [BOS], say.

    Raises:
      ValueError: the model has a bias already; no tokens, or ids outside the vocabulary; a prefix that leaves nothing
        of the context.

    Examples:
      >>> from massive_jax.bias import absorb_prefix, rebuild
      >>> tokens = model.tokenize("Summer is warm.", bos=True)
      >>> explicit = rebuild(model, *absorb_prefix(model.config, model.params, [model.bos_id()]))
      >>> same = explicit(tokens[:, 1:]).logits  # the text without BOS
      >>> bool(np.allclose(same, model(tokens).logits[:, 1:], atol=1e-3))
      True
    """
    _check_no_bias(config)
    ids = np.asarray(prefix)
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"the prefix is {ids.dtype}{list(ids.shape)}; give token ids, int [P], at least one.")
    new = dataclasses.replace(config, attention_bias=AttentionBias("kv", slots=int(ids.size), prefix=True))
    if ids.size >= config.context_length:
        raise ValueError(f"a prefix of {ids.size} tokens leaves nothing of the context of {config.context_length}.")
    keys, values = _keys_and_values(config, params, ids[None])
    return new, _with_slots(params, keys[:, 0], values[:, 0])


def absorb_mean(
    config: TransformerConfig, params: Params, tokens: np.ndarray, position: int | np.ndarray = 0
) -> tuple[TransformerConfig, Params]:
    """Puts the paper's "set to the mean" (section 3.1) into weights, for models whose sink is not a fixed prefix.

    The keys and values of the sink, the token at `position` of every sequence, averaged over the sequences, become one
    slot in front of the text: it has position 0, the text begins at 1.

    Args:
      config: of a causal language model without an attention bias.
      params: its parameters.
      tokens: int [W, T].
      position: of the sink, one or int [W] (the first delimiter's, say; -1 for a sequence without).

    Raises:
      ValueError: the model has a bias already; tokens or positions out of range; no sequence with a sink.
    """
    _check_no_bias(config)
    tokens = check_tokens(config, tokens)
    positions = np.broadcast_to(np.asarray(position), len(tokens))
    if positions.min() < -1 or positions.max() >= tokens.shape[1]:
        raise ValueError(f"position {position} is out of range; the tokens have 0 to {tokens.shape[1] - 1}.")
    rows = np.flatnonzero(positions >= 0)
    if not rows.size:
        raise ValueError("no sequence has a sink: every position is -1.")
    # Nothing after a sink has a part in its keys and values.
    tokens = tokens[rows, : positions.max() + 1]
    total: Any = 0
    for start in range(0, len(rows), _SEQUENCES):
        batch = slice(start, start + _SEQUENCES)
        found = _keys_and_values(config, params, tokens[batch])
        at = positions[rows[batch]]
        total = total + np.stack([fetch(x).astype(np.float64)[:, np.arange(len(at)), at].sum(axis=1) for x in found])
    keys, values = (jnp.asarray(x / len(rows), config.jnp_dtype)[:, None] for x in total)
    new = dataclasses.replace(config, attention_bias=AttentionBias("kv", prefix=True))
    return new, _with_slots(params, keys, values)


def absorb_sink_token(config: TransformerConfig, params: Params) -> tuple[TransformerConfig, Params]:
    """Turns the learned sink tokens of a model (kind "sink_token") into slots of kind "kv", exactly.

    Raises:
      ValueError: the model has no sink token.
    """
    alone, tokens, edits = sink_tokens_alone(config, params)
    plain = dataclasses.replace(config, attention_bias=None)
    keys, values = _keys_and_values(plain, alone.params, tokens, edits)
    offset = config.attention_bias is not None and config.attention_bias.offset
    bias = AttentionBias("kv", slots=config.num_slots, prefix=config.prefix_length > 0, offset=offset)
    new = dataclasses.replace(config, attention_bias=bias)
    return new, _with_slots(_without(params, _SINK_TOKEN), keys[:, 0], values[:, 0])


def sink_tokens_alone(config: TransformerConfig, params: Params) -> tuple[Model, np.ndarray, EditCollection]:
    """Makes the learned sink tokens of a model (kind "sink_token") a sequence, which can be captured like any other.

    Returns:
      The model without them, tokens int [1, n], and edits that put the learned vectors in place of their embeddings.

    Raises:
      ValueError: the model has no sink token.
    """
    if config.attention_bias is None or not config.attention_bias.traits.tokens:
        raise ValueError(f"the model has no sink token; its attention bias is {config.attention_bias}.")
    plain, rest = dataclasses.replace(config, attention_bias=None), _without(params, _SLOTS, _SINK_TOKEN)
    model = Model(LanguageModel(plain), rest, plain)
    tokens = np.zeros((1, config.num_slots), np.int32)
    vectors = np.asarray(fetch(params[_SINK_TOKEN]), np.float32)
    edits = [Edit("embed", position=i, value=vector) for i, vector in enumerate(vectors)]
    return model, tokens, model.compile_edits(edits, tokens)


def add_bias(
    config: TransformerConfig, params: Params, bias: AttentionBias, *, logit: float = -20.0, seed: int = 0
) -> tuple[TransformerConfig, Params]:
    """Gives a model an attention bias to be trained, which so far changes nothing.

    Slots get a learned offset of their logit that starts so low (`logit`) that their share of the attention is below
    float32's resolution; raise it to let them in from the start. Keys and values start at N(0, 0.02²). Gates start at
    sigmoid(0) = 1/2, and the output projection is doubled.

    Args:
      config: of a model without an attention bias.
      params: its parameters.
      bias: which. Its `offset` is switched on where the kind is not itself one.
      logit: where the slots' logits start.
      seed: of the keys and values.

    Raises:
      ValueError: the model has a bias already; "sigmoid", which cannot be added without changing the model; a prefix.
    """
    _check_no_bias(config)
    if bias.traits.weights is not None:
        raise ValueError(
            f"{bias.kind} attention cannot be added to a model without changing it; train it from the start."
        )
    if bias.prefix:
        raise ValueError("a prefix is made of tokens: absorb_prefix adds it.")
    if bias.num_slots and not bias.traits.logit:
        bias = dataclasses.replace(bias, offset=True)
    new = dataclasses.replace(config, attention_bias=bias)
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    dtype = flat[_OUT].dtype
    fresh = jax.eval_shape(LanguageModel(new).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    for path, leaf in flax.traverse_util.flatten_dict(fresh, sep="/").items():
        if path in flat:
            continue
        if path == _SLOTS + "logit":
            value = np.full(leaf.shape, logit)
        elif path.startswith(_GATE):
            value = np.zeros(leaf.shape)
        else:
            value = 0.02 * rng.standard_normal(leaf.shape)
        flat[path] = jnp.asarray(value, dtype)
    if not bias.num_slots:
        flat[_OUT] = 2 * flat[_OUT]
    return new, flax.traverse_util.unflatten_dict(flat, sep="/")


def remove_bias(config: TransformerConfig, params: Params) -> tuple[TransformerConfig, Params]:
    """Removes a model's attention bias: the inverse of the others.

    What `absorb_prefix` made computes again what it did, given the prefix; slots that were trained are lost.

    Raises:
      ValueError: there is no bias; trained gates, or sigmoid attention: without them it is another model.
    """
    bias = config.attention_bias
    if bias is None:
        raise ValueError("the model has no attention bias.")
    rest = dict(_without(params, _SLOTS, _GATE, _SINK_TOKEN))
    if config.gate_axes is not None:
        gates = flax.traverse_util.flatten_dict(dict(params), sep="/")
        if any(np.any(fetch(x)) for path, x in gates.items() if path.startswith(_GATE)):
            raise ValueError("the gates have been trained: without them the model is another.")
        flat = flax.traverse_util.flatten_dict(rest, sep="/")
        flat[_OUT] = flat[_OUT] / 2
        rest = flax.traverse_util.unflatten_dict(flat, sep="/")
    elif not bias.num_slots:
        raise ValueError(f"attention bias {bias.kind!r} cannot be taken out: without it the model is another.")
    return dataclasses.replace(config, attention_bias=None), rest


def rebuild(model: Model, config: TransformerConfig, params: Params) -> Model:
    """Gives `model` another config and other parameters; its tokenizer and name are kept."""
    return model.with_params(config, params)


def _check_no_bias(config: TransformerConfig) -> None:
    if not isinstance(config, TransformerConfig):
        raise ValueError(
            "this is a vision model: its attention is not causal, so a prefix is not the same for every text."
        )
    if config.attention_bias is not None:
        raise ValueError(f"the model has an attention bias already ({config.attention_bias}); take it out first.")


def _keys_and_values(
    config: TransformerConfig, params: Params, tokens: np.ndarray, edits: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Keys, before the rotary embedding, and values of every layer: int [B, T] -> two [L, B, T, K, N]."""
    module = LanguageModel(config)
    tokens = check_tokens(config, tokens)
    plan = compile_captures(Capture(("key", "value")), config.num_layers)
    found = forward(module, params, edits or {}, plan, tokens, logits=False).intermediates
    return found["key"], found["value"]


def _with_slots(params: Params, keys: jax.Array, values: jax.Array) -> Params:
    """`params` with slots: keys and values each [L, n, K, N]."""
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    for name, x in (("key", keys), ("value", values)):
        flat[_SLOTS + name] = jnp.moveaxis(x, 1, 2).astype(flat[_OUT].dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _without(params: Params, *prefixes: str) -> Params:
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    kept = {path: x for path, x in flat.items() if not path.startswith(prefixes)}
    return flax.traverse_util.unflatten_dict(kept, sep="/")
