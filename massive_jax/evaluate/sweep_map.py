"""What an edit does in each layer at each position, and how well gradients tell. Axis letters: `massive_jax.probe`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from massive_jax.analysis import rank_correlation
from massive_jax.arguments import shown
from massive_jax.evaluate.batches import Progress
from massive_jax.model import TextModel
from massive_jax.parallel import fetch
from massive_jax.probe.sites import find_site
from massive_jax.sweep import METRICS, EditGrid, Sweep, metric_function
from massive_jax.sweep.metrics import find_metric

_OPS = ("set", "scale", "add")


@dataclasses.dataclass(frozen=True, eq=False)
class SweepMap:
    """Holds a metric under an edit in each layer at each position.

    Attributes:
      sweep: the truth, [L, T].
      approximate: float32 [L, T], the effects to first order: the change of the tensor times the metric's gradient
        (attribution patching); None of a metric whose gradient at the unedited run is 0, as that of "kl" is.
      spearman: the rank correlation of the two; None where there is none.
    """

    sweep: Sweep
    approximate: np.ndarray | None
    spearman: float | None


def check_site(site: Any) -> None:
    """Raises a ValueError where `site` is none of the blocks'."""
    if not find_site(site).per_layer:
        raise ValueError(f"site {site} is outside the blocks; give one that every block has.")


def measure_sweep(
    model: TextModel,
    tokens: np.ndarray,
    site: str,
    metric: str,
    *,
    data: Any = None,
    op: str = "set",
    value: Any = 0.0,
    dim: int | None = None,
    path: Any = None,
    progress: Progress | None = None,
) -> SweepMap:
    """Edits a site in each layer at each position, one at a time, and takes the gradients of the metric there.

    Args:
      model: a language model.
      tokens: int [1, T].
      site: of the blocks.
      metric: a name in `massive_jax.sweep.METRICS`.
      data: its tokens, as `Model.sweep` takes them.
      op: "set", "scale" or "add".
      value: a number, or what a capture of another run has there, [L, 1, T, …].
      dim: the one that is edited; None for all.
      path: of the file that the sweep goes on from.
      progress: called with the number of edits done.

    Raises:
      ValueError: as `Model.sweep`; a site outside the blocks; another operation.
    """
    check_site(site)
    if op not in _OPS:
        raise ValueError(f"op is {shown(op)}; give one of {', '.join(_OPS)}.")
    if not isinstance(metric, str):
        raise ValueError(f"metric is {shown(metric)}; give one of {', '.join(METRICS)}.")
    dims = None if dim is None else [dim]
    grid = EditGrid(site, dims=dims, op=op, value=value)
    found = model.sweep(tokens, grid, metric, data=data, path=path, progress=progress or False)
    shape = (model.config.num_layers, tokens.shape[1])
    found = dataclasses.replace(found, values=found.values.reshape(shape))
    if METRICS[metric].beside:
        return SweepMap(found, None, None)
    ids = find_metric(metric, data, model, len(tokens))[1]
    slopes = model.gradient(tokens, metric_function(metric), site, data=tokens if ids is None else ids)
    x, gradient = (np.asarray(fetch(of[site]), np.float32) for of in (slopes.activations, slopes.gradients))
    change = {"set": value - x, "scale": (value - 1) * x, "add": value + 0 * x}[op]
    product = change * gradient if dim is None else (change * gradient)[..., dim]
    at = 1 + find_site(site).axes.index("T")
    approximate = product.sum(axis=tuple(i for i in range(1, product.ndim) if i != at))
    return SweepMap(found, approximate, rank_correlation(approximate, found.effects))
