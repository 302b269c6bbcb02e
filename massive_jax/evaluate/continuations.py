"""Log-likelihoods of continuations of any lengths: in few compiled programs, and only the rows that are scored.

Axis letters: see `massive_jax.probe.sites`; Q columns of a row, A tokens asked about at one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import shown
from massive_jax.evaluate.batches import TOKENS_A_BATCH, edits_for, rows_a_batch
from massive_jax.evaluate.shared_rows import Pair, Row, edits_of_rows, packing_of, rows_by_length
from massive_jax.forward import forward, left_pad
from massive_jax.model import Model, TextModel
from massive_jax.models import Packing, head_of
from massive_jax.models.loss import chunked_scores
from massive_jax.parallel import fetch, mesh_of_params, mesh_set
from massive_jax.probe import CapturePlan, Edit, as_edits

Scored = tuple[int, float, bool]
"""Which pair, its log-likelihood in nats, and whether every token of its continuation is the most likely one."""


def score_continuations(
    model: Model,
    pairs: Iterable[Pair],
    edits: Edit | Sequence[Edit] | None = None,
    *,
    batch_tokens: int = TOKENS_A_BATCH,
) -> Iterator[Scored]:
    """Computes log p(continuation | context) of many pairs of token ids, those of a batch as it is done.

    What several pairs begin with alike, as the answers to one question do, is run once, and rows of a batch hold many
    short pairs, so that little is padded. Not so under edits that look at a whole sequence (quantize, shuffle, move, a
    function of whole tensors), draw noise, have a value for each token, or are of attention's logits or probabilities:
    then each pair is a row, sorted by length and padded to at most 8 lengths.

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
    given, fixed = [*_checked(language, pairs)], continuation_edits(edits)
    if not given:
        return
    shortest = min(given, key=lambda pair: len(pair[0]) + len(pair[1]))
    tokens, mask = left_pad([[*shortest[0], *shortest[1]][:-1]])  # where an edit fits it, it fits all
    language.compile_edits(fixed, language.check_tokens(tokens, mask), mask)
    for length, shared, rows in rows_by_length(language, given, fixed, batch_tokens):
        yield from _scores_of(language, rows, length, shared, fixed, batch_tokens)


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


def _checked(model: TextModel, pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The pairs, each of which the model can score."""
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
        yield context, continuation


def _scores_of(
    model: TextModel, rows: Sequence[Row], length: int, shared: bool, edits: list[Edit], batch_tokens: int
) -> Iterator[Scored]:
    """Scores rows of one length, in batches of one shape."""
    size = rows_a_batch(len(rows), length, batch_tokens)
    Q = min(length, -(-max(len(row.asked) for row in rows) // 8) * 8)
    A = _power_of_two(max(len(tokens) for row in rows for tokens in row.asked.values()))
    for start in range(0, len(rows), size):
        its = rows[start : start + size]
        batch = [*its, *[its[-1]] * (size - len(its))]
        tokens, mask = np.zeros((size, length), np.int32), np.zeros((size, length), bool)
        marks = np.zeros((size, length), object)  # a bit for each edit, however many there are
        columns, targets = np.zeros((size, Q), np.int32), np.zeros((size, Q, A), np.int32)
        for i, row in enumerate(batch):
            tokens[i, : len(row.ids)], mask[i, : len(row.ids)], marks[i, : len(row.ids)] = row.ids, True, row.marks
            columns[i, : len(row.asked)] = list(row.asked)
            for j, asked in enumerate(row.asked.values()):
                targets[i, j, : len(asked)] = list(asked)
        tokens, positions = model.check_inputs(tokens, mask)
        packing = packing_of(batch, length) if shared else None
        compiled = model.compile_edits(edits_of_rows(edits, marks) if shared else edits, tokens, mask)
        with mesh_set(mesh_of_params(model.params)):
            found = _scores(model.module, model.params, compiled, tokens, positions, packing, columns, targets)
        nll, likely = fetch(found)
        for i, row in enumerate(its):
            of_column = {column: j for j, column in enumerate(row.asked)}
            for number, answer in row.answers.items():
                j, place = np.array([(of_column[column], place) for column, place in answer]).T
                yield number, -float(np.sum(nll[i, j, place], dtype=np.float64)), bool(likely[i, j, place].all())


@functools.partial(jax.jit, static_argnames=("module",))
def _scores(
    module: Any,
    params: Any,
    edits: Any,
    tokens: jax.Array,
    positions: jax.Array,
    packing: Packing | None,
    columns: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """-log p, and whether it is the most likely token: of A tokens after each of Q columns of a row, [B, Q, A]."""
    config, head = module.config, head_of(module.config, params)
    hidden = forward(module, params, edits, CapturePlan(), tokens, False, positions, packing).last_hidden
    hidden = jnp.take_along_axis(hidden, columns[..., None], axis=1)
    return chunked_scores(config, hidden, head, targets)


def _power_of_two(count: int) -> int:
    """The least power of two from `count` on."""
    return 1 << (count - 1).bit_length()
