"""Attention whose logits are divided by the layer's number, against queries that are smaller by as much."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.generate import generate
from massive_jax.models import AttentionBias, build
from tests.fixtures.tiny import TINY

_PREFIX = AttentionBias("kv", slots=2, prefix=True)


@pytest.fixture(scope="module")
def pair(make_model):
    """Gives a model with the option, and one without it whose query projections are divided by the layer's number."""

    def make(**changes):
        scaled = make_model(attention_scale_by_layer=True, **changes)
        kernel = scaled.params["layers"]["attn"]["query"]["kernel"]
        divided = kernel / jnp.arange(1, TINY.num_layers + 1)[:, None, None, None]
        attn = {**scaled.params["layers"]["attn"], "query": {"kernel": divided}}
        params = {**scaled.params, "layers": {**scaled.params["layers"], "attn": attn}}
        config = dataclasses.replace(scaled.config, attention_scale_by_layer=False)
        return scaled, mj.Model(build(config), params, config)

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 5, "window_layers": (True, False, True, False)},
        {"attention_bias": _PREFIX},
        {"attention_bias": AttentionBias("sink_token")},
    ],
    ids=["windows", "prefix", "sink token"],
)
def test_logits_and_sites(pair, tiny_tokens, changes):
    ours, expected = (m(tiny_tokens, capture=mj.Capture(("attn_logits", "query"))) for m in pair(**changes))
    np.testing.assert_allclose(ours.logits, expected.logits, rtol=1e-4, atol=1e-4)
    logits = ours.intermediates["attn_logits"]
    np.testing.assert_allclose(logits, expected.intermediates["attn_logits"], rtol=1e-4, atol=1e-4)
    # The queries themselves are as the projection made them.
    query, smaller = ours.intermediates["query"], expected.intermediates["query"]
    np.testing.assert_allclose(query[3], 4 * smaller[3], rtol=1e-4, atol=1e-3)


def test_while_generating(pair, tiny_tokens):
    model, _ = pair()
    made = generate(model, tiny_tokens, max_new_tokens=4, keep_logits=True)
    full = model(np.asarray(made.tokens)).logits
    np.testing.assert_allclose(made.logits, full[:, -5:-1].swapaxes(0, 1), rtol=1e-4, atol=1e-4)


def test_a_fused_kernel(pair, tiny_tokens):
    ours, expected = (
        mj.Model(build(config), m.params, config)(tiny_tokens).logits
        for m in pair()
        for config in [dataclasses.replace(m.config, attention_kernel="splash")]
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_float16(pair, tiny_tokens):
    model, _ = pair()
    config = dataclasses.replace(model.config, dtype="float16")
    params = jax.tree.map(lambda x: x.astype(jnp.float16), model.params)
    half = mj.Model(build(config), params, config)(tiny_tokens).logits
    np.testing.assert_allclose(half, model(tiny_tokens).logits, atol=0.05)
