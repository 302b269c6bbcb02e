"""Biases put into models and taken out: what must stay the same, at every site that it can be compared at."""

import dataclasses

import jax
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.bias import absorb_mean, absorb_prefix, absorb_sink_token, add_bias, rebuild, remove_bias
from massive_jax.generate import Streaming
from massive_jax.loading import save
from massive_jax.models import AlibiConfig, AttentionBias, NormConfig, RopeConfig
from tests.fixtures.hf_reference import relative_error

PREFIX = [7, 3, 99]
MODELS = {
    "rope, a window that hides the prefix": {"window": 5, "qk_norm": "head"},
    "rope, some windowed layers, softcap": {"window": 4, "window_layers": (True, False) * 2, "attention_softcap": 3.0},
    "yarn": {"rope": RopeConfig(kind="yarn", factor=4.0, original_max_position=8)},
    "learned positions, dynamic tanh, V-scale, clipped": {
        "position": "learned",
        "norm": NormConfig("dynamic_tanh"),
        "value_scale": "learned",
        "clip_residual": 1.5,
    },
    "alibi": {"position": "alibi", "alibi": AlibiConfig(before_scale=True)},
}
# A window for some layers has one that hides the prefix; positions that are learned are slots without a rotation.
REPEATS = ("rope, a window that hides the prefix",)


def behind(tokens, prefix=PREFIX):
    return np.concatenate([np.tile(np.asarray(prefix, np.int32), (len(tokens), 1)), tokens], axis=1)


