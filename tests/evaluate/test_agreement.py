"""How far an edited vision model stays itself."""

import numpy as np
import pytest

from massive_jax.evaluate import Images, cosine_similarity, features, measure_of
from massive_jax.probe import Edit


def test_top1_agreement(tiny_vision, tiny_images):
    """Of a model with a head: the share of images whose class stays."""
    images = np.concatenate([tiny_images, -tiny_images, 2 * tiny_images])
    name, measure = measure_of(tiny_vision, Images(images, ("a",) * 6))
    assert name == "top1_agreement"
    edits = [Edit("final_norm", position=0, dim=d, op="scale", value=-3.0) for d in range(6)]
    before, after = tiny_vision(images).logits.argmax(-1), tiny_vision(images, edits=edits).logits.argmax(-1)
    assert measure([], None) == 1.0
    assert measure(edits, None) == pytest.approx(np.mean(np.asarray(before) == np.asarray(after)))
    np.testing.assert_allclose(features(tiny_vision, images), tiny_vision(images).logits, rtol=1e-5, atol=1e-6)


def test_cosine_similarity():
    a, b = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 2.0], [6.0, 8.0]])
    np.testing.assert_allclose(cosine_similarity(a, b), [0.0, 1.0])
