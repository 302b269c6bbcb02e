"""The largest activations and the median of every layer (paper, section 2). Axis letters: `massive_jax.probe.sites`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from massive_jax.analysis import DEFINITION, Location, Thresholds, full_size_layer, rank_locations
from massive_jax.arguments import shown
from massive_jax.evaluate.batches import Progress, batches, checked_inputs, input_length, not_finite
from massive_jax.model import Model
from massive_jax.parallel import fetch
from massive_jax.probe import Capture, Stats

_KEPT = 16  # values kept of each sequence and layer
CAPTURE = Capture(("block_out", "final_norm"), top_k=_KEPT, median=True)
"""What is kept of a forward pass."""


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """Describes one layer over all sequences.

    Attributes:
      layer: 1-based; None for the final norm.
      locations: where its largest activations sit, largest first.
      median: median magnitude, averaged over the sequences.
      magnitudes: its largest, second largest, … magnitude wherever it is, each averaged over the sequences (paper,
        section 2): never larger than the one before.
    """

    layer: int | None
    locations: list[Location]
    median: float
    magnitudes: tuple[float, ...]

    @property
    def largest(self) -> float:
        """Gives the largest magnitude, averaged over the sequences."""
        return self.magnitudes[0]


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
    model: Model,
    inputs: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    thresholds: Thresholds = DEFINITION,
    progress: Progress | None = None,
) -> LayerTable:
    r"""Measures every layer of `model`, over all inputs, reducing inside the blocks.

    Args:
      model: the model.
      inputs: tokens [W, T] or images [W, height, width, 3].
      mask: bool [W, T], False for padding; None for none.
      thresholds: what is massive.
      progress: called with the number of tokens after every batch.

    Raises:
      ValueError: inputs that the model cannot take; an activation that is not finite, of which there is no median;
        the message names the first layer.

    Examples:
      >>> from massive_jax.evaluate import measure_layers
      >>> table = measure_layers(model, model.tokenize("Summer is warm. Winter is cold.\n"))
      >>> first = table.layers[11].locations[0]
      >>> first.position, first.dim, round(first.value), first.massive
      (0, 507, 23147, True)
    """
    _check_thresholds(thresholds)
    return _Measured.of(model, inputs, mask, progress).table(thresholds, slice(None))


def measure_each(
    model: Model,
    tokens: np.ndarray,
    mask: np.ndarray,
    *,
    thresholds: Thresholds = DEFINITION,
    progress: Progress | None = None,
) -> list[LayerTable]:
    """Measures every layer of `model` on each of several sequences: see `measure_layers`, a table a sequence."""
    _check_thresholds(thresholds)
    measured = _Measured.of(model, tokens, mask, progress)
    return [measured.table(thresholds, slice(row, row + 1)) for row in range(len(tokens))]


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Statistics of every sequence: of the blocks' outputs [L, W, …] and of the final norm's [W, …]."""

    blocks: Stats
    final: Stats
    delimiters: np.ndarray | None

    @classmethod
    def of(cls, model: Model, inputs: np.ndarray, mask: np.ndarray | None, progress: Progress | None) -> _Measured:
        """Runs the model, a few inputs at a time."""
        inputs = checked_inputs(model, inputs, mask)
        blocks, final = _statistics(model, inputs, mask, progress)
        return cls(blocks, final, model.first_delimiter(inputs, mask) if model.tokenizer else None)

    def table(self, thresholds: Thresholds, rows: slice) -> LayerTable:
        """The table over some of the sequences."""
        delimiters = None if self.delimiters is None else self.delimiters[rows]

        def summary(layer: int | None, stats: Stats) -> LayerSummary:
            locations = rank_locations(
                stats.top_values,
                stats.top_positions,
                stats.top_dims,
                stats.median,
                thresholds=thresholds,
                delimiters=delimiters,
            )
            magnitudes = np.abs(stats.top_values).mean(axis=0, dtype=np.float64)
            return LayerSummary(layer, locations, float(stats.median.mean()), tuple(magnitudes.tolist()))

        layers = [
            summary(layer + 1, jax.tree.map(lambda a, i=layer: a[i, rows], self.blocks))
            for layer in range(len(self.blocks.median))
        ]
        return LayerTable(layers, summary(None, jax.tree.map(lambda a: a[rows], self.final)))


def _statistics(
    model: Model, inputs: np.ndarray, mask: np.ndarray | None, progress: Progress | None
) -> tuple[Stats, Stats]:
    found: list[dict[str, Stats]] = []
    for rows, batch in batches(inputs, progress, input_length(model, inputs)):
        out = model(batch, mask=None if mask is None else mask[rows], capture=CAPTURE, logits=False)
        found.append(fetch(out.intermediates))
    blocks: Stats = _concatenate([f["block_out"] for f in found], axis=1)
    final: Stats = _concatenate([f["final_norm"] for f in found], axis=0)
    finite = np.isfinite(blocks.top_values).all(axis=(1, 2)) & np.isfinite(blocks.median).all(axis=1)
    after = np.isfinite(final.top_values).all() and np.isfinite(final.median).all()
    if not finite.all() or not after:
        where = "the final norm" if finite.all() else f"block {int(np.argmin(finite)) + 1}"
        raise not_finite(model, where)
    return blocks, final


def _concatenate(parts: list[Any], axis: int) -> Any:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=axis), *parts)


def _check_thresholds(thresholds: object) -> None:
    if not isinstance(thresholds, Thresholds):
        raise ValueError(f"thresholds is {shown(thresholds)}; give Thresholds(magnitude, ratio).")
