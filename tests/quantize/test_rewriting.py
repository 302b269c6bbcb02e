"""Rotated, smoothed and untied models compute what they did."""

import numpy as np
import pytest

from massive_jax.models import NormConfig
from massive_jax.quantize import hadamard, rotate, smooth, why_not_rotated, why_not_smoothed
from tests.fixtures.tiny import TINY_VISION

SITES = {"attn_norm": 32, "mlp_norm": 32, "mlp_hidden": 48}


@pytest.mark.parametrize("n", [1, 2, 4, 12, 28, 36, 64, 72, 576, 640])
def test_hadamard(n):
    """Of Paley's two kinds and doubled: orthogonal, all entries of one size."""
    matrix = hadamard(n)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-5)
    np.testing.assert_allclose(np.abs(matrix), n**-0.5, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 6, 92])
def test_no_hadamard(n):
    with pytest.raises(ValueError, match=f"no Hadamard matrix of {n} is known here"):
        hadamard(n)


def test_rotated_and_smoothed_compute_the_same(tiny_model, tiny_tokens):
    """One program serves all three: they differ in parameters only, but for the head that a rotation unties."""
    logits = tiny_model(tiny_tokens).logits
    turned = rotate(tiny_model, seed=3)
    largest = {site: np.random.default_rng(0).uniform(0, 9, (4, n)) for site, n in SITES.items()}
    for model in (turned, smooth(tiny_model, largest), smooth(turned, largest, 0.8)):
        np.testing.assert_allclose(model(tiny_tokens).logits, logits, rtol=1e-4, atol=1e-4)
    up = "layers", "mlp", "up", "kernel"
    assert all(np.abs(_at(m, up) - _at(tiny_model, up)).max() > 0.1 for m in (turned, smooth(tiny_model, largest)))


def test_what_cannot_be_rewritten_says_why(make_model):
    with pytest.raises(ValueError, match="cannot be rotated: its layer norm does not commute"):
        rotate(make_model(norm=NormConfig("layer")))
    config = make_model(hidden_size=24, head_dim=6).config  # 24 = 2 · 12, 6 is no order
    assert "no Hadamard matrix is known here of its width 24 or its heads' 6" in (why_not_rotated(config) or "")
    with pytest.raises(ValueError, match="cannot be smoothed: norms placed 'output'"):
        smooth(make_model(norm_placement="output"), {})
    assert why_not_rotated(TINY_VISION)
    assert why_not_smoothed(TINY_VISION) is None


def _at(model, path):
    found = model.params
    for name in path:
        found = found[name]
    return np.asarray(found)
