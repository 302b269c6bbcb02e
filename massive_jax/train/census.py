"""The census: every so often, where the largest activations of every layer are, and which token is attended to.

Axis letters: see `massive_jax.probe.sites`; W windows or images, k values kept of each.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from massive_jax.analysis import attention_shares, sink_shares
from massive_jax.forward import forward
from massive_jax.models import LanguageModel, VisionTransformer
from massive_jax.parallel import whole
from massive_jax.probe import Capture, compile_captures

TOP_K = 3


def take_census(module: LanguageModel | VisionTransformer, params: Any, inputs: np.ndarray) -> list[dict[str, Any]]:
    """Measures every layer on tokens [W, T] or images [W, height, width, 3], reduced in the blocks: a record a layer.

    Returns:
      Of each layer: "layer" (1-based); "top": the largest of all windows, largest first, each with "value" (signed),
      "position" and "dim"; "largest": the largest magnitude and "median": the median magnitude, "kurtosis", each the
      mean over windows; "sink_rate" and "slot_rate": share of attention on the sink (see `sink_shares`) and on the
      slots of an attention bias, means over heads, queries and windows.
    """
    capture = (
        Capture("block_out", top_k=TOP_K, median=True, kurtosis=True),
        Capture("attn_probs", mass=True),
    )
    plan = compile_captures(capture, module.config.num_layers, module.config.absent_sites)
    found = jax.device_get(whole(forward(module, params, {}, plan, inputs, logits=False).intermediates))
    stats, mass = found["block_out"], found["attn_probs"].mass
    length = module.config.input_sizes(inputs.shape)["T"]
    sink = sink_shares(mass, length, causal=module.config.causal)
    slots = attention_shares(mass, range(length, mass.shape[-1]))
    return [
        {
            "layer": index + 1,
            "top": _largest(stats.top_values[index], stats.top_positions[index], stats.top_dims[index]),
            "largest": float(np.abs(stats.top_values[index, :, 0]).mean()),
            "median": float(stats.median[index].mean()),
            "kurtosis": float(stats.kurtosis[index].mean()),
            "sink_rate": float(sink[index]),
            "slot_rate": float(slots[index]),
        }
        for index in range(module.config.num_layers)
    ]


def _largest(values: np.ndarray, positions: np.ndarray, dims: np.ndarray) -> list[dict[str, Any]]:
    """The k largest of all windows, each place once; each argument [W, k]."""
    places: dict[tuple[int, int], float] = {}
    for i in np.argsort(-np.abs(values), axis=None, kind="stable"):
        places.setdefault((int(positions.flat[i]), int(dims.flat[i])), float(values.flat[i]))
    kept = list(places.items())[: values.shape[1]]
    return [{"value": value, "position": position, "dim": dim} for (position, dim), value in kept]
