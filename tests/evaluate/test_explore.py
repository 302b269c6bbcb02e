"""What a text becomes under edits: as by perplexity, and however large."""

import math

import numpy as np
import pytest

from massive_jax.data import Windows
from massive_jax.evaluate import outcomes, perplexity
from massive_jax.probe import Edit


def test_outcomes_are_perplexities(tiny_model):
    tokens = np.arange(9, dtype=np.int32)[None]
    edits = [[Edit("final_norm", op="scale", value=scale)] for scale in (1.0, 40.0, 1e4)]
    plain, large, infinite = outcomes(tiny_model, tokens, edits, top=3)
    assert plain.perplexity == pytest.approx(perplexity(tiny_model, Windows(tokens, 9, False)), rel=1e-5)
    assert 1e39 < large.perplexity < math.inf
    assert infinite.perplexity == math.inf
    logits = np.asarray(tiny_model(tokens).logits)[0, -1].astype(np.float64)
    likely = np.argsort(-logits)[:3]
    assert plain.next_ids == tuple(likely.tolist())
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(plain.next_probabilities, shares[likely], rtol=1e-4)
