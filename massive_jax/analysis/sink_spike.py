"""Whether a model has an attention sink, and whether it has massive activations (spikes) on it: two separate questions.

Of a census, a record a layer as `massive_jax.train.take_census` gives it. The middle blocks are all but the last, which
removes what is massive; a model of one block has that one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SINK_OF_HEADS = 0.5  # at least this share of the heads of a block …
SPIKE_RATIO = 100.0  # at least this many times the median …
SPIKE_APART = 2.0  # … and this many times what is typical of another token
_NEEDED = ("first_share", "sink_heads", "first", "others", "typical")  # what only causal models have


@dataclasses.dataclass(frozen=True)
class SinkSpike:
    """Describes the sink and the spike of one model, over its middle blocks.

    Attributes:
      first_share: attention on the first token, mean over heads.
      sink_heads: share of heads that give it more than 0.3.
      block_heads: the same of the heads of the block that has most of them.
      slot_share: attention on the slots of an attention bias, mean over heads.
      ratio: the first token's largest magnitude over the median, in the block where that is largest.
      layer: that block.
      dim: of that activation; None where windows differ.
      others_ratio: the largest of any other token over the median there.
      typical_ratio: the same of a typical token: near `ratio` where a dim is large on every token (a residual sink).
      top_ratio: of any token, the largest of any middle block.
      top_layer, top_position, top_dim: where that is, in the window with the largest.
      kurtosis: the largest of any middle block.
    """

    first_share: float
    sink_heads: float
    block_heads: float
    slot_share: float
    ratio: float
    layer: int
    dim: int | None
    others_ratio: float
    typical_ratio: float
    top_ratio: float
    top_layer: int
    top_position: int
    top_dim: int
    kurtosis: float


def middle_blocks(num_layers: int) -> range:
    """Gives the indices, from 0, of the middle blocks: all but the last; of one block that one."""
    return range(max(1, num_layers - 1))


def sink_and_spike(layers: Sequence[Mapping[str, Any]]) -> SinkSpike:
    """Finds the sink and the spike in a census of a causal model.

    Raises:
      ValueError: no layers; a census of before it had the first token's numbers, or of images.
    """
    if not layers or any(layer.get(name) is None for layer in layers for name in _NEEDED):
        raise ValueError("the census does not say what the first token's largest is; take it again.")
    middle = [layers[index] for index in middle_blocks(len(layers))]

    def over_median(layer: Mapping[str, Any], name: str) -> float:
        return float(layer[name] / max(layer["median"], np.finfo(np.float32).tiny))

    def mean(name: str) -> float:
        return float(np.mean([layer[name] for layer in middle]))

    at = max(middle, key=lambda layer: over_median(layer, "first"))
    top = max(middle, key=lambda layer: over_median(layer, "largest"))
    return SinkSpike(
        first_share=mean("first_share"),
        sink_heads=mean("sink_heads"),
        block_heads=max(float(layer["sink_heads"]) for layer in middle),
        slot_share=mean("slot_rate"),
        ratio=over_median(at, "first"),
        layer=at["layer"],
        dim=at.get("first_dim"),
        others_ratio=over_median(at, "others"),
        typical_ratio=over_median(at, "typical"),
        top_ratio=over_median(top, "largest"),
        top_layer=top["layer"],
        top_position=top["top"][0]["position"],
        top_dim=top["top"][0]["dim"],
        kurtosis=max(float(layer["kurtosis"]) for layer in middle),
    )


def has_sink(block_heads: float) -> bool:
    """Tells whether that share of a block's heads is a sink: at least half of them give the first token more than 0.3.

    Of one block, since what a small model's heads rest from may be the work of one block only.
    """
    return block_heads >= SINK_OF_HEADS


def has_spike(ratio: float, typical_ratio: float, *, fixed: bool) -> bool:
    """Tells whether the first token's largest is massive.

    Args:
      ratio: over the median: at least 100.
      typical_ratio: that of a typical other token: at most half as much. A dim that is as large on every token is a
        residual sink (arXiv 2601.22966).
      fixed: whether it is in the same dim in every window.
    """
    return fixed and ratio >= SPIKE_RATIO and ratio >= SPIKE_APART * typical_ratio
