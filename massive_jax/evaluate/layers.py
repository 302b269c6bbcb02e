"""The largest activations and the median of every layer (paper, section 2). Axis letters: `massive_jax.probe.sites`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from massive_jax.analysis import DEFINITION, Location, Thresholds, full_size_layer, rank_locations
from massive_jax.evaluate.batches import Progress, batches, input_length
from massive_jax.model import Model
from massive_jax.probe import Capture, Stats

_KEPT = 16  # values kept of each sequence and layer


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """Describes one layer over all sequences.

    Attributes:
      layer: 1-based; None for the final norm.
      locations: where its largest activations sit, largest first.
      median: median magnitude, averaged over the sequences.
      largest: largest magnitude, averaged over the sequences.
    """

    layer: int | None
    locations: list[Location]
    median: float
    largest: float


@dataclasses.dataclass(frozen=True)
class LayerTable:
    """Holds every layer, and the output of the final norm."""

    layers: list[LayerSummary]
    final_norm: LayerSummary

    @property
    def full_size_layer(self) -> int:
        """Gives the layer at which the largest activations first appear at full size."""
        return full_size_layer(np.asarray([summary.largest for summary in self.layers]))


def measure_layers(
    model: Model, inputs: np.ndarray, *, thresholds: Thresholds = DEFINITION, progress: Progress | None = None
) -> LayerTable:
    """Measures every layer of `model` on tokens [W, T] or images [W, height, width, 3], reducing inside the blocks.

    Raises:
      ValueError: an activation that is not finite, of which there is no median; the message names the first layer.
    """
    capture = Capture(("block_out", "final_norm"), top_k=_KEPT, median=True)
    found: list[dict[str, Stats]] = []
    for _, batch in batches(inputs, progress, input_length(model, inputs)):
        found.append(jax.device_get(model(batch, capture=capture, logits=False).intermediates))
    blocks: Stats = _concatenate([f["block_out"] for f in found], axis=1)
    final: Stats = _concatenate([f["final_norm"] for f in found], axis=0)
    finite = np.isfinite(blocks.top_values).all(axis=(1, 2)) & np.isfinite(blocks.median).all(axis=1)
    after = np.isfinite(final.top_values).all() and np.isfinite(final.median).all()
    if not finite.all() or not after:
        where = "the final norm" if finite.all() else f"block {int(np.argmin(finite)) + 1}"
        raise ValueError(
            f"{model.name}: the output of {where} has values that are not finite in "
            f"{model.config.dtype}: the weights are damaged, or a number is too large for it (float16 ends at 65,504)."
        )
    delimiters = model.first_delimiter(inputs) if model.tokenizer else None

    def summary(layer: int | None, stats: Stats) -> LayerSummary:
        locations = rank_locations(
            stats.top_values,
            stats.top_positions,
            stats.top_dims,
            stats.median,
            thresholds=thresholds,
            delimiters=delimiters,
        )
        largest = float(np.abs(stats.top_values[:, 0]).mean())
        return LayerSummary(layer, locations, float(stats.median.mean()), largest)

    layers = [
        summary(layer, jax.tree.map(lambda a, i=layer - 1: a[i], blocks))
        for layer in range(1, model.config.num_layers + 1)
    ]
    return LayerTable(layers, summary(None, final))


def _concatenate(parts: list[Any], axis: int) -> Any:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=axis), *parts)
