"""Attention to massive activations over a corpus, and the bias that it implies (paper, section 4), in constant memory.

Two passes over the windows: the first finds the massive tokens, the second measures everything else inside the blocks
(`massive_jax.evaluate.attention_block`).
Axis letters: see `massive_jax.probe.sites`; W windows or images, R random sets, F width of a vector.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from massive_jax.analysis import (
    DEFINITION,
    SINK_SHARE,
    SinkCount,
    SinkGroup,
    Sums,
    Thresholds,
    find_secondary_sinks,
    full_size_layer,
    massive_tokens,
    mean_cosine,
    padded_sets,
    random_sets,
    stands_apart,
    uniform_share,
)
from massive_jax.arguments import number, seed_number, shown, whole_number
from massive_jax.data.windows import Windows
from massive_jax.evaluate.agreement import Images, check_data
from massive_jax.evaluate.attention_block import (
    SITES,
    VECTORS,
    largest_of_tokens,
    layers_by_window,
    numbers_of_block,
    visible_tokens,
)
from massive_jax.evaluate.batches import Progress, batches, input_length, not_finite
from massive_jax.model import ImageModel, Model
from massive_jax.parallel import fetch
from massive_jax.probe import Measure

ATTENTION_PASSES = 2  # of `measure_attention` over the windows
APART = 5.0  # times the largest magnitude of the window's middle token: less is a residual sink's
_OTHERS = 8  # tokens of a window that are not massive, whose vectors are looked at


@dataclasses.dataclass(frozen=True, eq=False)
class Spreads:
    """Says how constant value updates are over the queries: mean of ‖u − ū‖ over ‖ū‖, mean over windows; 0 for a bias.

    Attributes:
      massive: of the massive tokens' updates, heads concatenated; float64 [L].
      rest: of the other tokens' [L].
      random: of random sets' as large, [L, R], a column a draw of sets for all windows.
      massive_heads, rest_heads, random_heads: of each head [L, H], the last averaged over the draws.
    """

    massive: np.ndarray
    rest: np.ndarray
    random: np.ndarray
    massive_heads: np.ndarray
    rest_heads: np.ndarray
    random_heads: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class VectorNumbers:
    """Describes some tokens' vectors at a site, by layer: float64 [L].

    Attributes:
      top: share of the squared norm in the largest 1 % of the dims, mean over the tokens.
      kurtosis: fourth central moment over squared variance, of the dims, mean over the tokens.
      cosine: mean cosine similarity of two of the tokens, in one window or two.
    """

    top: np.ndarray
    kurtosis: np.ndarray
    cosine: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionNumbers:
    """Holds what attention does with massive tokens, by layer; means over the windows that have one.

    Attributes:
      concentration: share of attention on the massive tokens, mean over queries; float64 [L, H].
      baseline: that of a uniform attention to all that is seen; [L].
      slots: share on the slots of an attention bias; [L, H].
      logit_massive, logit_others: mean logit of the massive keys and of the others that a query sees; [L, H].
      bias: the massive tokens' value updates, mean over queries and windows: the implicit bias; float32 [L, H, N].
      across: its spread over windows: root mean square of ‖ū of a window − bias‖, over ‖bias‖; [L], NaN of one window.
      spreads: how constant the updates are within a window.
      update_norm, rest_norm: mean norm of the massive tokens' updates and of the others', heads concatenated; [L].
      slot_norm: the same of what slots add; None where that is nothing, or not told apart from a gate.
      error: the largest ‖update + rest − heads' outputs‖ / ‖heads' outputs‖ of any token; None where gates or slots
        change what attention gives.
      vectors: site -> of the massive tokens' and of other tokens' vectors there.
      intervals: of "concentration", "logit_massive", "logit_others" (mean over heads), "spread" (the massive tokens')
        and "rest_spread" the 95 % interval of the mean over windows, low and high, [L] each; NaN of one window.
    """

    concentration: np.ndarray
    baseline: np.ndarray
    slots: np.ndarray
    logit_massive: np.ndarray
    logit_others: np.ndarray
    bias: np.ndarray
    across: np.ndarray
    spreads: Spreads
    update_norm: np.ndarray
    rest_norm: np.ndarray
    slot_norm: np.ndarray | None
    error: float | None
    vectors: Mapping[str, tuple[VectorNumbers, VectorNumbers]]
    intervals: Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class MassiveTokens:
    """Counts massive tokens: of the first of every window, of those with one text, or of one place of images.

    Attributes:
      position: 0, or a place of images; None for any but the first of a window.
      token: their text; None for the first of a window, which may be any.
      count: how many.
    """

    position: int | None
    token: str | None
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionFindings:
    """Holds what `measure_attention` finds.

    Attributes:
      windows: how many windows or images.
      with_massive: how many of them have a massive token.
      massive: those tokens, the most frequent first.
      everywhere: how many tokens meet the definition and do not stand apart: others are about as large.
      birth: the first layer whose largest activations have full size (`full_size_layer`), None without massive tokens.
      numbers: by layer; None without massive tokens.
      sinks: the secondary sinks of a causal model; none without massive tokens.
    """

    windows: int
    with_massive: int
    massive: tuple[MassiveTokens, ...] = ()
    everywhere: int = 0
    birth: int | None = None
    numbers: AttentionNumbers | None = None
    sinks: tuple[SinkGroup, ...] = ()


def measure_attention(
    model: Model,
    data: Windows | Images,
    *,
    thresholds: Thresholds = DEFINITION,
    apart: float = APART,
    draws: int = 100,
    seed: int = 0,
    sink_share: float = SINK_SHARE,
    progress: Progress | None = None,
) -> AttentionFindings:
    """Measures what attention does with the massive tokens of every window, before and after the softmax.

    A token is massive where its largest magnitude meets the definition in the output of a layer, of one at least, and
    stands apart there: in a residual sink, a dim that is large on every token (arXiv 2601.22966), it is like any other.

    Args:
      model: the model.
      data: windows of one length, or images.
      thresholds: what is massive.
      apart: how many times the largest magnitude of the window's middle token (the lower of two) a massive token's is;
        0 to count what does not stand apart too.
      draws: R, how many random sets of tokens the massive ones are held against.
      seed: of the random tokens; a window's are its own, whatever the others are.
      sink_share: share of attention above which another token than the first is a sink (`find_secondary_sinks`).
      progress: called with the number of tokens after every batch, in each of `ATTENTION_PASSES`.

    Raises:
      ValueError: data that the model cannot take, padded windows, windows of a single token; an activation that is not
        finite.

    Examples:
      >>> from massive_jax.data import cut_windows, load_text
      >>> from massive_jax.evaluate import measure_attention
      >>> found = measure_attention(model, cut_windows(model, load_text("python"), windows=2, context=32))
      >>> found.birth, found.numbers.concentration.shape  # layers, heads
      (12, (30, 9))
    """
    check_data(model, data)
    if not isinstance(thresholds, Thresholds):
        raise ValueError(f"thresholds is {shown(thresholds)}; give Thresholds(magnitude, ratio).")
    if isinstance(data, Windows) and data.mask is not None:
        raise ValueError("attention is measured on windows of one length; cut them with cut_windows.")
    draws, seed = whole_number("draws", draws, 1), seed_number(seed)
    apart, sink_share = number("apart", apart, 0), number("sink_share", sink_share, 0, 1)
    inputs = data.inputs
    if input_length(model, inputs) < 2:
        raise ValueError("windows of a single token have nothing to attend to; give at least two.")
    member, everywhere, largest = _find_massive(model, inputs, thresholds, apart, progress)
    with_massive = int(member.any(axis=1).sum())
    if not with_massive:
        return AttentionFindings(len(inputs), 0, everywhere=everywhere)
    total = _Total(model, draws, sink_share)
    # Of one program for every corpus, nearly: room for a power of two of massive tokens.
    size = 1 << int(member.sum(axis=1).max() - 1).bit_length()
    rows = 0
    for which, batch in batches(inputs, progress, input_length(model, inputs)):
        rows = rows or len(batch)
        sets, others = _sets(member[which], which.start, size, draws, seed, model.config.causal)
        full = [np.resize(a, (rows, *a.shape[1:])) for a in (batch, sets, others)]
        found = _run(model, full[0], {"sets": full[1], "others": full[2]})
        total.add(_first(found, len(batch)), member[which], others, batch)
    massive = tuple(MassiveTokens(*which, count) for which, count in total.massive.most_common())
    birth, sinks = full_size_layer(largest), total.sinks.groups()
    return AttentionFindings(len(inputs), with_massive, massive, everywhere, birth, total.numbers(), sinks)


def _find_massive(
    model: Model, inputs: np.ndarray, thresholds: Thresholds, apart: float, progress: Progress | None
) -> tuple[np.ndarray, int, np.ndarray]:
    """The first pass.

    Returns:
      Which tokens are massive, bool [W, T]; how many meet the definition besides; each layer's largest magnitude, mean
      over windows.
    """
    member, everywhere, largest = [], 0, np.zeros(model.config.num_layers)
    capture = Measure("tokens", "block_out", largest_of_tokens)
    rows = 0
    for _, batch in batches(inputs, progress, input_length(model, inputs)):
        rows = rows or len(batch)
        full = np.resize(batch, (rows, *batch.shape[1:]))
        found = fetch(model(full, capture=capture, logits=False).intermediates["tokens"])
        size, median = (_first(found, len(batch))[name] for name in ("largest", "median"))
        finite = np.isfinite(size).all(axis=(1, 2)) & np.isfinite(median).all(axis=1)
        if not finite.all():
            raise not_finite(model, f"block {int(np.argmin(finite)) + 1}")
        met = massive_tokens(size, median, thresholds)
        member.append((met & stands_apart(size, apart)).any(axis=0))
        everywhere += int((met.any(axis=0) & ~member[-1]).sum())
        largest += size.max(axis=2).sum(axis=1, dtype=np.float64)
    return np.concatenate(member), everywhere, largest / len(inputs)


def _sets(
    member: np.ndarray, first: int, size: int, draws: int, seed: int, causal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Of windows from number `first` on: massive and random sets, int32 [B, 1 + R, m]; single other tokens [B, n]."""
    B = len(member)
    sets = np.full((B, 1 + draws, size), -1, np.int32)
    sets[:, 0] = padded_sets(member, size)
    others = np.full((B, _OTHERS), -1, np.int32)
    for row in range(B):
        rng = np.random.default_rng((seed, first + row))
        sets[row, 1:, : member[row].sum()] = random_sets(member[row], draws, rng, causal=causal)
        plain = rng.permutation(np.flatnonzero(~member[row]))[:_OTHERS]
        others[row, : len(plain)] = plain
    return sets, others


def _run(model: Model, batch: np.ndarray, data: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The numbers of every layer [L, B, …]."""
    config = model.config
    groups = layers_by_window(config, input_length(model, batch))
    captures = [
        Measure(f"attention {window}", SITES, numbers_of_block(config.causal, window), dict(data), layers)
        for window, layers in groups.items()
    ]
    found = fetch(model(batch, capture=captures, logits=False).intermediates)
    parts: list[dict[str, Any]] = [found[capture.name] for capture in captures]
    order = np.argsort([layer for layers in groups.values() for layer in layers])
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *a: np.concatenate(a)[order], *parts)


def _first(found: Any, count: int) -> Any:
    """Of the numbers [L, B, …] of a batch that is filled up, those of its own windows."""
    return jax.tree.map(lambda a: a[:, :count], found)


class _Total:
    """What batches of windows add up to."""

    def __init__(self, model: Model, draws: int, sink_share: float):
        self._model, self._draws, self._sink_share = model, draws, sink_share
        self._sums: dict[str, Sums] = {}
        self._error: float = 0.0
        self._vectors: dict[tuple[str, str], dict[str, Any]] = {}
        self._counts = {"massive": 0, "others": 0}
        self.massive: Counter[tuple[int | None, str | None]] = Counter()
        self.sinks = SinkCount()

    def add(self, found: Mapping[str, Any], member: np.ndarray, others: np.ndarray, batch: np.ndarray) -> None:
        """Adds windows: numbers [L, B, …], which tokens are massive [B, T], the others looked at [B, n], the inputs."""
        kept = member.any(axis=1)
        self._error = max(self._error, float(found["error"].max()))
        self._name_massive(member, batch)
        if self._model.config.causal:
            self._add_sinks(found, member, batch)
        if not kept.any():
            return
        found = jax.tree.map(lambda a: a[:, kept], dict(found))
        for name in (
            *("concentration", "slots", "logit_massive", "logit_others", "bias", "update_norm", "rest_norm"),
            *("apart_norm", "rest_spread", "rest_spread_heads"),
        ):
            self._sum(name, found[name])
        for name in ("spread", "spread_heads"):
            self._sum(f"massive_{name}", found[name][:, :, 0])
            self._sum(f"random_{name}", found[name][:, :, 1:])
        for name in ("concentration", "logit_massive", "logit_others"):
            self._sum(f"{name} of all heads", found[name].mean(axis=2))
        self._sum("baseline", self._baseline(member[kept]))
        self._sum("squares", np.square(found["bias"], dtype=np.float64).sum(axis=(2, 3)))
        self._counts["massive"] += int(member.sum())
        self._counts["others"] += int((others[kept] >= 0).sum())
        for site in VECTORS:
            for group, sums in found[site].items():
                total = self._vectors.setdefault((site, group), dict.fromkeys(sums, 0.0))
                for name, values in sums.items():
                    total[name] = total[name] + values.sum(axis=1, dtype=np.float64)

    def _sum(self, name: str, values: np.ndarray) -> None:
        """Adds an array [L, B, …] to those of its name; a window may have nothing to measure."""
        sums = Sums.of(values, where=np.isfinite(values))
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def numbers(self) -> AttentionNumbers:
        """What was added."""
        means, bias = {name: sums.mean for name, sums in self._sums.items()}, self._model.config.attention_bias
        gated = self._model.config.gate_axes is not None
        valued = bias is not None and bias.num_slots > 0 and (bias.traits.value or bias.traits.tokens)
        size = np.sqrt(np.square(means["bias"]).sum(axis=(1, 2)))
        apart = means["squares"] - np.square(size)
        same = ("concentration", "baseline", "slots", "logit_massive", "logit_others", "update_norm", "rest_norm")
        spreads = Spreads(
            massive=means["massive_spread"],
            rest=means["rest_spread"],
            random=means["random_spread"],
            massive_heads=means["massive_spread_heads"],
            rest_heads=means["rest_spread_heads"],
            random_heads=means["random_spread_heads"].mean(axis=1),
        )
        of_windows = ("concentration", "logit_massive", "logit_others")
        intervals = {name: self._sums[f"{name} of all heads"].interval for name in of_windows}
        return AttentionNumbers(
            **{name: means[name] for name in same},
            intervals=intervals
            | {"spread": self._sums["massive_spread"].interval, "rest_spread": self._sums["rest_spread"].interval},
            bias=means["bias"].astype(np.float32),
            across=np.where(self._sums["squares"].count > 1, np.sqrt(np.maximum(apart, 0)) / size, np.nan),
            spreads=spreads,
            slot_norm=means["apart_norm"] if valued and not gated else None,
            error=None if valued or gated else self._error,
            vectors={site: (self._of_vectors(site, "massive"), self._of_vectors(site, "others")) for site in VECTORS},
        )

    def _of_vectors(self, site: str, group: str) -> VectorNumbers:
        sums, count = self._vectors[site, group], self._counts[group]
        count_or_nan = count or np.nan
        top, kurtosis = (sums[name] / count_or_nan for name in ("top", "kurtosis"))
        return VectorNumbers(top, kurtosis, mean_cosine(sums["direction"], count))

    def _baseline(self, member: np.ndarray) -> np.ndarray:
        """The concentration of a uniform attention, [L, B]."""
        config, T = self._model.config, member.shape[1]
        found = np.zeros((config.num_layers, len(member)))
        for window, layers in layers_by_window(config, T).items():
            found[np.array(layers) - 1] = uniform_share(member, visible_tokens(T, config.causal, window))
        return found

    def _name_massive(self, member: np.ndarray, batch: np.ndarray) -> None:
        image = isinstance(self._model, ImageModel)
        for row in np.flatnonzero(member.any(axis=1)).tolist():
            positions = np.flatnonzero(member[row]).tolist()
            for position, text in zip(positions, self._texts(batch[row], positions), strict=True):
                first = position == 0 and not image
                self.massive[position if image or first else None, None if first else text] += 1

    def _add_sinks(self, found: Mapping[str, Any], member: np.ndarray, batch: np.ndarray) -> None:
        sinks = find_secondary_sinks(found["received"], found["mlp_norm"], found["mlp_cosine"], self._sink_share)
        for sink in sinks:
            (text,) = self._texts(batch[sink.window], [sink.position])
            self.sinks.add(sink, text, bool(member[sink.window, sink.position]))

    def _texts(self, one: np.ndarray, positions: list[int]) -> list[str]:
        """What tokens of one window or image are called."""
        if isinstance(self._model, ImageModel):
            names = self._model.token_texts(one)
            return [names[position] for position in positions]
        return self._model.token_texts(one[positions])
