"""Secondary attention sinks: tokens other than the first that take much attention from a layer on (arXiv 2512.22213).

Axis letters: see `massive_jax.probe.sites`; W windows.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np

SINK_SHARE = 0.1  # of the attention of the queries after it
_LAYERS = 3  # one after the other, that it is above that in
_QUERIES = 8  # fewest after a token: a neighbour's attention is no sink


@dataclasses.dataclass(frozen=True)
class SecondarySink:
    """Describes a token other than the first that much attention goes to.

    Attributes:
      window: where: the window …
      position: … and the position in it.
      begins: 1-based, the first layer of the longest run of layers in which its share is above the threshold.
      ends: the last one of it.
      share: the largest in any of them: the mean over heads, and over the queries after it, of attention on it.
      mlp_layer: of the layers before `begins` that whose MLP adds the most to this token; None where there is none.
      mlp_ratio: norm of what it adds, over the median of the other tokens of the window.
      mlp_cosine: of that with the first token's hidden state after that layer.
    """

    window: int
    position: int
    begins: int
    ends: int
    share: float
    mlp_layer: int | None
    mlp_ratio: float
    mlp_cosine: float


@dataclasses.dataclass(frozen=True)
class SinkGroup:
    """Describes the secondary sinks with one text that begin at one layer.

    Attributes:
      token: their text.
      begins: that layer.
      count: how many.
      massive: how many of them are massive tokens.
      ends: the layer at which most of them end.
      mlp_layer: the layer whose MLP adds the most to most of them; None where they begin at layer 1.
      share, mlp_ratio, mlp_cosine: means over them; see `SecondarySink`.
    """

    token: str
    begins: int
    count: int
    massive: int
    ends: int
    mlp_layer: int | None
    share: float
    mlp_ratio: float
    mlp_cosine: float


class SinkCount:
    """Counts secondary sinks by text and first layer."""

    def __init__(self) -> None:
        """Starts with none."""
        self._ends: dict[tuple[str, int], Counter[int]] = {}
        self._layers: dict[tuple[str, int], Counter[int | None]] = {}
        self._sums: dict[tuple[str, int], np.ndarray] = {}

    def add(self, sink: SecondarySink, token: str, massive: bool) -> None:
        """Adds one, with its text and whether it is a massive token."""
        key = token, sink.begins
        self._ends.setdefault(key, Counter())[sink.ends] += 1
        self._layers.setdefault(key, Counter())[sink.mlp_layer] += 1
        self._sums[key] = self._sums.get(key, np.zeros(4)) + [sink.share, sink.mlp_ratio, sink.mlp_cosine, massive]

    def groups(self) -> tuple[SinkGroup, ...]:
        """Gives the groups, the largest first."""
        found = []
        for key, sums in self._sums.items():
            count = self._ends[key].total()
            means, massive = (sums[:3] / count).tolist(), int(sums[3])
            usual = (self._ends[key].most_common(1)[0][0], self._layers[key].most_common(1)[0][0])
            found.append(SinkGroup(*key, count, massive, *usual, *means))
        return tuple(sorted(found, key=lambda group: (-group.count, group.begins, group.token)))


def sink_tokens(received: np.ndarray, share: float) -> np.ndarray:
    """Tells which tokens get more than `share` of the attention of the queries after them: bool [..., T].

    Args:
      received: float [..., T], that share, mean over heads; of a causal model.
      share: the threshold. Tokens with fewer than 8 such queries are no sinks: a neighbour's attention makes none.
    """
    above = received > share
    above[..., max(0, above.shape[-1] - _QUERIES) :] = False
    return above


def find_secondary_sinks(
    received: np.ndarray, mlp_norm: np.ndarray, mlp_cosine: np.ndarray, share: float = SINK_SHARE
) -> list[SecondarySink]:
    """Finds the secondary sinks of causal sequences: above `share` in three layers one after the other, or more.

    Args:
      received: [L, W, T], the share of attention that each token gets of the queries after it, mean over heads; tokens
        with fewer than 8 such queries are left out.
      mlp_norm: [L, W, T], norm of what the MLP adds to each token.
      mlp_cosine: [L, W, T], its cosine to the first token's hidden state.
      share: the threshold.
    """
    above = sink_tokens(received, share)
    above[:, :, 0] = False
    found = []
    for window, position in np.argwhere(above.any(axis=0)).tolist():
        begins, ends = max(_runs(above[:, window, position]), key=lambda run: run[1] - run[0])
        if ends - begins + 1 < _LAYERS:
            continue
        largest = float(received[begins - 1 : ends, window, position].max())
        made: tuple[int | None, float, float] = (None, np.nan, np.nan)
        if begins > 1:
            before = mlp_norm[: begins - 1, window]
            others = np.median(np.delete(before, (0, position), axis=1), axis=1)
            ratios = before[:, position] / np.maximum(others, np.finfo(np.float32).tiny)
            layer = int(np.argmax(ratios)) + 1
            made = (layer, float(ratios[layer - 1]), float(mlp_cosine[layer - 1, window, position]))
        found.append(SecondarySink(window, position, begins, ends, largest, *made))
    return found


def _runs(above: np.ndarray) -> Iterator[tuple[int, int]]:
    """The runs of true layers, each as its first and its last, 1-based."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], above.astype(np.int8), [0]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield start + 1, stop
