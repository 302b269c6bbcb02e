"""Super weights (arXiv 2411.07191), and what the weights alone tell of massive activations (arXiv 2605.08504).

Host arrays in, plain records out. Axis letters: see `massive_jax.probe.sites`; W windows.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from massive_jax.analysis.bootstrap import Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """Says which weight the largest number that an MLP adds comes through.

    Attributes:
      layer: 1-based.
      position: of the token in most windows.
      unit: row of the down projection: the largest input of it there, in most windows.
      dim: its column: the dim of the largest output.
      share: of the windows, how many have this unit, dim and position.
      hidden: that input, mean over those windows.
      output: what the MLP adds to the residual stream there, mean over them.
      ratio: its magnitude over the median magnitude of the block's output, mean over them.
    """

    layer: int
    position: int
    unit: int
    dim: int
    share: float
    hidden: float
    output: float
    ratio: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruned:
    """Holds what a model scores without some weights; intervals are of a bootstrap over windows.

    Attributes:
      weights: how many are 0.
      perplexity: without them.
      nats: how far the negative log-likelihood a token is above the whole model's (paired).
    """

    weights: int
    perplexity: Interval
    nats: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperWeight(Signature):
    """Describes a weight that was put to the test: the model without it, and without the largest others of its matrix.

    Attributes:
      value: of the weight.
      rank: by magnitude in its matrix, from 1.
      size: how many weights that matrix has.
      without: the model without it.
      without_others: the model without the largest others of the matrix.
      excess: how far the first's nats are above the second's (paired).
      confirmed: whether it is a super weight: without it the loss is worse by at least 0.1 nats a token, and worse than
        without the others, both beyond the intervals (with one window, which has none: both by 0.1 nats).
    """

    value: float
    rank: int
    size: int
    without: Pruned
    without_others: Pruned
    excess: Interval
    confirmed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """Gives the most that one unit of a layer's MLP can write to one dim, by its weights alone: see `mlp_gains`."""

    layer: int
    gain: float
    unit: int
    dim: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromWeights:
    """Says what the weights alone tell, and whether it is so.

    Attributes:
      gains: of every layer, the largest.
      largest_layer: the layer of the largest gain.
      named_layer: where they say that the massive activation is born: of the two layers of largest gain in the same
        dim, the earlier one, as what is added has to be taken away again.
      birth_layer: where it is: the first whose largest activation is at least half of any layer's.
      birth_rank: of that layer by gain, from 1.
      names_birth: whether the named layer is that one.
      names_weight: whether unit and dim of the gain at the birth are those that the activations there show.
    """

    gains: tuple[Gain, ...]
    largest_layer: int
    named_layer: int
    birth_layer: int
    birth_rank: int
    names_birth: bool
    names_weight: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperWeights:
    """Describes the super weights of a model.

    Attributes:
      perplexity: of the whole model.
      signatures: of every layer.
      tested: those weights whose output is massive, the largest outputs first; not all where a number was given.
      from_weights: what the weights alone say.
    """

    perplexity: Interval
    signatures: tuple[Signature, ...]
    tested: tuple[SuperWeight, ...]
    from_weights: FromWeights

    @property
    def confirmed(self) -> tuple[SuperWeight, ...]:
        """Gives those that pruning has confirmed."""
        return tuple(weight for weight in self.tested if weight.confirmed)


def find_signature(layer: int, found: Mapping[str, np.ndarray]) -> Signature:
    """Finds what most windows agree on.

    Args:
      layer: 1-based.
      found: arrays [W]: "positions", "dims" and "outputs", where each window's largest output of the MLP is, and the
        signed number; "units" and "hidden", the largest input of the down projection at that position, and the signed
        number; "median", the median magnitude of the block's output.
    """
    outputs, hidden, median = found["outputs"], found["hidden"], found["median"]
    places = list(zip(*(found[name].tolist() for name in ("positions", "dims", "units")), strict=True))
    place = Counter(places).most_common(1)[0][0]
    here = np.array([other == place for other in places])
    position, dim, unit = place
    ratios = np.abs(outputs[here].astype(np.float64)) / np.maximum(median[here], np.finfo(np.float32).tiny)
    return Signature(
        layer=layer,
        position=int(position),
        unit=int(unit),
        dim=int(dim),
        share=float(here.mean()),
        hidden=float(hidden[here].mean(dtype=np.float64)),
        output=float(outputs[here].mean(dtype=np.float64)),
        ratio=float(ratios.mean()),
    )


