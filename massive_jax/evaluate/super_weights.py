"""Super weights (arXiv 2411.07191): found by the activations that go through them, confirmed by pruning.

Axis letters: see `massive_jax.probe.sites`; W windows, n pruned weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.analysis import DEFINITION, Interval, Thresholds, full_size_layer
from massive_jax.analysis.super_weights import (
    Gain,
    Pruned,
    Signature,
    SuperWeight,
    SuperWeights,
    find_signature,
    largest_gain,
    largest_others,
    mlp_gains,
    rank_of,
    told_from_weights,
)
from massive_jax.arguments import shown, whole_number
from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import Progress, batches, not_finite
from massive_jax.evaluate.perplexity import check_windows, window_nll
from massive_jax.evaluate.scores import Scores
from massive_jax.model import Model, TextModel
from massive_jax.models.mlp_weights import MLPWeights, mlp_weights, with_down
from massive_jax.parallel import fetch, mesh_of_params, mesh_set
from massive_jax.probe import Measure
from massive_jax.probe.order_statistics import median_magnitude

OTHERS, TESTED = 1000, 3
_SITES = ("mlp_hidden", "mlp_out", "block_out")
_LEAST = 0.1  # nats a token: less than that is not super


def measure_super_weights(
    model: Model,
    windows: Windows,
    *,
    others: int = OTHERS,
    tested: int = TESTED,
    thresholds: Thresholds = DEFINITION,
    progress: Progress | None = None,
) -> SuperWeights:
    """Finds the super weights of a language model, and tests them.

    At the place of the largest number that a layer's MLP adds, the down projection's largest input is its row, the dim
    its column. Where that number is massive the weight is set to 0, and then in its stead the largest others of its
    matrix: other parameters in the same compiled program.

    Args:
      model: a language model whose blocks have one MLP.
      windows: what it is run on, at least two tokens each.
      others: how many of the largest other weights of the matrix are set to 0 for comparison.
      tested: of how many layers the weight is tested at most, those of the largest output.
      thresholds: what is massive: the output's magnitude, and over the median of the block's output.
      progress: called with the number of tokens; see `super_weight_passes`.

    Raises:
      ValueError: a mixture of experts; see also `perplexity`; numbers that are not whole, or below 1.
    """
    language = TextModel.of(model)
    try:
        weights = mlp_weights(language.config, language.params)
    except ValueError as error:
        raise ValueError(f"{model.name}: {error}") from None
    check_windows(model, windows)
    others, tested = whole_number("others", others, 1), whole_number("tested", tested, 1)
    if not isinstance(thresholds, Thresholds):
        raise ValueError(f"thresholds is {shown(thresholds)}; give Thresholds(magnitude, ratio).")
    signatures, largest = _signatures(language, windows, progress)
    massive = [s for s in signatures if abs(s.output) > thresholds.magnitude and s.ratio > thresholds.ratio]
    massive = sorted((s for s in massive if s.share >= 0.5), key=lambda s: -abs(s.output))[:tested]
    original = window_nll(model, windows, progress=progress)
    birth = signatures[full_size_layer(largest) - 1]
    return SuperWeights(
        perplexity=original.estimate(),
        signatures=tuple(signatures),
        tested=tuple(_test(language, windows, weights, s, original, others, progress) for s in massive),
        from_weights=told_from_weights(_gains(language, weights), birth),
    )


def super_weight_passes(tested: int = TESTED) -> int:
    """Counts how often `measure_super_weights` runs over the windows at most, for a progress bar."""
    return 2 + 2 * tested


def _of_block(tensors: Mapping[str, Any], data: Any) -> dict[str, jax.Array]:
    """Where the MLP's largest output is, and the down projection's largest input there; numbers a sequence."""
    out = tensors["mlp_out"].astype(jnp.float32)
    B, T, D = out.shape
    flat = jnp.argmax(jnp.abs(out).reshape(B, -1), axis=1)
    column, dim = flat // D, flat % D
    rows = jnp.arange(B)
    hidden = tensors["mlp_hidden"][rows, column].astype(jnp.float32)
    unit = jnp.argmax(jnp.abs(hidden), axis=1)
    stream = tensors["block_out"].astype(jnp.float32)
    positions = jnp.broadcast_to(tensors["positions"], (B, T))
    return {
        "positions": positions[rows, column],
        "dims": dim,
        "units": unit,
        "outputs": out[rows, column, dim],
        "hidden": hidden[rows, unit],
        "median": median_magnitude(stream),
        "largest": jnp.max(jnp.abs(stream), axis=(1, 2)),
    }


def _signatures(model: TextModel, windows: Windows, progress: Progress | None) -> tuple[list[Signature], np.ndarray]:
    """Of every layer, and its largest magnitude, mean over windows [L]."""
    found = []
    for rows, tokens in batches(windows.tokens, progress):
        out = model(tokens, mask=windows.rows(rows), capture=Measure("signature", _SITES, _of_block), logits=False)
        found.append(fetch(out.intermediates["signature"]))
    whole = {name: np.concatenate([part[name] for part in found], axis=1) for name in found[0]}
    largest = whole.pop("largest").mean(axis=1, dtype=np.float64)
    if not np.isfinite(largest).all():
        raise not_finite(model, f"block {int(np.argmin(np.isfinite(largest))) + 1}")
    L = model.config.num_layers
    return [find_signature(i + 1, {name: values[i] for name, values in whole.items()}) for i in range(L)], largest


def _test(
    model: TextModel,
    windows: Windows,
    weights: MLPWeights,
    signature: Signature,
    original: Scores,
    others: int,
    progress: Progress | None,
) -> SuperWeight:
    """The model without the weight, and without the largest others of its matrix."""
    matrix = np.asarray(fetch(weights.down[signature.layer - 1]), np.float32)
    rows, columns = largest_others(matrix, signature.unit, signature.dim, others)
    # The one weight as often as there are others, so that it is one program that takes them out.
    one = np.full_like(rows, signature.unit), np.full_like(columns, signature.dim)
    scores = [
        window_nll(_without(model, weights, signature.layer, *which), windows, progress=progress)
        for which in (one, (rows, columns))
    ]
    alone, rest = (
        Pruned(weights=n, perplexity=found.estimate(), nats=found.mean_difference(original))
        for n, found in zip((1, len(rows)), scores, strict=True)
    )
    excess = scores[0].mean_difference(scores[1])
    return SuperWeight(
        **dataclasses.asdict(signature),
        value=float(matrix[signature.unit, signature.dim]),
        rank=rank_of(matrix, signature.unit, signature.dim),
        size=matrix.size,
        without=alone,
        without_others=rest,
        excess=excess,
        confirmed=alone.nats.value >= _LEAST and _above(alone.nats) and _above(excess),
    )


def _above(nats: Interval) -> bool:
    """Whether it is above 0 beyond its interval; without one, as of one window, by as much as counts."""
    return nats.value >= _LEAST if nats.low is None else nats.low > 0


def _without(model: TextModel, weights: MLPWeights, layer: int, rows: np.ndarray, columns: np.ndarray) -> TextModel:
    """The model with some weights of a layer's down projection at 0."""
    with mesh_set(mesh_of_params(model.params)):
        down = _zeroed(weights.down, layer - 1, rows, columns)
    return dataclasses.replace(model, params=with_down(model.config, model.params, down))


@jax.jit
def _zeroed(kernel: jax.Array, layer: jax.Array | int, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return kernel.at[layer, rows, columns].set(0)


def _gains(model: TextModel, weights: MLPWeights) -> Sequence[Gain]:
    """Of every layer the largest gain, from the weights alone."""
    config = model.config

    def of(array: Any, layer: int) -> np.ndarray | None:
        return None if array is None else np.asarray(fetch(array[layer]), np.float32)

    found = []
    for layer in range(config.num_layers):
        down, up = of(weights.down, layer), of(weights.up, layer)
        assert down is not None
        assert up is not None
        gains = mlp_gains(
            down,
            up,
            of(weights.gate, layer),
            squared=config.activation == "relu2",
            scale=of(weights.scale, layer),
            shift=of(weights.shift, layer),
            up_bias=of(weights.up_bias, layer),
            centred=weights.normed and config.norm.kind == "layer",
            out_scale=of(weights.out_scale, layer),
        )
        found.append(largest_gain(layer + 1, gains))
    return found
