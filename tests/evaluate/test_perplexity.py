import math
import sys

import jax
import numpy as np
import pytest

from massive_jax.data import Windows, text_windows
from massive_jax.evaluate import (
    PlaceInStream,
    hidden_state,
    measure_each,
    measure_layers,
    perplexity,
    site_means,
    token_nll,
)
from massive_jax.evaluate import batches as batches_module
from massive_jax.evaluate.batches import batches, edits_for
from massive_jax.models import loss
from massive_jax.probe import Edit
from tests.fixtures.tiny import BOS

# The function hides the module of its name.
nll_module = sys.modules["massive_jax.evaluate.perplexity"]


@pytest.fixture(scope="module")
def windows():
    tokens = np.random.default_rng(3).integers(0, BOS, size=(5, 40), dtype=np.int32)
    return Windows(tokens, 40, False)


def naive_nll(model, tokens, edits=None):
    """From whole logits, in float64: [B, T - 1]."""
    logits = np.asarray(model(tokens, edits=edits).logits, np.float64)[:, :-1]
    peak = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - peak).sum(axis=-1)) + peak[..., 0]
    return log_sum - np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]


EDITS = [
    None,
    [Edit("mid", layer=1, position=5, op="scale", value=0.0), Edit("final_norm", dim=1, op="add", value=1.0)],
]


@pytest.mark.parametrize("edits", EDITS, ids=["plain", "edited"])
def test_equals_the_definition(tiny_model, windows, edits):
    expected = naive_nll(tiny_model, windows.tokens, edits)
    found = token_nll(tiny_model, windows.tokens, edits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert perplexity(tiny_model, windows, edits) == pytest.approx(math.exp(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 195, 1024])
def test_does_not_depend_on_the_chunk(tiny_model, windows, monkeypatch, chunk):
    """195 are the tokens predicted: exactly one chunk."""
    expected = token_nll(tiny_model, windows.tokens)
    monkeypatch.setattr(loss, "_CHUNK", chunk)
    monkeypatch.setattr(loss, "_FEWEST", 1)
    # Compiled anew: the chunk is not part of what jax caches by.
    monkeypatch.setattr(nll_module, "_nll", jax.jit(nll_module._nll.__wrapped__, static_argnames=("module",)))
    np.testing.assert_allclose(token_nll(tiny_model, windows.tokens), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 80])
def test_does_not_depend_on_the_batch(tiny_model, windows, monkeypatch, size):
    """Positions given one a window go with their windows."""
    edits = Edit("block_out", layer=2, position=np.array([0, 5, -1, 39, 7]), dim=3, value=90.0)
    expected = math.exp(naive_nll(tiny_model, windows.tokens, edits).mean())
    plain = math.exp(naive_nll(tiny_model, windows.tokens).mean())
    assert abs(expected - plain) > 0.01 * plain
    monkeypatch.setattr(batches_module, "TOKENS_A_BATCH", size)
    done = []
    assert perplexity(tiny_model, windows, edits, done.append) == pytest.approx(expected, rel=1e-5)
    assert sum(done) == 200
    assert len(done) == {1: 5, 80: 3}[size]


def test_batches_cover_every_window_once():
    tokens = np.arange(7 * 600).reshape(7, 600)
    parts = list(batches(tokens))
    assert [len(part) for _, part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), tokens)
    for rows, part in parts:
        np.testing.assert_array_equal(tokens[rows], part)


def test_edits_for_some_windows():
    rows = slice(1, 3)
    edits = [Edit("embed", position=p) for p in (np.arange(4), np.eye(4, dtype=bool), 5, "first", [5, -1])]
    one_each, mask, *others = [edit.position for edit in edits_for(edits, rows)]
    assert one_each.tolist() == [1, 2]
    assert mask.tolist() == np.eye(4, dtype=bool)[1:3].tolist()
    assert others == [5, "first", {5, -1}]  # of every window, whatever their number
    assert edits_for(None, rows) == []
    assert edits_for(edits[2], rows) == [edits[2]]


def test_bos_windows_predict_every_token_of_the_text(tiny_model, windows):
    tokens = np.concatenate([np.full((5, 1), BOS, np.int32), windows.tokens], axis=1)
    with_bos = Windows(tokens, 40, True)
    assert with_bos.num_predicted == 5 * 40
    expected = math.exp(naive_nll(tiny_model, tokens).sum() / 200)
    assert perplexity(tiny_model, with_bos) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("scale", "check"), [(1e30, math.isinf), (np.nan, math.isnan)])
def test_overflow_is_inf_and_nan_is_nan(tiny_model, windows, scale, check):
    edit = Edit("final_norm", op="scale", value=scale)
    assert check(perplexity(tiny_model, windows, edit))


