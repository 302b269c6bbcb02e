"""What an attention bias changes, in numbers: perplexity, quantised too, the largest activations, attention sinks.

Axis letters: see `massive_jax.probe.sites`; W windows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import Progress, batches
from massive_jax.evaluate.perplexity import perplexity
from massive_jax.evaluate.quantize import quantized_inputs
from massive_jax.model import Model
from massive_jax.probe import Capture


@dataclasses.dataclass(frozen=True)
class Profile:
    """A language model on windows of a text.

    Attributes:
      perplexity: in the model's own dtype.
      quantized_perplexity: with the input of every linear map rounded to 8 bits, a scale per tensor.
      largest: by layer, the largest magnitude of the block's output in any window; float [L].
      median: by layer, the median magnitude, averaged over the windows; float [L].
      sink_rate: by layer, the share of attention on position 0, averaged over heads, queries and windows; float [L].
      slot_rate: by layer, the share of attention on the attention bias's slots; 0 without any; float [L].
    """

    perplexity: float
    quantized_perplexity: float
    largest: np.ndarray
    median: np.ndarray
    sink_rate: np.ndarray
    slot_rate: np.ndarray

    def layers(self) -> list[dict[str, Any]]:
        """A record a layer: "layer", 1-based, and its numbers."""
        names = ("largest", "median", "sink_rate", "slot_rate")
        return [
            {"layer": i + 1, **{name: float(getattr(self, name)[i]) for name in names}}
            for i in range(len(self.largest))
        ]


PASSES = 3  # of `measure_profile` over the windows


def measure_profile(model: Model, windows: Windows, *, skip: int = 0, progress: Progress | None = None) -> Profile:
    """Measures `model` on `windows`, leaving out the first `skip` predictions of each from the perplexities.

    Raises:
      ValueError: see `perplexity`.
    """
    found = []
    capture = [Capture("block_out", max=True, median=True), Capture("attn_probs", mass=True)]
    for _, tokens in batches(windows.tokens, progress):
        found.append(jax.device_get(model(tokens, capture=capture, logits=False).intermediates))
    largest, median = (
        np.concatenate([getattr(f["block_out"], name) for f in found], axis=1) for name in ("max", "median")
    )
    mass = np.concatenate([f["attn_probs"].mass for f in found], axis=1)  # [L, W, H, S]
    T = windows.tokens.shape[1]
    return Profile(
        perplexity=perplexity(model, windows, progress=progress, skip=skip),
        quantized_perplexity=perplexity(model, windows, quantized_inputs(model.config), progress, skip),
        largest=largest.max(axis=1),
        median=median.mean(axis=1),
        sink_rate=mass[..., 0].mean(axis=(1, 2)),
        slot_rate=mass[..., T:].sum(axis=-1).mean(axis=(1, 2)),
    )
