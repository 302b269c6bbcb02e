"""The table of quantisations, on tiny models."""

import numpy as np
import pytest

from massive_jax.analysis import Thresholds
from massive_jax.data.windows import Windows
from massive_jax.evaluate import Images, measure_quantization, perplexity, quantization_passes, why_not_taken
from massive_jax.models import NormConfig
from tests.fixtures.tiny import BOS

SETTINGS, METHODS = ["W16A16", "W8A8", "W3A3", "KV4"], ["plain", "rotate+smooth"]


def windows(tokens, bos=True):
    front = np.full((len(tokens), 1), BOS, np.int32)
    return Windows(np.concatenate([front, tokens], axis=1) if bos else tokens, tokens.shape[1], bos)


@pytest.mark.slow
def test_table(tiny_model, tiny_tokens):
    """Unquantised costs nothing, fewer bits cost more; what is counted is what is run."""
    data, tokens = windows(tiny_tokens, bos=False), []
    found = measure_quantization(tiny_model, data, SETTINGS, METHODS, progress=tokens.append)
    assert sum(tokens) == data.tokens.size * quantization_passes(len(SETTINGS), METHODS, 1)
    assert found.unquantised.value == pytest.approx(perplexity(tiny_model, data), rel=1e-5)
    cost = {(o.method, o.setting): o.cost.value for o in found.outcomes}
    assert list(cost) == [(method, setting) for setting in SETTINGS for method in METHODS]
    assert cost["plain", "W16A16"] == 0
    assert abs(cost["rotate+smooth", "W16A16"]) < 1e-5
    for method in METHODS:
        assert 0 < abs(cost[method, "W8A8"]) < 0.1 * abs(cost[method, "W3A3"])
        assert cost[method, "KV4"] != 0


@pytest.mark.slow
def test_absorbing_and_what_is_massive(make_model, tiny_tokens):
    """With BOS massive: unquantised, absorbed costs nothing; in 8 bits absorbed or apart costs less than plain; zeroing
    costs without a rounding.
    """
    model = make_model(tie_embeddings=False)
    embedding = np.array(model.params["embedding"])
    embedding[BOS, 5] = 3000.0
    model = model.with_params(model.config, {**model.params, "embedding": embedding})
    methods = ["plain", "absorb", "apart", "zero", "rotate", "rotate+absorb"]
    found = measure_quantization(
        model, windows(tiny_tokens), ["W16A16", "W8A8"], methods, scales=("tensor", "token", "channel"),
        thresholds=Thresholds(100.0, 100.0),
    )  # fmt: skip
    cost = {(o.scales, o.method, o.setting): o.cost.value for o in found.outcomes}
    for method in ("absorb", "apart", "rotate+absorb"):
        assert abs(cost["tensor", method, "W16A16"]) < 1e-3
    assert abs(cost["tensor", "zero", "W16A16"]) > 1e-2
    assert abs(cost["tensor", "absorb", "W8A8"]) < abs(cost["tensor", "plain", "W8A8"])


@pytest.mark.slow
def test_images(tiny_vision, tiny_images):
    found = measure_quantization(tiny_vision, Images(tiny_images, ("a", "b")), ["W16A16", "W8A8", "W3A3"])
    assert found.metric == "top1_agreement"
    assert found.outcomes[0].cost.value == 0
    assert 0 < found.outcomes[1].cost.value < found.outcomes[2].cost.value


def test_what_a_model_cannot_take_is_said_first(tiny_model, make_model, tiny_vision, tiny_tokens, tiny_images):
    data, bos = windows(tiny_tokens, bos=False), windows(tiny_tokens)
    assert why_not_taken(tiny_model, bos, "absorb") is None
    images = Images(tiny_images, ("a", "b"))
    for model, its, methods, message in (
        (tiny_model, data, ["absorb"], r"method 'absorb': BOS is what .*\(--bos\); leave it out"),
        (make_model(norm=NormConfig("layer")), data, ["rotate"], "its layer norm does not commute"),
        (tiny_vision, images, ["absorb"], "differs from image to image"),
        (tiny_vision, images, ["super"], "are looked for in language models"),
        (tiny_model, images, ["plain"], "takes tokens, not images"),
        (tiny_model, Windows(tiny_tokens[:, :2], 2, False), ["plain"], "windows have 2 tokens; give 3 at least"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            measure_quantization(model, its, ["W8A8"], methods)
        assert "\n" not in str(raised.value)
    for settings, scales, message in (
        (["W8A8", "W8A8"], ["tensor"], "one is there twice"),
        ([], ["tensor"], "give some, as W8A8"),
        (["W8A8"], ["row"], "give some of tensor, token, channel"),
        (["W8A8"], ["token", "token"], "each once"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_quantization(tiny_model, data, settings, scales=scales)
