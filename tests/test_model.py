"""The face of a model: what it takes, what it refuses, and what it gives."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

import massive_jax as mj
from tests.fixtures.tiny import BOS, TINY


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(5, np.int32), r"tokens are int32\[5\]; give integers \[batch, position\]"),
        (np.zeros((1, 2, 3), np.int32), r"int32\[1, 2, 3\]"),
        (np.zeros((1, 5)), r"tokens are float64\[1, 5\]"),
        (np.zeros((1, 5), bool), r"tokens are bool\[1, 5\]"),
        ([["a"]], "give integers"),
        (np.zeros((0, 5), np.int32), r"shape \[0, 5\]: there is nothing to run"),
        (np.zeros((2, 0), np.int32), r"shape \[2, 0\]"),
        (np.zeros((1, 97), np.int32), "97 tokens are more than the model's context of 96"),
        ([[0, 260]], r"ids from 0 to 260 do not fit the vocabulary of 260 \(ids 0 to 259\)"),
        ([[0, -1]], "ids from -1 to 0"),
        ([[2**40]], "do not fit the vocabulary"),
        ([[1, 2], [3]], "its rows must have one length"),
        (None, "tokens are object"),
    ],
)
def test_tokens_that_are_refused(tiny_model, compilations, tokens, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(tokens)
    assert compilations() == 0


@pytest.mark.parametrize("convert", [lambda t: t.tolist(), np.uint8, np.int64, jax.numpy.asarray])
def test_tokens_of_any_integer_kind(tiny_model, tiny_tokens, convert):
    expected = tiny_model(tiny_tokens).logits
    np.testing.assert_array_equal(tiny_model(convert(tiny_tokens)).logits, expected)


def test_the_longest_context_runs(make_model):
    model = make_model(num_layers=1)
    assert model(np.zeros((1, 96), np.int32), logits=False).last_hidden.shape == (1, 96, 32)


def test_output(tiny_model, tiny_tokens):
    out = tiny_model(tiny_tokens)
    assert out.logits.shape == (2, 9, TINY.vocab_size)
    assert out.logits.dtype == np.float32
    assert out.last_hidden.shape == (2, 9, TINY.hidden_size)
    assert out.intermediates == {}
    # The head is applied to the last hidden state, position by position.
    expected = np.asarray(out.last_hidden) @ np.asarray(tiny_model.params["head"]).T
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-4)


def test_tokenize(tiny_model):
    found = tiny_model.tokenize("ab.")
    assert found.dtype == np.int32
    assert found.tolist() == [[97, 98, 46]]
    assert tiny_model.tokenize(["ab.", "abc"]).shape == (2, 3)
    assert tiny_model.tokenize("a", bos=True).tolist() == [[BOS, 97]]
    assert tiny_model.tokenize("é").tolist() == [list("é".encode())]


@pytest.mark.parametrize("text", [None, 5, b"a", ["a", None], {"a": 1}])
def test_what_is_no_text_is_refused(tiny_model, text):
    with pytest.raises(ValueError, match="text is .*; give a text, or several"):
        tiny_model.tokenize(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capture": "block_out"}, "capture is 'block_out'; give a Capture"),
        ({"capture": {"sites": "block_out"}}, "give a Capture"),
        ({"capture": [mj.Capture("mid"), None]}, "give a Capture"),
        ({"capture": mj.Edit("embed")}, "give a Capture"),
        ({"edits": "block_out"}, "edits is 'block_out'; give an Edit"),
        ({"edits": [None]}, r"edits is \[None\]"),
        ({"edits": 5}, "edits is 5"),
        ({"edits": mj.Capture("mid")}, "give an Edit"),
        ({"edits": {"block_out": 5}}, "compiled edits: 'block_out' holds 5"),
        ({"logits": "no"}, "logits is 'no'; give True or False"),
    ],
)
def test_arguments_of_another_type_are_refused(tiny_model, tiny_tokens, compilations, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny_model(tiny_tokens, **options)
    assert "\n" not in str(caught.value)
    assert compilations() == 0


@pytest.mark.parametrize("text", ["", [], [""], ["a", ""]])
@pytest.mark.parametrize("bos", [False, True])
def test_text_without_tokens_is_refused(tiny_model, text, bos):
    with pytest.raises(ValueError, match="the text has no tokens"):
        tiny_model.tokenize(text, bos=bos)


def test_texts_of_different_lengths_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"the texts have \[1, 2\] tokens"):
        tiny_model.tokenize(["a", "bc"])


def test_what_needs_a_tokenizer_says_so(tiny_model):
    bare = mj.Model(tiny_model.module, tiny_model.params, tiny_model.config, name="bare")
    for call in (lambda: bare.tokenize("a"), bare.bos_id, lambda: bare.first_delimiter(np.zeros((1, 2), int))):
        with pytest.raises(ValueError, match="bare: the checkpoint has no tokenizer"):
            call()
    assert bare.token_texts([5, 7]) == ["5", "7"]
    assert tiny_model.token_texts([97, 10]) == ["a", "\n"]


def test_a_model_has_the_face_of_its_config(tiny_model, tiny_vision):
    assert type(tiny_model) is mj.TextModel
    assert type(tiny_vision) is mj.ImageModel
    for model in (tiny_model, tiny_vision):
        parts = {"module": model.module, "params": model.params, "config": model.config}
        others = (mj.Model(*parts.values()), mj.Model(**parts), dataclasses.replace(model, name="b"), copy.copy(model))
        for other in (*others, model.with_params(model.config, model.params)):
            assert type(other) is type(model)
            assert isinstance(other, mj.Model)
        assert mj.Model.of(model) is type(model).of(model) is model
    assert hasattr(tiny_model, "tokenize")
    assert not hasattr(tiny_model, "preprocess")
    assert not hasattr(tiny_vision, "tokenize")
    assert "first_delimiter" not in dir(tiny_vision)
    with pytest.raises(AttributeError, match="'TextModel' object has no attribute 'tokenise'"):
        getattr(tiny_model, "tokenise")  # noqa: B009
    with pytest.raises(ValueError, match="tiny is a language model: it takes tokens, not images"):
        mj.ImageModel.of(tiny_model)
    with pytest.raises(ValueError, match="model is 3; give a Model"):
        mj.TextModel.of(3)
    with pytest.raises(ValueError, match=r"config is None; give a TransformerConfig, as a language model has\."):
        mj.Model(tiny_model.module, tiny_model.params, None)
    no_face = type("Other", (mj.Model,), {})
    with pytest.raises(ValueError, match="Other is neither a TextModel nor an ImageModel"):
        no_face(tiny_model.module, tiny_model.params, tiny_model.config)
    with pytest.raises(ValueError, match=r"config is VisionConfig\(.*…; give a TransformerConfig, as a"):
        dataclasses.replace(tiny_model, config=tiny_vision.config)


def test_first_delimiter(tiny_model):
    texts = ["ab.c\n", "abcd.", "a\nb.c", ".abcd", "abcde", "\n.abc"]
    found = tiny_model.first_delimiter(tiny_model.tokenize(texts))
    assert found.dtype == np.int32
    assert found.tolist() == [2, 4, 1, -1, -1, 1]


def test_the_parts_are_a_pure_function(tiny_model, tiny_tokens):
    apply = jax.jit(tiny_model.module.apply)
    logits, hidden = apply({"params": tiny_model.params}, tiny_tokens)
    out = tiny_model(tiny_tokens)
    np.testing.assert_allclose(logits, out.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hidden, out.last_hidden, rtol=1e-5, atol=1e-5)


def test_initialisation_has_the_parameters_of_a_loaded_model(tiny_model):
    """`init` and the loader agree about names and shapes, and every initial value is finite."""
    params = jax.jit(tiny_model.module.init)(jax.random.key(0), np.zeros((1, 3), np.int32))["params"]
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, tiny_model.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    kernel = params["layers"]["attn"]["query"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])  # each layer its own
    assert float(kernel.std()) == pytest.approx(32**-0.5, rel=0.1)
