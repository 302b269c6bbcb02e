"""Log-likelihoods of continuations of any lengths: in few compiled programs, and only the rows that are scored.

Axis letters: see `massive_jax.probe.sites`; R scored rows, A last tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import shown
from massive_jax.evaluate.batches import TOKENS_A_BATCH, edits_for, rows_a_batch
from massive_jax.forward import forward, left_pad
from massive_jax.model import Model, TextModel
from massive_jax.models import head_of
from massive_jax.models.loss import chunked_scores
from massive_jax.parallel import fetch, mesh_of_params, mesh_set
from massive_jax.probe import CapturePlan, Edit, as_edits

_MOST_LENGTHS = 8  # that sequences are padded to
_COARSEST = 256  # lengths that are looked at for that, on a grid of 8 tokens or coarser

Scored = tuple[int, float, bool]
"""Which pair, its log-likelihood in nats, and whether every token of its continuation is the most likely one."""


@dataclasses.dataclass
class _Row:
    """What the model is run on once: a context, and a continuation but for its last token, in which several may differ.

    Attributes:
      ids: those tokens.
      lasts: the tokens that come after them, each once -> its place among them.
      longest: tokens of the longest continuation.
      pairs: of each pair its number, the place of its last token, and the length of its continuation.
    """

    ids: tuple[int, ...]
    lasts: dict[int, int] = dataclasses.field(default_factory=dict)
    longest: int = 1
    pairs: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)


def score_continuations(
    model: Model,
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    edits: Edit | Sequence[Edit] | None = None,
    *,
    batch_tokens: int = TOKENS_A_BATCH,
) -> Iterator[Scored]:
    """Computes log p(continuation | context) of many pairs of token ids, those of a batch as it is done.

    Pairs that differ in the last token only, as the one-token answers to a question do, are one row of a batch. Rows
    are sorted by length and padded to at most 8 lengths, chosen so that little is padded.

    Args:
      model: a language model.
      pairs: context and continuation, at least one token each.
      edits: interventions; positions count a sequence's own tokens. The last token of a continuation is not run.
      batch_tokens: tokens of a batch, padding included.

    Yields:
      (number of the pair, log-likelihood in nats, whether every token is the most likely one), in any order.

    Raises:
      ValueError: an empty context or continuation, or both longer than the model takes; ids that it does not have; an
        edit of the logits, one with a position for each input, or beyond the end of a sequence; see also
        `Model.__call__`. Raised before anything is compiled.

    Examples:
      >>> from massive_jax.evaluate import score_continuations
      >>> context = model.encode("The capital of France is")
      >>> answers = [model.encode(" Paris"), model.encode(" Rome")]
      >>> found = sorted(score_continuations(model, [(context, answer) for answer in answers]))
      >>> [(number, round(score, 2), likeliest) for number, score, likeliest in found]
      [(0, -0.26, True), (1, -7.57, False)]
    """
    language = TextModel.of(model)
    rows = _rows(language, pairs)
    fixed = continuation_edits(edits)
    if not rows:
        return
    rows.sort(key=lambda row: len(row.ids))
    tokens, mask = left_pad([rows[0].ids])  # the shortest: where an edit fits it, it fits all
    language.compile_edits(fixed, language.check_tokens(tokens, mask), mask)
    for length, its in _levels(rows, language.config.context_length, batch_tokens):
        yield from _scores_of(language, its, length, fixed, batch_tokens)


def continuation_edits(edits: Edit | Sequence[Edit] | None) -> list[Edit]:
    """Gives edits that suit sequences of any number and length.

    Raises:
      ValueError: one has a position for each input, or is of the logits.
    """
    found = as_edits(edits)
    for edit in found:
        if edit.site == "logits":
            raise ValueError("log-likelihoods do not build the logits whole, so they cannot edit them.")
        if isinstance(edit.position, np.ndarray | jax.Array) and edit.position.ndim:
            raise ValueError(
                f"an edit of {shown(edit.site)} has a position for each of {len(edit.position)} inputs; give one for "
                'all of them, or a rule such as "first_delimiter".'
            )
    return edits_for(found, slice(None))


def _rows(model: TextModel, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[_Row]:
    """What has to be run for `pairs`, each input once."""
    rows: dict[tuple[int, ...], _Row] = {}
    most, vocabulary = model.config.context_length, model.config.vocab_size
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not len(continuation):
            what = "continuation" if len(context) else "context"
            raise ValueError(f"pair {number} has an empty {what}; give at least one token of each.")
        ids = (*map(int, context), *map(int, continuation))
        if len(ids) - 1 > most:
            raise ValueError(
                f"pair {number} has {len(ids)} tokens; the model takes {most} and scores one more. Shorten the context."
            )
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise ValueError(f"pair {number} has token ids from {min(ids)} to {max(ids)}; give 0 to {vocabulary - 1}.")
        row = rows.setdefault(ids[:-1], _Row(ids[:-1]))
        place = row.lasts.setdefault(ids[-1], len(row.lasts))
        row.longest = max(row.longest, len(continuation))
        row.pairs.append((number, place, len(continuation)))
    return list(rows.values())


def _levels(rows: Sequence[_Row], most: int, batch_tokens: int) -> Iterator[tuple[int, list[_Row]]]:
    """Rows sorted by length, in groups that are padded to one length."""
    lengths = padded_lengths([len(row.ids) for row in rows], batch_tokens)
    for length, group in itertools.groupby(zip(lengths, rows, strict=True), key=lambda both: both[0]):
        yield min(length, most), [row for _, row in group]


def padded_lengths(lengths: Sequence[int], batch_tokens: int = TOKENS_A_BATCH) -> list[int]:
    """Chooses what each of several lengths, ascending, is padded to: at most 8 lengths, each a program to compile.

    Of all choices it is the one of the fewest tokens, where another length counts as much as a batch.
    """
    grid = 8 * max(1, -(-max(lengths) // (8 * _COARSEST)))
    rounded = -(-np.asarray(lengths) // grid) * grid
    sizes, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # best[j]: tokens that the j shortest sizes take, with k lengths; came[k][j]: how many of them the others take.
    best = np.where(before > 0, np.inf, 0.0)
    came, totals = [], []
    for _ in range(min(_MOST_LENGTHS, len(sizes))):
        cost = best[None, :-1] + sizes[:, None] * (before[1:, None] - before[None, :-1])
        cost = np.where(np.tri(len(sizes), dtype=bool), cost, np.inf)
        came.append(np.argmin(cost, axis=1))
        best = np.concatenate([[np.inf], cost.min(axis=1)])
        totals.append(best[-1] + batch_tokens * len(came))
    chosen, end = np.empty(len(sizes), np.int64), len(sizes)
    for k in range(int(np.argmin(totals)), -1, -1):
        start = int(came[k][end - 1])
        chosen[start:end], end = sizes[end - 1], start
    return chosen[np.searchsorted(sizes, rounded)].tolist()


def _scores_of(
    model: TextModel, rows: Sequence[_Row], length: int, edits: list[Edit], batch_tokens: int
) -> Iterator[Scored]:
    """Scores rows that are padded to one length, in batches of one shape."""
    size = rows_a_batch(len(rows), length, batch_tokens)
    scored = min(length, _power_of_two(max(row.longest for row in rows)))
    last = np.zeros((len(rows), _power_of_two(max(len(row.lasts) for row in rows))), np.int32)
    for i, row in enumerate(rows):
        last[i, : len(row.lasts)] = list(row.lasts)
    for start in range(0, len(rows), size):
        its = rows[start : start + size]
        which = np.minimum(np.arange(start, start + size), len(rows) - 1)  # the last one again, to the batch's end
        tokens, mask = left_pad([rows[i].ids for i in which], length=length)
        tokens, positions = model.check_inputs(tokens, mask)
        compiled = model.compile_edits(edits, tokens, mask)
        with mesh_set(mesh_of_params(model.params)):
            found = _scores(model.module, model.params, compiled, tokens, positions, last[which], scored)
        inner, likely, last_nll, last_likely = fetch(found)
        for i, row in enumerate(its):
            for number, place, count in row.pairs:
                from_here = scored - count  # of the R - 1 rows before the last
                nll = np.sum(inner[i, from_here:], dtype=np.float64) + float(last_nll[i, place])
                yield number, -float(nll), bool(likely[i, from_here:].all() and last_likely[i, place])


@functools.partial(jax.jit, static_argnames=("module", "scored"))
def _scores(
    module: Any, params: Any, edits: Any, tokens: jax.Array, positions: jax.Array, last: jax.Array, scored: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """-log p, and whether it is the most likely token: of the last R - 1 tokens [B, R - 1], and of A next ones [B, A].

    Padding is in front, so that a sequence's last tokens are in the last columns.
    """
    config, head = module.config, head_of(module.config, params)
    hidden = forward(module, params, edits, CapturePlan(), tokens, logits=False, positions=positions).last_hidden
    inner, likely = jnp.zeros((len(tokens), 0)), jnp.zeros((len(tokens), 0), bool)
    if scored > 1:
        found = chunked_scores(config, hidden[:, -scored:-1], head, tokens[:, 1 - scored :, None])
        inner, likely = (array[..., 0] for array in found)
    nll, likely_last = (array[:, 0] for array in chunked_scores(config, hidden[:, -1:], head, last[:, None]))
    return inner, likely, nll, likely_last


def _power_of_two(count: int) -> int:
    """The least power of two from `count` on."""
    return 1 << (count - 1).bit_length()
