"""Rounding, held against numpy by hand. B sequences, T tokens, D width."""

import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax.quantize import SCALES, input_edits, round_weights
from massive_jax.quantize.rounding import round_inputs, to_grid


def by_hand(x, largest, bits):
    step = largest / (2 ** (bits - 1) - 1)
    return np.round(x / step) * step


def test_grid():
    """-1 to 1 in 3 bits: seven numbers, ends included; with 0 bits nothing is rounded."""
    x = np.array([-1.0, -0.9, -0.4, 0.1, 0.2, 0.51, 1.0], np.float32)
    np.testing.assert_allclose(to_grid(jnp.asarray(x), 1.0, 3), np.array([-3, -3, -1, 0, 1, 2, 3]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(to_grid(jnp.asarray(x), 1.0, 0), x)
    np.testing.assert_array_equal(to_grid(jnp.zeros(2), 0.0, 4), np.zeros(2))


@pytest.mark.parametrize(("scales", "axes"), [("tensor", (1, 2)), ("token", (2,)), ("channel", (1,))])
def test_inputs(scales, axes):
    """The token that is kept apart stays, and has no part in the scales of the others."""
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    x[0, 1] *= 100
    apart = np.zeros((2, 5), bool)
    apart[0, 1] = True
    value = {"bits": 4, "scales": list(SCALES).index(scales), "apart": apart, "heads": None}
    kept = np.where(apart[..., None], 0, np.abs(x))
    expected = np.where(apart[..., None], x, by_hand(x, np.maximum(kept.max(axes, keepdims=True), 1e-30), 4))
    np.testing.assert_allclose(round_inputs(jnp.asarray(x), value), expected, rtol=1e-5, atol=1e-6)


def test_a_heads_token_has_a_scale_of_its_own():
    x = np.random.default_rng(1).normal(size=(1, 2, 3, 4)).astype(np.float32)  # [B, T, K, N]
    value = {"bits": 3, "scales": 1, "apart": np.zeros((1, 1), bool), "heads": np.int32(1)}
    expected = by_hand(x, np.abs(x).max(axis=-1, keepdims=True), 3)
    np.testing.assert_allclose(round_inputs(jnp.asarray(x), value), expected, rtol=1e-5, atol=1e-6)


def test_weights(tiny_model):
    """One scale a layer's map, or one an output; with 0 bits nothing changes; what is no linear map stays."""
    before = tiny_model.params
    got = {scales: round_weights(tiny_model, 4, scales).params for scales in ("tensor", "token")}
    for name, inputs in (("query", (1,)), ("out", (1, 2))):
        kernel = np.asarray(before["layers"]["attn"][name]["kernel"])
        for scales, axes in (("tensor", (1, 2, 3)), ("token", inputs)):
            expected = by_hand(kernel, np.abs(kernel).max(axis=axes, keepdims=True), 4)
            its = got[scales]["layers"]["attn"][name]["kernel"]
            np.testing.assert_allclose(its, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["token"]["layers"]["attn_norm"]["scale"], before["layers"]["attn_norm"]["scale"])
    whole = round_weights(tiny_model, 0).params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(whole, before["layers"]["mlp"]["up"]["kernel"])


def test_edits_differ_in_data_only(tiny_model):
    """So one program runs them all."""
    some, others = (
        input_edits(tiny_model.config, bits, bits, scales, np.zeros((2, 9), bool))
        for bits, scales in ((8, "tensor"), (0, "channel"))
    )
    assert [(e.site, e.op, e.layer) for e in some] == [(e.site, e.op, e.layer) for e in others]
    assert {"key", "value", "mlp_hidden", "final_norm"} < {e.site for e in some}
