"""What is a massive activation, and where (paper, section 2). Host arrays in, plain records out.

Axis letters: see `massive_jax.probe.sites`; W sequences (windows of a text, or the one prompt), k values kept of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from massive_jax.arguments import number, seed_number, whole_number

FIRST_DELIMITER = "first_delimiter"


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Holds the definition's two criteria.

    Attributes:
      magnitude: an activation is massive above this magnitude …
      ratio: … and more than this many times the median magnitude of its hidden state.
    """

    magnitude: float = 100.0
    ratio: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("magnitude", "ratio"):
            number(f"threshold {name}", getattr(self, name))
        if self.magnitude < 0 or self.ratio < 0:
            raise ValueError(f"thresholds must not be negative; got {self.magnitude} and {self.ratio}.")


DEFINITION = Thresholds()


@dataclasses.dataclass(frozen=True)
class Location:
    """Describes a place in the hidden states of several sequences that holds a large activation.

    Attributes:
      position: token position, or "first_delimiter" where it differs between sequences but is always that token.
      dim: index along the width.
      value: mean over the sequences that have it of the signed activation.
      ratio: mean over them of magnitude over median magnitude.
      share: fraction of the sequences that have it among their k largest.
      example: (sequence, position) of one occurrence.
      meets_magnitude: whether the mean magnitude exceeds the threshold.
      meets_ratio: whether the mean ratio does.
    """

    position: int | str
    dim: int
    value: float
    ratio: float
    share: float
    example: tuple[int, int]
    meets_magnitude: bool
    meets_ratio: bool

    @property
    def massive(self) -> bool:
        """Tells whether both criteria are met."""
        return self.meets_magnitude and self.meets_ratio


def massive_tokens(largest: np.ndarray, median: np.ndarray, thresholds: Thresholds = DEFINITION) -> np.ndarray:
    """Tells which tokens are massive: bool [..., T].

    Args:
      largest: float [..., T], every token's largest magnitude in a hidden state.
      median: float [...], the median magnitude of that hidden state.
      thresholds: the definition.

    Examples:
      >>> from massive_jax.analysis import massive_tokens
      >>> massive_tokens(np.array([900.0, 3.0, 90.0]), np.array(0.5)).tolist()
      [True, False, False]
    """
    # In float64: where most of x is 0 so is its median, and the ratio above the largest float32.
    ratio = largest.astype(np.float64) / np.maximum(median, np.finfo(np.float32).tiny)[..., None]
    return (largest > thresholds.magnitude) & (ratio > thresholds.ratio)


