"""What an attention bias, or registers, change, in numbers: quality, quantised too, largest activations, sinks.

Axis letters: see `massive_jax.probe.sites`; W windows or images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from massive_jax.analysis import attention_shares, sink_shares
from massive_jax.arguments import shown
from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import Progress, batches, input_length
from massive_jax.evaluate.images import ImageBatches, run_images
from massive_jax.evaluate.perplexity import check_windows, perplexity
from massive_jax.evaluate.quantize import quantized_inputs
from massive_jax.model import ImageModel, Model
from massive_jax.parallel import fetch
from massive_jax.probe import Capture


@dataclasses.dataclass(frozen=True)
class Profile:
    """Describes a model on windows of a text, or on images.

    Attributes:
      metric: what it is judged by: "perplexity"; "top1", the share of images whose class is the most likely one; or
        "cosine_similarity" of the features with the unquantised ones.
      original: that, in the model's own dtype.
      quantized: the same with the input of every linear map rounded to 8 bits, a scale per tensor.
      largest: by layer, the largest magnitude of the block's output in any window; float [L].
      median: by layer, the median magnitude, averaged over the windows; float [L].
      sink_rate: by layer, the share of attention on the sink (`massive_jax.analysis.sink_shares`), averaged over
        heads, queries and windows; float [L].
      slot_rate: by layer, the share of attention on the attention bias's slots; 0 without any; float [L].
    """

    metric: str
    original: float
    quantized: float
    largest: np.ndarray
    median: np.ndarray
    sink_rate: np.ndarray
    slot_rate: np.ndarray

    def layers(self) -> list[dict[str, Any]]:
        """Gives a record a layer: "layer", 1-based, and its numbers."""
        names = ("largest", "median", "sink_rate", "slot_rate")
        return [
            {"layer": i + 1, **{name: float(getattr(self, name)[i]) for name in names}}
            for i in range(len(self.largest))
        ]


def registers_of(model: Model) -> int:
    """Counts the register tokens of a model; a language model has none."""
    return model.config.registers if isinstance(model, ImageModel) else 0


def names_of(models: Sequence[Model]) -> list[str]:
    """Gives what tells models apart: their biases and registers where those do, else their names."""
    kinds = []
    for model in models:
        bias, registers = model.config.attention_bias, registers_of(model)
        parts = [*([bias.kind] if bias else []), *([f"{registers} registers"] if registers else [])]
        nothing = "no registers" if isinstance(model, ImageModel) else "no bias"
        kinds.append(" + ".join(parts) or nothing)
    return kinds if len(set(kinds)) == len(models) else [model.title for model in models]


PASSES = 3  # of `measure_profile` over the windows, and of `measure_image_profile` over the images


def measure_profile(model: Model, windows: Windows, *, skip: int = 0, progress: Progress | None = None) -> Profile:
    """Measures a language model on `windows`, leaving out the first `skip` predictions of each from the perplexities.

    Raises:
      ValueError: windows of different lengths; see also `perplexity`.
    """
    check_windows(model, windows)
    if windows.mask is not None:
        raise ValueError("a profile is of windows of one length; cut them with cut_windows.")
    layers = _of_layers(model, (tokens for _, tokens in batches(windows.tokens, progress)))
    original = perplexity(model, windows, progress=progress, skip=skip)
    quantized = perplexity(model, windows, quantized_inputs(model.config), progress, skip)
    return Profile("perplexity", original, quantized, **layers)


def measure_image_profile(
    model: Model, source: Callable[[], ImageBatches], labels: np.ndarray | None, progress: Progress | None = None
) -> Profile:
    """Measures a vision model on images.

    Args:
      model: a vision model.
      source: gives the images in batches, as often as it is called.
      labels: int [W], of the model's head; None to compare features.
      progress: gets the number of images of every batch.
    """
    if not callable(source):
        raise ValueError(f"source is {shown(source)}; give a function that gives the images in batches.")
    layers = _of_layers(ImageModel.of(model), (images for _, images in source()), progress)
    original = run_images(model, source(), progress=progress)
    quantized = run_images(model, source(), quantized_inputs(model.config), progress)
    if labels is None:
        return Profile("cosine_similarity", 1.0, quantized.cosine(original), **layers)
    return Profile("top1", original.top1(labels), quantized.top1(labels), **layers)


def _of_layers(model: Model, inputs: Iterable[np.ndarray], progress: Progress | None = None) -> dict[str, np.ndarray]:
    """The four numbers of every layer, over all `inputs`."""
    found = []
    capture = [Capture("block_out", max=True, median=True), Capture("attn_probs", mass=True)]
    for batch in inputs:
        found.append(fetch(model(batch, capture=capture, logits=False).intermediates))
        length = input_length(model, batch)
        if progress is not None:
            progress(len(batch))
    if not found:
        raise ValueError("there is nothing to measure: no images.")
    largest, median = (
        np.concatenate([getattr(f["block_out"], name) for f in found], axis=1) for name in ("max", "median")
    )
    mass = np.concatenate([f["attn_probs"].mass for f in found], axis=1)  # [L, W, H, S]
    return {
        "largest": largest.max(axis=1),
        "median": median.mean(axis=1),
        "sink_rate": sink_shares(mass, length, causal=model.config.causal),
        "slot_rate": attention_shares(mass, range(length, mass.shape[-1])),
    }
