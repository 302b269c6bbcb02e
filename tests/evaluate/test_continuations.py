"""Log-likelihoods of continuations, without the harness: the numbers, the batches, the number of programs."""

import inspect
import itertools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.evaluate import continuations, score_continuations
from massive_jax.evaluate.shared_rows import padded_lengths, rows_by_length
from massive_jax.forward import left_pad
from massive_jax.models import AlibiConfig, AttentionBias, ExpertsConfig, RopeConfig
from massive_jax.models.language_model import Head
from massive_jax.models.loss import chunked_nll, chunked_scores

RNG = np.random.default_rng(0)
PAIRS = [
    (RNG.integers(0, 256, length).tolist(), RNG.integers(0, 256, count).tolist())
    for length, count in zip(RNG.integers(1, 50, 40).tolist(), RNG.integers(1, 12, 40).tolist(), strict=True)
]
# Answers of one token to one question.
ANSWERS = [(PAIRS[0][0], [7, 8, last]) for last in range(5)]


@pytest.fixture
def few_programs(monkeypatch):
    """An error where `_scores` is compiled more than once."""
    counted = chex.assert_max_traces(inspect.unwrap(continuations._scores), n=1)
    monkeypatch.setattr(continuations, "_scores", jax.jit(counted, static_argnames="module"))


def by_hand(model, pairs, edits=None):
    """Log-likelihood and whether it is the most likely, of each pair, from the logits of one padded batch."""
    tokens, mask = left_pad([[*context, *rest[:-1]] for context, rest in pairs])
    scores = np.asarray(jax.nn.log_softmax(model(tokens, mask=mask, edits=edits).logits))
    for its, (_, rest) in zip(scores, pairs, strict=True):
        its = its[-len(rest) :]
        yield its[np.arange(len(rest)), rest].sum(), (its.argmax(axis=-1) == rest).all()


def test_scores_are_those_of_the_logits(tiny_model, few_programs):
    """Of 45 pairs of all lengths, in one program, wherever an edit is: in what pairs share, or in some of them only."""
    pairs = [pair for pair in [*PAIRS, *ANSWERS] if sum(map(len, pair)) > 4]
    for position in ("first", "last", -3, slice(1, -1, 2), lambda tokens: tokens % 3 == 0):
        edits = [
            mj.Edit("block_out", layer=2, position=position, dim=3, op="add", value=5.0),
            mj.Edit("head_out", layer=1, op="scale", value=0.5),
        ]
        found = sorted(score_continuations(tiny_model, pairs, edits))
        assert [number for number, *_ in found] == list(range(len(pairs)))
        for (_, score, likely), (expected, its) in zip(found, by_hand(tiny_model, pairs, edits), strict=True):
            assert score == pytest.approx(expected, abs=1e-4)
            assert likely == its


def test_what_pairs_begin_with_is_run_once(tiny_model):
    """Where an edit is by the sequence, only as far as it is at the same places; by no more than rows can hold."""
    context = PAIRS[0][0]
    pairs = [(context, [*rest, 7]) for rest in ([1, 2, 3], [1, 2, 4], [5])] + [(context, [1, 2, 3, 8])]

    def tokens_of(edits):
        ((length, shared, rows),) = rows_by_length(tiny_model, pairs, edits, 2048)
        assert shared
        assert sum(len(row.answers) for row in rows) == len(pairs)
        assert max(len(row.ids) for row in rows) <= length <= 96
        return sum(len(row.ids) for row in rows)

    assert tokens_of([]) == len(context) + 3 + 1 + 1
    assert tokens_of([mj.Edit("embed", position=0)]) == len(context) + 3 + 1 + 1
    assert tokens_of([mj.Edit("embed", position="last")]) == len(context) + 2 + 1 + 1 + 1  # of the first and the last
    assert tokens_of([mj.Edit("embed", position=-4)]) > len(context) + 5
    _, _, rows = next(rows_by_length(tiny_model, PAIRS, [], 2048))
    room = 96 * len(rows)
    assert 0.85 * room < sum(len(row.ids) for row in rows) <= room


def test_long_pairs_are_padded_to_few_lengths():
    """Beyond a row of 256 tokens; answers share the context there too."""
    config = types.SimpleNamespace(context_length=2048, scaled_at=lambda length: False)
    model = types.SimpleNamespace(config=config)
    lengths = RNG.integers(2, 1800, 200).tolist()
    pairs = [([1000 + number] * length, [answer, 1, 1]) for number, length in enumerate(lengths) for answer in (1, 2)]
    found = [*rows_by_length(model, pairs, [], 2048)]
    assert found[0][0] == 256
    assert len(found) <= 9
    assert all(shared for _, shared, _ in found)
    assert sorted(number for *_, rows in found for row in rows for number in row.answers) == list(range(len(pairs)))
    tokens = sum(len(row.ids) for *_, rows in found for row in rows)
    assert tokens == sum(lengths) + 4 * len(lengths)
    assert sum(length * len(rows) for length, _, rows in found) < 1.12 * tokens


