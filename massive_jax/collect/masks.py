"""Which tokens are massive, and which are sinks, computed in the pass that collects them.

Axis letters: see `massive_jax.probe.sites`; M layers that are marked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from massive_jax.analysis import Thresholds, massive_tokens, sink_tokens
from massive_jax.dtypes import wide
from massive_jax.evaluate.attention_block import largest_of_tokens, layers_by_window, received_share, visible_tokens
from massive_jax.models import BlockConfig
from massive_jax.probe import Measure


@functools.cache
def _of_block(window: int | None, sinks: bool) -> Callable[[Mapping[str, Any], Any], dict[str, Any]]:
    """The function of a block that masks are made of; one object, so that it is traced once."""

    def of_block(tensors: Mapping[str, Any], data: Any) -> dict[str, Any]:
        found = largest_of_tokens(tensors, data)
        if sinks:
            probs = tensors["attn_probs"]
            visible = jnp.asarray(visible_tokens(probs.shape[2], True, window))
            found["received"] = received_share(probs.astype(wide(probs.dtype)), visible)
        return found

    return of_block


def mask_measures(config: BlockConfig, layers: Sequence[int], T: int, sinks: bool) -> dict[str, Measure]:
    """Gives the measures that `masks_of` reads, by name: of a causal model's `layers`, one for each window."""
    found = {}
    for window, its in layers_by_window(config, T).items():
        if wanted := tuple(layer for layer in its if layer in layers):
            sites = ("attn_probs", "block_out") if sinks else ("block_out",)
            name = f"tokens {window}"
            found[name] = Measure(name, sites, _of_block(window, sinks), layers=wanted)
    return found


def masks_of(
    found: Mapping[str, Any],
    measures: Mapping[str, Measure],
    layers: Sequence[int],
    thresholds: Thresholds,
    sink_share: float,
) -> dict[str, np.ndarray]:
    """Gives "massive" and, where it was measured, "sink": bool [B, T, M].

    Args:
      found: what the pass gave under the measures' names.
      measures: see `mask_measures`.
      layers: M of them, ascending.
      thresholds: what is massive.
      sink_share: share of attention above which a token is a sink.

    Raises:
      FloatingPointError: the output of a block is not finite; its message names the block.
    """
    by_layer: dict[int, dict[str, np.ndarray]] = {}
    for name, measure in measures.items():
        for i, layer in enumerate(measure.layers):  # type: ignore[arg-type]
            by_layer[layer] = {key: np.asarray(a[i]) for key, a in found[name].items()}
    numbers = [by_layer[layer] for layer in layers]
    for layer, its in zip(layers, numbers, strict=True):
        if not (np.isfinite(its["largest"]).all() and np.isfinite(its["median"]).all()):
            raise FloatingPointError(f"block {layer}")
    masks = {"massive": np.stack([massive_tokens(n["largest"], n["median"], thresholds) for n in numbers], axis=-1)}
    if "received" in numbers[0]:
        masks["sink"] = np.stack([sink_tokens(n["received"], sink_share) for n in numbers], axis=-1)
    return masks