def same_params(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in REPEATS else ()) for case in MODELS]
)
def test_absorbed_prefix_is_exact(make_model, tiny_tokens, case):
    model = make_model(**MODELS[case])
    explicit = rebuild(model, *absorb_prefix(model.config, model.params, PREFIX))
    assert explicit.config.context_length == model.config.context_length - len(PREFIX)
    capture = mj.Capture(("block_out", "attn_probs"))
    expected, got = model(behind(tiny_tokens), capture=capture), explicit(tiny_tokens, capture=capture)
    T = tiny_tokens.shape[1]
    assert relative_error(got.logits, expected.logits[:, 3:]) < 1e-5
    assert relative_error(explicit(tiny_tokens).logits, expected.logits[:, 3:]) < 1e-5
    for ours, theirs in zip(*(x.intermediates["block_out"] for x in (got, expected)), strict=True):
        assert relative_error(ours, theirs[:, 3:]) < 1e-5
    probs, theirs = got.intermediates["attn_probs"], expected.intermediates["attn_probs"][..., 3:, :]
    np.testing.assert_allclose(probs[..., T:], theirs[..., :3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probs[..., :T], theirs[..., 3:], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_absorbed_prefix_generates_the_same(make_model, tiny_tokens):
    """With the cache too; and the inverse gives the model back."""
    model = make_model()
    config, params = absorb_prefix(model.config, model.params, PREFIX)
    explicit = rebuild(model, config, params)
    expected = model.generate(behind(tiny_tokens), max_new_tokens=6, keep_logits=True)
    got = explicit.generate(tiny_tokens, max_new_tokens=6, keep_logits=True)
    np.testing.assert_array_equal(got.tokens[:, 9:], expected.tokens[:, 12:])
    assert relative_error(got.logits, expected.logits) < 1e-5
    # A bounded cache that keeps the prefix as its sinks evicts the same tokens.
    cache = {"cache": Streaming(sinks=3, window=9)}
    expected = model.generate(behind(tiny_tokens), max_new_tokens=6, **cache)
    got = explicit.generate(tiny_tokens, max_new_tokens=6, cache=Streaming(sinks=0, window=9))
    np.testing.assert_array_equal(got.tokens[:, 9:], expected.tokens[:, 12:])
    assert remove_bias(config, params)[0] == model.config
    same_params(remove_bias(config, params)[1], model.params)


def test_saved_and_loaded(tmp_path, make_model, tiny_tokens):
    model = make_model()
    explicit = rebuild(model, *absorb_prefix(model.config, model.params, PREFIX))
    save(explicit, str(tmp_path / "explicit"))
    loaded = mj.load(str(tmp_path / "explicit"))
    assert loaded.config == explicit.config
    same_params(loaded.params, explicit.params)
    with pytest.raises(ValueError, match="exists already"):
        save(explicit, str(tmp_path / "explicit"))


def test_absorbed_mean(make_model, tiny_tokens):
    """Of the same token everywhere it is that token as a prefix; in general, the mean of its keys and values."""
    model = make_model()
    same = tiny_tokens.copy()
    same[:, 0] = 42
    config, params = absorb_mean(model.config, model.params, same)
    expected_config, expected = absorb_prefix(model.config, model.params, [42])
    assert config == expected_config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)

    positions = np.array([4, -1])
    _, params = absorb_mean(model.config, model.params, tiny_tokens, positions)
    found = model(tiny_tokens[:1], capture=mj.Capture(("key", "value"))).intermediates
    for name in ("key", "value"):
        np.testing.assert_allclose(
            params["layers"]["attn"]["slots"][name][:, :, 0], found[name][:, 0, 4], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("position", ["rope", pytest.param("learned", marks=pytest.mark.slow)])
def test_absorbed_sink_token(make_model, tiny_tokens, position):
    model = make_model(attention_bias=AttentionBias("sink_token", slots=2), position=position)
    explicit = rebuild(model, *absorb_sink_token(model.config, model.params))
    assert explicit.config.attention_bias.kind == "kv"
    assert relative_error(explicit(tiny_tokens).logits, model(tiny_tokens).logits) < 1e-5


BIASES = {
    "kv": AttentionBias("kv", slots=2),
    "v": AttentionBias("v", shared=True),
    "sink": AttentionBias("sink"),
    "sink_token": AttentionBias("sink_token"),
    "gate_head": AttentionBias("gate_head"),
    "gate_element": AttentionBias("gate_element"),
}


@pytest.mark.parametrize("case", BIASES)
def test_an_added_bias_changes_nothing_yet(tiny_model, tiny_tokens, case):
    config, params = add_bias(tiny_model.config, tiny_model.params, BIASES[case])
    added = rebuild(tiny_model, config, params)
    assert relative_error(added(tiny_tokens).logits, tiny_model(tiny_tokens).logits) < 2e-6
    back, rest = remove_bias(config, params)
    assert back == tiny_model.config
    same_params(rest, tiny_model.params)
    if case == "kv":  # and it can be let in
        open_ = rebuild(added, *add_bias(tiny_model.config, tiny_model.params, BIASES[case], logit=0.0))
        assert relative_error(open_(tiny_tokens).logits, tiny_model(tiny_tokens).logits) > 1e-2


def test_bad_input(tiny_model, tiny_tokens):
    config, params = tiny_model.config, tiny_model.params
    with_bias = absorb_prefix(config, params, [1])
    for call, message in (
        (lambda: absorb_prefix(*with_bias, [1]), "already"),
        (lambda: absorb_prefix(config, params, []), "at least one"),
        (lambda: absorb_prefix(config, params, [260]), "do not fit the vocabulary"),
        (lambda: absorb_prefix(config, params, [1] * 96), "leaves nothing"),
        (lambda: absorb_mean(config, params, tiny_tokens, 9), "out of range"),
        (lambda: absorb_mean(config, params, tiny_tokens, -1), "no sequence"),
        (lambda: absorb_sink_token(config, params), "no sink token"),
        (lambda: add_bias(config, params, AttentionBias("sigmoid")), "from the start"),
        (lambda: add_bias(config, params, AttentionBias("kv", prefix=True)), "absorb_prefix"),
        (lambda: remove_bias(config, params), "no attention bias"),
        (lambda: remove_bias(dataclasses.replace(config, attention_bias=AttentionBias("sigmoid")), params), "another"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    gated, trained = add_bias(config, params, AttentionBias("gate_head"))
    trained["layers"]["attn"]["gate"]["gate"]["kernel"] += 1
    with pytest.raises(ValueError, match="been trained"):
        remove_bias(gated, trained)


@pytest.mark.slow
def test_bos_of_the_default_model(default_model):
    """The massive activations leave with BOS; nothing else changes."""
    text = "The tower is 324 metres tall, about the same height as an 81-storey building. Its base is square.\n"
    model, tokens = default_model, default_model.tokenize(text)
    explicit = rebuild(model, *absorb_prefix(model.config, model.params, [model.bos_id()]))
    capture = mj.Capture("block_out", max=True)
    expected, got = model(behind(tokens, [model.bos_id()]), capture=capture), explicit(tokens, capture=capture)
    for ours, theirs in zip(got.logits[0], expected.logits[0, 1:], strict=True):
        assert relative_error(ours, theirs) < 1e-4
    assert 24_000 < expected.intermediates["block_out"].max.max() < 26_000
    assert got.intermediates["block_out"].max.max() < 1200