def stands_apart(largest: np.ndarray, apart: float) -> np.ndarray:
    """Tells which tokens stand apart from their sequence's middle one (the lower of two): bool [..., T].

    Args:
      largest: float [..., T], every token's largest magnitude in a hidden state.
      apart: how many times the middle token's such a token's is.

    Examples:
      >>> from massive_jax.analysis import stands_apart
      >>> stands_apart(np.array([[900.0, 3.0, 90.0], [900.0, 850.0, 990.0]]), 5).tolist()
      [[True, False, False], [False, False, False]]
    """
    return largest > apart * np.sort(largest, axis=-1)[..., (largest.shape[-1] - 1) // 2, None]


def rank_locations(
    values: np.ndarray,
    positions: np.ndarray,
    dims: np.ndarray,
    median: np.ndarray,
    *,
    thresholds: Thresholds = DEFINITION,
    delimiters: np.ndarray | None = None,
) -> list[Location]:
    """Groups the largest activations of several sequences by where they sit, largest mean magnitude first.

    Args:
      values: float [W, k], signed.
      positions: int [W, k].
      dims: int [W, k].
      median: float [W], median magnitudes.
      thresholds: the definition.
      delimiters: int [W], position of each sequence's first delimiter (-1 for none), to recognise activations that
        follow it: they are one location, "first_delimiter", wherever they differ in position.
    """
    W, k = values.shape
    groups: dict[tuple[int | str, int], list[tuple[int, int]]] = {}
    for w in range(W):
        for i in range(k):
            groups.setdefault((int(positions[w, i]), int(dims[w, i])), []).append((w, i))
    if delimiters is not None and W > 1:
        _merge_delimiters(groups, positions, delimiters, W)
    found = []
    for (position, dim), members in groups.items():
        index = tuple(np.asarray(members).T)
        signed = values[index].astype(np.float64)
        ratios = np.abs(signed) / np.maximum(median[index[0]], np.finfo(np.float32).tiny)
        example = (members[0][0], int(positions[members[0]]))
        found.append(
            Location(
                position,
                dim,
                float(signed.mean()),
                float(ratios.mean()),
                len(members) / W,
                example,
                bool(np.abs(signed).mean() > thresholds.magnitude),
                bool(ratios.mean() > thresholds.ratio),
            )
        )
    return sorted(found, key=lambda location: (-location.share * abs(location.value), -location.share))


def find_massive(
    locations: Sequence[Location], *, share: float = 0.5, either: bool = False, limit: int | None = None
) -> list[Location]:
    """Gives the locations that meet both criteria (or `either`), in at least `share` of the sequences.

    Raises:
      ValueError: a share that is not from 0 to 1, or a negative limit.

    Examples:
      >>> from massive_jax.analysis import find_massive, rank_locations
      >>> values, dims = np.array([[900.0, 80.0]]), np.array([[5, 7]])
      >>> ranked = rank_locations(values, np.zeros((1, 2), int), dims, median=np.array([0.5]))
      >>> [(location.position, location.dim, location.ratio) for location in find_massive(ranked)]
      [(0, 5, 1800.0)]
    """
    number("share", share, 0, 1)
    if limit is not None:
        whole_number("limit", limit, 0)
    kept = [
        location
        for location in locations
        if location.share >= share
        and (location.massive or (either and (location.meets_magnitude or location.meets_ratio)))
    ]
    return kept[:limit]


def full_size_layer(largest: np.ndarray, fraction: float = 0.5) -> int:
    """Gives the first layer (1-based) whose largest magnitude is at least `fraction` of any layer's. float [L] -> l.

    Raises:
      ValueError: no layers; a magnitude that is not finite, of which none is the largest; a fraction not from 0 to 1.

    Examples:
      >>> from massive_jax.analysis import full_size_layer
      >>> full_size_layer([1.0, 80.0, 900.0, 1000.0])
      3
    """
    largest = np.asarray(largest)
    number("fraction", fraction, 0, 1)
    if largest.ndim != 1 or not largest.size or not np.isfinite(largest).all():
        raise ValueError(f"largest has shape {largest.shape}: give a finite magnitude of every layer, of one at least.")
    return int(np.argmax(largest >= fraction * largest.max())) + 1


def median_places(
    hidden: np.ndarray, count: int, *, exclude: Sequence[tuple[int, int]] = (), seed: int = 0
) -> list[tuple[int, int]]:
    """Draws random (position, dim) places whose magnitude is close to the median: controls for an intervention.

    Args:
      hidden: float [T, D], one hidden state.
      count: how many.
      exclude: places not to choose.
      seed: of the choice.

    Raises:
      ValueError: fewer places than that; values that are not finite, which have no median; a negative count; a seed
        out of range.
    """
    whole_number("count", count, 0)
    seed = seed_number(seed)
    if not np.isfinite(np.asarray(hidden, np.float32)).all():
        raise ValueError("hidden has values that are not finite, so there is no median.")
    magnitude = np.abs(hidden.astype(np.float32))
    distance = np.abs(magnitude - np.median(magnitude))
    distance[tuple(np.asarray(exclude, int).reshape(-1, 2).T)] = np.inf
    available = int(np.isfinite(distance).sum())
    if count > available:
        raise ValueError(f"{count} places near the median: there are only {available} to choose from.")
    # The pool is the tenth of the elements nearest the median, but large enough to choose from.
    size = min(max(4 * count, magnitude.size // 10), available)
    pool = np.argsort(distance, axis=None, kind="stable")[:size]
    chosen = np.random.default_rng(seed).choice(pool, size=count, replace=False)
    return [(int(t), int(d)) for t, d in zip(*np.unravel_index(chosen, hidden.shape), strict=True)]


def _merge_delimiters(
    groups: dict[tuple[int | str, int], list[tuple[int, int]]],
    positions: np.ndarray,
    delimiters: np.ndarray,
    W: int,
) -> None:
    """Moves occurrences at their sequence's first delimiter to one group, unless their position is a fixed one."""
    for key in list(groups):
        dim = key[1]
        if len(groups[key]) >= W / 2:
            continue
        at_delimiter = [(w, i) for w, i in groups[key] if positions[w, i] == delimiters[w]]
        if at_delimiter:
            groups.setdefault((FIRST_DELIMITER, dim), []).extend(at_delimiter)
            groups[key] = [member for member in groups[key] if member not in at_delimiter]
            if not groups[key]:
                del groups[key]


median_sites = median_places  # its name when a place was called a site
