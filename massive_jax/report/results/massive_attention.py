"""Attention to massive activations over a corpus, and the bias that it implies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from massive_jax.analysis.massive import DEFINITION, Thresholds
from massive_jax.report.records import optional
from massive_jax.report.results.census import Null
from massive_jax.report.results.source import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class MassiveCount:
    """Massive tokens: the first of every window (position 0, token null), or those with one text; of images one place.

    Attributes:
      count: how many.
    """

    position: int | None
    token: str | None
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOfHead:
    """A head, from 0; the numbers are those of `AttentionOfLayer`, `random_spread` a mean over the draws."""

    head: int
    concentration: float
    logit_massive: float
    logit_others: float
    spread: float
    rest_spread: float
    random_spread: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorsOf:
    """Some tokens' vectors.

    Attributes:
      top: share of the squared norm in the largest 1 % of the dims, mean over the tokens.
      kurtosis: fourth central moment over squared variance, mean over the tokens.
      cosine: mean cosine similarity of two of the tokens, of one window or two.
    """

    top: float
    kurtosis: float
    cosine: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorsAt:
    """Vectors at a site, heads concatenated: of the massive tokens, and of 8 others of each window, drawn at random."""

    massive: VectorsOf
    others: VectorsOf


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOfLayer:
    """A layer; C are a window's massive tokens, P attention probabilities, v values.

    Means are over the heads, and over the windows that have a massive token. Updates are u_q = Σ_{i∈C} P_qi v_i, heads
    concatenated, of the queries that see a token of C and are none.

    Attributes:
      layer: 1-based.
      concentration: Σ_{i∈C} P_qi, mean over all queries.
      baseline: what attention to all visible tokens alike would give.
      slots: attention on the slots of an explicit attention bias.
      logit_massive: what enters the softmax for the keys in C that a query sees, mean over the queries that see others.
      logit_others: of the other keys that those queries see.
      spread: mean over q of ‖u_q − ū‖ / ‖ū‖ in a window: 0 for a bias (paper, section 4.3, as a number).
      rest_spread: the same of the other tokens' updates Σ_{i∉C} P_qi v_i.
      random_spread: the same of random sets of tokens as large, over the queries that see them.
      across_windows: root mean square over windows of ‖ū of the window − b‖ / ‖b‖; b, the implicit bias, is the mean
        of all ū, which attention.npz holds; null of one window.
      update_norm: mean of ‖u_q‖.
      rest_norm: of the other tokens'.
      slot_norm: of what slots with values add.
      intervals: of concentration, logit_massive, logit_others, spread and rest_spread the 95 % interval of the mean
        over windows; [null, null] of one window.
      vectors: at attn_norm (the normed input), query, key (before the rotary embedding) and value.
      heads: each head.
    """

    layer: int
    concentration: float
    baseline: float
    slots: float | None = optional()
    logit_massive: float
    logit_others: float
    spread: float
    rest_spread: float
    random_spread: Null
    across_windows: float
    update_norm: float
    rest_norm: float
    slot_norm: float | None = optional()
    intervals: Mapping[str, tuple[float, ...]]
    vectors: Mapping[str, VectorsAt]
    heads: tuple[AttentionOfHead, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOfSome:
    """Means over the layers from `first` to `last`."""

    first: int
    last: int
    concentration: float
    baseline: float
    logit_massive: float
    logit_others: float
    spread: float
    rest_spread: float
    random_spread: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondarySinks:
    """Tokens with one text, not the first of their window, that are sinks from layer `begins` on (arXiv 2512.22213).

    The share of a token is its attention from the queries after it, mean over them and over heads; it is above the
    threshold in three layers one after the other at least.

    Attributes:
      token: the text.
      begins: 1-based.
      ends: the last layer, of most of them.
      count: how many.
      massive: how many of these are massive tokens too.
      share: the largest in a layer, mean over them.
      mlp_layer: of the layers before, that whose MLP adds most to the token (null where they begin at layer 1).
      mlp_ratio: norm of what it adds, over the median of the window's other tokens.
      mlp_cosine: of that with the first token's hidden state after the layer.
    """

    token: str
    begins: int
    ends: int
    count: int
    massive: int
    share: float
    mlp_layer: int | None
    mlp_ratio: float
    mlp_cosine: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MassiveAttention(Run):
    """attention.json; attention.npz has the implicit bias itself: bias, float32 [layers, heads, head width].

    Attributes:
      thresholds: the definition of massive; a token is that meets it in the output of a layer, of one at least, …
      apart: … and is there this many times as large as the middle token of its window: in a residual sink, a dim that
        is large on every token, none is.
      draws: random sets of tokens.
      seed: of those.
      sink_share: of attention, above which another token than the first is a secondary sink.
      count: how many images; None for a text, whose windows are counted.
      finding: what was found, in one sentence.
      with_massive: how many windows, or images, have a massive token.
      massive: those tokens, the most frequent first.
      everywhere: how many more meet the definition, and do not stand apart.
      birth: the first layer whose largest activations have full size; None without massive tokens.
      before: the layers up to that one, whose attention reads what is before it.
      after: the layers after it.
      error: the largest ‖update + rest − the heads' outputs‖ / ‖the heads' outputs‖ of any token; None where gates or
        slots change those.
      layers: every layer; none without massive tokens.
      secondary_sinks: groups of these, the largest first.
    """

    thresholds: Thresholds = DEFINITION
    apart: float
    draws: int
    seed: int = 0
    sink_share: float
    count: int | None = optional()
    finding: str
    with_massive: int
    massive: tuple[MassiveCount, ...]
    everywhere: int = 0
    birth: int | None
    before: AttentionOfSome | None = None
    after: AttentionOfSome | None = None
    error: float | None = None
    layers: tuple[AttentionOfLayer, ...]
    secondary_sinks: tuple[SecondarySinks, ...] = ()