def rank_of(matrix: np.ndarray, row: int, column: int) -> int:
    """Says which in the order of magnitudes an entry of a matrix is, from 1.

    Examples:
      >>> from massive_jax.analysis import rank_of
      >>> rank_of(np.array([[1.0, -7.0], [5.0, 0.5]]), 1, 0)
      2
    """
    magnitude = np.abs(matrix)
    return int((magnitude > magnitude[row, column]).sum()) + 1


def largest_others(matrix: np.ndarray, row: int, column: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the `count` entries of largest magnitude beside one: rows [count], columns [count]; all others if fewer."""
    magnitude = np.abs(matrix).astype(np.float32).ravel()
    magnitude[row * matrix.shape[1] + column] = -1.0
    count = min(count, magnitude.size - 1)
    chosen = np.argpartition(-magnitude, count - 1)[:count] if count else np.zeros(0, int)
    rows, columns = np.unravel_index(chosen, matrix.shape)
    return rows, columns


def mlp_gains(
    down: np.ndarray,
    up: np.ndarray,
    gate: np.ndarray | None = None,
    *,
    squared: bool = False,
    scale: np.ndarray | None = None,
    shift: np.ndarray | None = None,
    up_bias: np.ndarray | None = None,
    centred: bool = False,
    out_scale: np.ndarray | None = None,
) -> np.ndarray:
    """Bounds what each unit of an MLP can write to each dim, by the weights alone: float32 [F, D].

    What it reads is n = scale · x + shift with ‖x‖ = √D. With g and u the unit's columns of gate and up times the
    scale, a gated unit is at most D (‖g‖‖u‖ + |g·u|) / 2, as an activation function is at most its input; a plain one
    √D ‖u‖ (squared: D ‖u‖²) and what biases add. Times |down| that is what it can write. A norm on the output leaves
    of that only the direction: √D |out_scale| |down| / ‖row of down‖.

    Args:
      down: [F, D].
      up: [D, F].
      gate: [D, F]; None of a plain MLP. Biases of a gated one are left out.
      squared: whether the activation function squares.
      scale: [D], of the norm before; None for ones.
      shift: [D], its bias; None for zeros.
      up_bias: [F]; None for zeros.
      centred: whether the norm takes the mean away.
      out_scale: [D], of the norm on the output; None for no such norm.
    """
    size, D = np.abs(down.astype(np.float32)), down.shape[1]
    if out_scale is not None:
        norms = np.maximum(np.linalg.norm(size, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return np.sqrt(D) * np.abs(out_scale.astype(np.float32)) * size / norms

    def read(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel.astype(np.float32) if scale is None else kernel * scale.astype(np.float32)[:, None]
        return kernel - kernel.mean(axis=0) if centred else kernel

    u = read(up)
    norm = np.linalg.norm(u, axis=0)
    if gate is not None:
        g = read(gate)
        unit = D * (np.linalg.norm(g, axis=0) * norm + np.abs((g * u).sum(axis=0))) / 2
    else:
        added = np.zeros(len(norm), np.float32) if up_bias is None else up_bias.astype(np.float32)
        if shift is not None:
            added = added + shift.astype(np.float32) @ up.astype(np.float32)
        unit = np.maximum(np.sqrt(D) * norm + added, 0.0)
        unit = unit**2 if squared else unit
    return np.asarray(unit[:, None] * size, np.float32)


def largest_gain(layer: int, gains: np.ndarray) -> Gain:
    """Gives the largest of [F, D] `mlp_gains`."""
    unit, dim = np.unravel_index(int(np.argmax(gains)), gains.shape)
    return Gain(layer=layer, gain=float(gains[unit, dim]), unit=int(unit), dim=int(dim))


def told_from_weights(gains: Sequence[Gain], birth: Signature) -> FromWeights:
    """Compares what the weights alone say with where the massive activation is born."""
    by_gain = sorted(gains, key=lambda gain: -gain.gain)
    same = [gain.layer for gain in by_gain if gain.dim == by_gain[0].dim][:2]
    at_birth = next(gain for gain in gains if gain.layer == birth.layer)
    return FromWeights(
        gains=tuple(gains),
        largest_layer=by_gain[0].layer,
        named_layer=min(same),
        birth_layer=birth.layer,
        birth_rank=by_gain.index(at_birth) + 1,
        names_birth=min(same) == birth.layer,
        names_weight=(at_birth.unit, at_birth.dim) == (birth.unit, birth.dim),
    )