def test_one_token_cannot_be_measured(tiny_model):
    with pytest.raises(ValueError, match="at least two tokens"):
        token_nll(tiny_model, np.zeros((2, 1), np.int32))


def test_edits_of_the_logits_are_refused(tiny_model, windows):
    with pytest.raises(ValueError, match="does not build the logits"):
        token_nll(tiny_model, windows.tokens, Edit("logits", dim=3))


def test_bfloat16_logits_are_float32(make_model, windows):
    model = make_model(dtype="bfloat16")
    expected = naive_nll(model, windows.tokens)
    np.testing.assert_allclose(token_nll(model, windows.tokens), expected, rtol=2e-2, atol=2e-2)


def test_memory_does_not_hold_the_logits(make_model):
    """Whole logits [B, T, V] are 12 MB here; those of a chunk 8 MB."""
    model = make_model(vocab_size=8000, num_layers=1)
    tokens = np.zeros((4, 96), np.int32)
    edits = model.compile_edits(None, tokens)
    compiled = nll_module._nll.lower(model.module, model.params, edits, tokens).compile().memory_analysis()
    assert compiled.temp_size_in_bytes + compiled.output_size_in_bytes < 4 * 95 * 8000 * 4


@pytest.mark.parametrize("skip", [-1, 8, 50, 1.0, True, None, "1"])
def test_a_skip_that_leaves_nothing_is_refused(tiny_model, tiny_tokens, compilations, skip):
    with pytest.raises(ValueError, match="skip is .*; give a whole number from 0 to 7"):
        perplexity(tiny_model, Windows(tiny_tokens, 9, False), skip=skip)
    assert compilations() == 0


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ("block_out", "edits is 'block_out'"),
        ({"block_out": ()}, "give an Edit"),
        (Edit("block_out", layer=1, position=np.zeros(3, int), dim=1), "has 3 positions, one an input: there are 2"),
        (Edit("block_out", layer=1, position=np.zeros(1, int), dim=1), "has 1 positions"),
        (Edit("block_out", layer=1, position=[0, 3], dim=1), r"write np.array\(\[0, 3\]\) for one a sequence"),
    ],
)
def test_edits_that_are_none_or_not_one_a_window(tiny_model, tiny_tokens, edits, message):
    with pytest.raises(ValueError, match=message):
        perplexity(tiny_model, Windows(tiny_tokens, 9, False), edits)


@pytest.mark.parametrize("windows", [None, np.zeros((2, 5), np.int32), Windows(np.zeros((0, 5), np.int32), 5, False)])
def test_windows_that_are_none(tiny_model, windows):
    with pytest.raises(ValueError, match="give Windows of one window at least"):
        perplexity(tiny_model, windows)


@pytest.mark.slow
def test_texts_of_any_lengths(tiny_model):
    """Padded, they give what they give alone: every token's likelihood, the perplexity, the tables of the layers."""
    texts = ["Rain. It", "a man wh", "ab"]  # each length is a few programs
    windows = text_windows(tiny_model, texts)
    edit = Edit("block_out", layer=2, position="last", dim=3, op="scale", value=-3.0)
    alone = [token_nll(tiny_model, tiny_model.tokenize(text), edit)[0] for text in texts]
    together = token_nll(tiny_model, windows.tokens, edit, windows.mask)
    for row, nll in zip(together, alone, strict=True):
        np.testing.assert_allclose(row[: len(nll)], nll, rtol=1e-4, atol=1e-5)
        assert not row[len(nll) :].any()
    total = sum(nll.sum() for nll in alone)
    assert windows.num_predicted == sum(map(len, alone))
    assert perplexity(tiny_model, windows, edit) == pytest.approx(np.exp(total / windows.num_predicted), rel=1e-4)
    with pytest.raises(ValueError, match="skip is 1"):
        perplexity(tiny_model, windows, skip=1)

    tables = measure_each(tiny_model, windows.tokens, windows.mask)
    for text, table in zip(texts, tables, strict=True):
        single = measure_layers(tiny_model, tiny_model.tokenize(text))
        for got, expected in zip(table.layers, single.layers, strict=True):
            assert got.median == pytest.approx(expected.median, rel=1e-4)
            assert (got.locations[0].position, got.locations[0].dim) == (
                expected.locations[0].position,
                expected.locations[0].dim,
            )
    sites = [PlaceInStream(1, 3), PlaceInStream("first_delimiter", 2)]
    states = [hidden_state(tiny_model, tiny_model.tokenize(text), 2)[0] for text in texts]
    means = [np.mean([state[1, 3] for state in states]), states[0][4, 2]]
    assert site_means(tiny_model, windows, 2, sites) == pytest.approx(means, rel=1e-4)
    with pytest.raises(ValueError, match="positions 0 to 1"):
        site_means(tiny_model, windows, 2, [PlaceInStream(2, 3)])