@pytest.mark.parametrize(
    "edit",
    [
        mj.Edit("block_out", layer=1, op="quantize", value=4),
        mj.Edit("block_out", layer=1, op="noise", value=0.1),
        mj.Edit("block_out", layer=1, position={0, 1}, dim=3, value=np.array([1.0, 2.0])),
        mj.Edit("attn_logits", layer=1, key=0, value=-9.0),
    ],
)
def test_edits_of_whole_sequences_are_not_shared(tiny_model, edit):
    """Each pair is a row, and they are of few lengths."""
    found = [*rows_by_length(tiny_model, [*PAIRS, *ANSWERS], [edit], 2048)]
    assert not any(shared for _, shared, _ in found)
    assert sum(len(rows) for *_, rows in found) == len(PAIRS) + 1  # those that differ in what is not run are one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "edits"),
    [
        ({"window": 3, "window_layers": (True, False, True, False), "attention_bias": AttentionBias("sink")}, None),
        ({"attention_bias": AttentionBias("sink_token", 2)}, mj.Edit("value", layer="all", position="first", value=0)),
        ({"attention_bias": AttentionBias("kv"), "window": 5}, mj.Edit("key", layer=2, position=1, head=0, value=1.0)),
        ({"position": "alibi", "alibi": AlibiConfig()}, mj.Edit("mlp_hidden", layer=2, position="last", value=0.5)),
        ({"position": "learned", "position_offset": 2, "mlp": "experts", "experts": ExpertsConfig(4, 2)}, None),
        (
            {"rope": RopeConfig(kind="dynamic", factor=4.0, original_max_position=16)},
            mj.Edit("block_out", layer=1, position=0, value=0.0),
        ),
        ({}, mj.Edit("block_out", layer=1, op=mj.PerToken(lambda x, by: x * by), value=np.full(32, 0.5), position=-2)),
        ({}, mj.Edit("block_out", layer=1, op="quantize", value=4)),
        ({}, mj.Edit("block_out", layer=1, op="noise", value=1.0, position={0, 1})),
        ({}, mj.Edit("attn_logits", layer=1, key=0, position="last", value=-3.0)),
    ],
)
def test_every_family_gives_what_each_pair_gives_by_itself(make_model, options, edits):
    model = make_model(**options)
    pairs = [*PAIRS[:12], *ANSWERS, *((PAIRS[3][0], [*rest, 1]) for _, rest in PAIRS[:4])]
    pairs = [pair for pair in pairs if sum(map(len, pair)) > 4]
    found = sorted(score_continuations(model, pairs, edits))
    for (_, score, likely), (expected, its) in zip(found, by_hand(model, pairs, edits), strict=True):
        assert score == pytest.approx(expected, abs=1e-4)
        assert likely == its


def test_lengths_are_padded_to_the_best_few():
    """Of small cases every choice is tried; of large ones little is padded, and to 8 lengths at most."""
    lengths = sorted(RNG.integers(1, 60, 30).tolist())
    found = padded_lengths(lengths, batch_tokens=40)
    sizes = sorted({-(-length // 8) * 8 for length in lengths})
    costs = [
        sum(min(size for size in chosen if size >= length) for length in lengths) + 40 * len(chosen)
        for count in range(1, len(sizes) + 1)
        for chosen in itertools.combinations(sizes, count)
        if chosen[-1] >= lengths[-1]
    ]
    assert sum(found) + 40 * len(set(found)) == min(costs)
    many = sorted(RNG.integers(1, 2048, 3000).tolist())
    padded = padded_lengths(many)
    assert len(set(padded)) == 8
    assert np.less_equal(many, padded).all()
    assert sum(padded) < 1.15 * sum(many)
    assert padded_lengths([5]) == [8]


@pytest.mark.parametrize(
    ("pair", "edits", "message"),
    [
        (([], [1]), None, "pair 1 has an empty context; give at least one token of each"),
        (([1], []), None, "pair 1 has an empty continuation"),
        ((list(range(96)), [1, 2]), None, "pair 1 has 98 tokens; the model takes 96 and scores one more"),
        (([1], [260]), None, "pair 1 has token ids from 1 to 260; give 0 to 259"),
        (([1], [2]), mj.Edit("logits", value=0.0), "do not build the logits whole"),
        (([1], [2]), mj.Edit("embed", position=np.array([0, 0])), "has a position for each of 2 inputs"),
        (([1], [2]), mj.Edit("block_out", layer=1, position=3, dim=0), "position 3 is out of range"),
    ],
)
def test_what_cannot_be_scored_is_said_before_anything_runs(tiny_model, monkeypatch, pair, edits, message):
    monkeypatch.setattr(continuations, "_scores", None)
    with pytest.raises(ValueError, match=message):
        list(score_continuations(tiny_model, [PAIRS[0], pair], edits))


def test_logits_are_summed_in_pieces(tiny_model):
    """Where all of W adds up to one side, a running sum in float32 loses what pieces keep."""
    hidden = RNG.normal(1, 1, (1, 64, 1024)).astype(np.float32)
    kernel = RNG.normal(0.02, 0.02, (64, 1024)).astype(np.float32)
    targets = RNG.integers(0, 64, (1, 64))
    logits = np.einsum("BTW,VW->BTV", hidden.astype(np.float64), kernel.astype(np.float64))
    exact = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    found, _ = chunked_scores(tiny_model.config, jnp.asarray(hidden), Head(kernel), targets[..., None])
    plain = chunked_nll(tiny_model.config, jnp.asarray(hidden), Head(kernel), targets)
    apart = [np.std(np.asarray(nll, np.float64) - exact) for nll in (found[..., 0], plain)]
    assert apart[0] < 0.5 * apart[1]
