"""What the options of the block do, told from its sites: V-scale and clipping, under every place of the norms."""

import dataclasses

import jax
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.models import AttentionBias, NormConfig
from massive_jax.models.attention import Attention
from tests.fixtures.tiny import TINY, random_model

SITES = ("embed", "attn_norm", "value", "attn_out", "mid", "mlp_out", "block_out")
C = 32 * 8 * 0.02**2  # width × head width × the variance of a kernel's numbers at the start
LIMIT = 0.7


def v_scale(v, softening):
    square = (v**2).sum(axis=-1, keepdims=True)
    return v * square / (square + softening)


@pytest.mark.parametrize(("kind", "dtype"), [("fixed", "bfloat16"), ("learned", "float32")])
def test_v_scale(tiny_tokens, kind, dtype):
    """Its formula, of every key/value head, with the learned exponent of that head; sink tokens have it too."""
    bias = AttentionBias("sink_token")
    model = random_model(dataclasses.replace(TINY, num_layers=2, value_scale=kind, dtype=dtype, attention_bias=bias))
    attention = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params["layers"]["attn"])
    assert ("value_scale" in attention) == (kind == "learned")
    theta = attention.get("value_scale", np.zeros((2, 2)))[:, None, None, :, None]
    found = model(tiny_tokens, capture=mj.Capture(("attn_norm", "value"))).intermediates
    normed = np.asarray(found["attn_norm"], np.float64)
    plain = np.einsum("LBTD,LDKN->LBTKN", normed, attention["value"]["kernel"])
    exact = v_scale(plain, C * np.exp(theta))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(np.asarray(found["value"], np.float64), exact, rtol=tolerance, atol=tolerance)


def test_gradient_of_v_scale_is_its_jacobian():
    """φ I + 2 C / (r + C)² v vᵀ, with φ = r / (r + C) and r = ‖v‖²: equation of the paper's appendix."""
    config, rng = dataclasses.replace(TINY, value_scale="fixed", dtype="float64"), np.random.default_rng(0)
    with jax.enable_x64(True):
        attention = Attention(config)
        v = rng.normal(size=(1, 3, 2, 8)) * np.array([0.05, 0.3, 3.0])[:, None, None]
        scaled = attention.bind({"params": {}})._radially_scaled
        for row in range(3):
            jacobian = jax.jacobian(lambda x: scaled(x[None, None, None])[0, 0, 0])(v[0, row, 0])
            r = (v[0, row, 0] ** 2).sum()
            exact = r / (r + C) * np.eye(8) + 2 * C / (r + C) ** 2 * np.outer(v[0, row, 0], v[0, row, 0])
            np.testing.assert_allclose(jacobian, exact, rtol=1e-10, atol=1e-12)
        nothing = jax.grad(lambda x: scaled(x).sum())(np.zeros((1, 1, 2, 8)))
    assert not np.any(nothing)


@pytest.mark.parametrize(
    ("placement", "residual"), [("pre", "parallel"), ("after_residual", "serial"), ("pre_and_output", "serial")]
)
def test_the_stream_is_clipped_after_each_addition(tiny_tokens, placement, residual):
    norm = NormConfig("dynamic_tanh", bias=False, scale=False)
    config = dataclasses.replace(
        TINY, clip_residual=LIMIT, norm_placement=placement, residual=residual, norm=norm, num_layers=2
    )
    model = random_model(config)
    found = model(tiny_tokens, capture=mj.Capture(SITES)).intermediates
    site = {name: np.asarray(x, np.float64) for name, x in found.items()}
    layers, clipped = model.params["layers"], 0
    for i in range(2):
        stream = site["embed"] if i == 0 else site["block_out"][i - 1]
        for added, after, name in (("attn_out", "mid", "attn_norm"), ("mlp_out", "block_out", "mlp_norm")):
            whole = stream + site[added][i]
            clipped += (np.abs(whole) > LIMIT).sum()
            stream = np.clip(whole, -LIMIT, LIMIT)
            if placement == "after_residual":
                stream = np.tanh(np.float64(layers[name]["alpha"][i]) * stream)
            np.testing.assert_allclose(site[after][i], stream, atol=1e-5)
    assert clipped > 100


def test_a_stream_is_not_clipped_to_nothing():
    with pytest.raises(ValueError, match=r"clip_residual is 0\.0, expected a finite number above 0 or None"):
        dataclasses.replace(TINY, clip_residual=0.0)
