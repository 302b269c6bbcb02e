import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import massive_jax as mj
from massive_jax.data import cut_windows
from tests.fixtures.tiny import BOS

TEXT = "abcdefghij" * 10  # a token a character; the model's context is 96


def test_windows_are_consecutive_pieces_of_the_text(tiny_model):
    found = cut_windows(tiny_model, TEXT, context=30)
    assert found.tokens.dtype == np.int32
    assert found.tokens.shape == (3, 30)
    assert [tiny_model.tokenizer.decode(row) for row in found.tokens] == [TEXT[:30], TEXT[30:60], TEXT[60:90]]
    assert (found.context, found.bos) == (30, False)
    assert found.num_predicted == 3 * 29


def test_bos_is_in_front_of_every_window_and_not_counted(tiny_model):
    found = cut_windows(tiny_model, TEXT, context=30, windows=2, bos=True)
    assert found.tokens.shape == (2, 31)
    assert (found.tokens[:, 0] == BOS).all()
    np.testing.assert_array_equal(found.tokens[:, 1:], cut_windows(tiny_model, TEXT, context=30, windows=2).tokens)
    assert found.num_predicted == 2 * 30


@given(context=st.integers(1, 95), bos=st.booleans(), length=st.integers(1, 300), windows=st.integers(1, 4) | st.none())
@settings(deadline=None, max_examples=100)
def test_counts(tiny_model, context, bos, length, windows):
    text = "x" * length
    available = length // context
    if available < (windows or 1):
        with pytest.raises(ValueError, match=f"the text has {length} tokens, enough for {available} windows"):
            cut_windows(tiny_model, text, context=context, windows=windows, bos=bos)
        return
    found = cut_windows(tiny_model, text, context=context, windows=windows, bos=bos)
    assert found.tokens.shape == (windows or available, context + bos)
    assert found.num_predicted == found.tokens.size - len(found.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "a context of 0 tokens is too short; at least 1"),
        ({"context": -3}, "a context of -3 tokens is too short"),
        ({"context": 0, "bos": True}, "too short"),
        ({"context": 1, "tokens": 2}, "a context of 1 tokens is too short; at least 2"),
        ({"context": 97}, "a context of 97 tokens is longer than the model's 96"),
        ({"context": 96, "bos": True}, "a context of 96 tokens and BOS is longer than the model's 96"),
        ({"context": 10, "windows": 0}, "0 windows: at least one is needed"),
        ({"context": 10, "windows": -1}, "-1 windows"),
        ({"context": 30, "windows": 4}, "the text has 100 tokens, enough for 3 windows of 30; 4 are needed"),
    ],
)
def test_refused(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        cut_windows(tiny_model, TEXT, **options)


def test_the_longest_and_the_shortest_that_go(tiny_model):
    assert cut_windows(tiny_model, TEXT, context=96).tokens.shape == (1, 96)
    assert cut_windows(tiny_model, TEXT, context=95, bos=True).tokens.shape == (1, 96)
    assert cut_windows(tiny_model, TEXT, context=1, bos=True, tokens=2, windows=1).tokens.shape == (1, 2)


def test_a_tokenizer_and_its_bos_are_needed(tiny_model):
    bare = mj.Model(tiny_model.module, tiny_model.params, tiny_model.config)
    with pytest.raises(ValueError, match="tokenizer"):
        cut_windows(bare, TEXT, context=10)
    without = type(tiny_model.tokenizer)(tiny_model.tokenizer._backend)
    with pytest.raises(ValueError, match="no BOS token"):
        cut_windows(
            mj.Model(tiny_model.module, tiny_model.params, tiny_model.config, without), TEXT, context=9, bos=True
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 10.0}, r"context is 10\.0; give a whole number"),
        ({"context": "10"}, "context is '10'"),
        ({"context": None}, "context is None"),
        ({"context": True}, "context is True"),
        ({"context": float("nan")}, "context is nan"),
        ({"context": 10**30}, "is longer than the model's 96"),
        ({"context": 10, "windows": 1.0}, r"windows is 1\.0"),
        ({"context": 10, "windows": "all"}, "windows is 'all'"),
        ({"context": 10, "windows": True}, "windows is True"),
        ({"context": 10, "windows": 10**30}, "the text has 100 tokens"),
        ({"context": 10, "tokens": 1.5}, r"tokens is 1\.5"),
        ({"context": 10, "bos": "yes"}, "bos is 'yes'; give True or False"),
    ],
)
def test_arguments_of_other_types(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        cut_windows(tiny_model, TEXT, **options)


@pytest.mark.parametrize("text", [None, b"bytes", ["a"], 5])
def test_a_text_that_is_none(tiny_model, text):
    with pytest.raises(ValueError, match="expected a string to tokenize"):
        cut_windows(tiny_model, text, context=10)


def test_integers_of_numpy_are_integers(tiny_model):
    found = cut_windows(tiny_model, TEXT, context=np.int64(30), windows=np.int32(2), bos=np.bool_(True))
    assert found.tokens.shape == (2, 31)
    assert type(found.context) is int
