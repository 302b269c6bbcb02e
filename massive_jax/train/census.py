"""The census: every so often, where the largest activations of every layer are, and which token is attended to.

Axis letters: see `massive_jax.probe.sites`; W windows or images, k values kept of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.analysis import SINK, attention_shares, sink_shares
from massive_jax.bias import sink_tokens_alone
from massive_jax.dtypes import wide
from massive_jax.forward import check_input, forward
from massive_jax.models import LanguageModel, TransformerConfig, VisionTransformer
from massive_jax.parallel import fetch, whole
from massive_jax.probe import Capture, Measure, compile_captures

TOP_K = 3


def _of_tokens(tensors: Mapping[str, Any], data: Any) -> dict[str, jax.Array]:
    """Every token's largest magnitude [B, T], and its dim."""
    x = tensors["block_out"]
    magnitude = jnp.abs(x.astype(wide(x.dtype)))
    return {"largest": jnp.max(magnitude, axis=-1), "dim": jnp.argmax(magnitude, axis=-1)}


_TOKENS = Measure("tokens", "block_out", _of_tokens)


def take_census(module: LanguageModel | VisionTransformer, params: Any, inputs: np.ndarray) -> list[dict[str, Any]]:
    """Measures every layer on tokens [W, T] or images [W, height, width, 3], reduced in the blocks: a record a layer.

    Returns:
      Of each layer: "layer" (1-based); "top": the largest of all windows, largest first, each with "value" (signed),
      "position" and "dim"; "largest": the largest magnitude and "median": the median magnitude, "kurtosis", each the
      mean over windows; "sink_rate" and "slot_rate": share of attention on the sink (see `sink_shares`) and on the
      slots of an attention bias, means over heads, queries and windows; of weights that are no softmax's, the share of
      their sum. Of causal models also "first_share": attention on the first token, and "sink_heads": the share of heads
      that give it more than 0.3 (arXiv 2410.10781); and magnitudes by token, means over windows: "first": the first
      token's largest, with its dim "first_dim", None where windows differ; "others": the largest of any other token;
      "typical": the median over the other tokens of each one's largest, which is about "first" where a dim is large on
      every token. The first token is the learned one in front of the sequence where there is one (attention bias
      "sink_token").

    Raises:
      ValueError: inputs that the model cannot take.
    """
    config = module.config
    inputs = check_input(config, inputs)
    capture = (
        Capture("block_out", top_k=TOP_K, median=True, kurtosis=True),
        Capture("attn_probs", mass=True),
        *((_TOKENS,) if config.causal else ()),
    )
    plan = compile_captures(capture, config.num_layers, config.absent_sites)
    found = fetch(forward(module, params, {}, plan, inputs, logits=False).intermediates)
    stats, mass = found["block_out"], np.asarray(found["attn_probs"].mass, np.float32)
    if config.attention_weights is not None:  # no softmax: they do not add up to 1
        mass = mass / np.maximum(mass.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    length = config.input_sizes(inputs.shape)["T"]
    sink = sink_shares(mass, length, causal=config.causal)
    slots = attention_shares(mass, range(length, mass.shape[-1]))
    layers = [
        {
            "layer": index + 1,
            "top": _largest(stats.top_values[index], stats.top_positions[index], stats.top_dims[index]),
            "largest": float(np.abs(stats.top_values[index, :, 0]).mean()),
            "median": float(stats.median[index].mean()),
            "kurtosis": float(stats.kurtosis[index].mean()),
            "sink_rate": float(sink[index]),
            "slot_rate": float(slots[index]),
        }
        for index in range(config.num_layers)
    ]
    if config.causal:
        for layer, first in zip(layers, _first(module, params, found["tokens"], mass, length), strict=True):
            layer |= first
    return layers


def _first(
    module: LanguageModel | VisionTransformer, params: Any, tokens: Mapping[str, np.ndarray], mass: np.ndarray, T: int
) -> list[dict[str, Any]]:
    """What the first token is like beside the others, and which heads rest on it: a record a layer."""
    largest, dim = tokens["largest"], tokens["dim"]  # [L, W, T]
    at, where, others, key = largest[..., 0], dim[..., 0], largest[..., 1:], 0
    config = module.config
    bias = config.attention_bias
    if isinstance(config, TransformerConfig) and bias is not None and bias.traits.tokens:
        own = {**params, "sink_token": whole(params["sink_token"])}
        alone, sequence, edits = sink_tokens_alone(config, own)
        plan = compile_captures(_TOKENS, config.num_layers, config.absent_sites)
        run = forward(alone.module, alone.params, edits, plan, sequence, logits=False)
        learned = fetch(run.intermediates)["tokens"]
        at, where, others, key = learned["largest"][..., 0], learned["dim"][..., 0], largest, T
    shares = mass[..., key].mean(axis=1)  # [L, H]
    return [
        {
            "first_share": float(shares[index].mean()),
            "sink_heads": float((shares[index] > SINK).mean()),
            "first": float(at[index].mean()),
            "first_dim": int(where[index, 0]) if np.all(where[index] == where[index, 0]) else None,
            "others": float(others[index].max(axis=-1, initial=0.0).mean()),
            "typical": float(np.median(others[index], axis=-1).mean()) if others.shape[-1] else 0.0,
        }
        for index in range(config.num_layers)
    ]


def _largest(values: np.ndarray, positions: np.ndarray, dims: np.ndarray) -> list[dict[str, Any]]:
    """The k largest of all windows, each place once; each argument [W, k]."""
    places: dict[tuple[int, int], float] = {}
    for i in np.argsort(-np.abs(values), axis=None, kind="stable"):
        places.setdefault((int(positions.flat[i]), int(dims.flat[i])), float(values.flat[i]))
    kept = list(places.items())[: values.shape[1]]
    return [{"value": value, "position": position, "dim": dim} for (position, dim), value in kept]
