"""Wrong arguments of the measurements: one line that says what to give, before anything is run."""

import dataclasses

import numpy as np
import pytest

from massive_jax import evaluate
from massive_jax.data import Windows
from massive_jax.evaluate import Images, Operation, Place

TOKENS = np.zeros((2, 6), np.int32)
IMAGES = np.zeros((2, 28, 28, 3), np.float32)
WINDOWS = Windows(TOKENS, 6, False)
PLACES, ZERO = [Place(0, 1)], [Operation("zero")]


def of(tokens):
    return dataclasses.replace(WINDOWS, tokens=tokens)


def images(*batches):
    return lambda: iter([(slice(0, len(batch)), batch) for batch in batches])


LANGUAGE = {
    "windows without tokens": (lambda m: evaluate.perplexity(m, of(np.zeros((2, 0), int))), "nothing to run"),
    "windows of a list": (lambda m: evaluate.perplexity(m, of([[1, 2], [3]])), "windows is"),
    "no model": (lambda m: evaluate.perplexity("m", WINDOWS), "model is 'm'; give a Model"),
    "likelihood of no model": (lambda m: evaluate.token_nll(None, TOKENS), "model is None"),
    "layers of nothing": (lambda m: evaluate.measure_layers(m, None), "tokens are object"),
    "layers of one sequence": (lambda m: evaluate.measure_layers(m, TOKENS[0]), r"tokens are int32\[6\]"),
    "layers of no sequence": (lambda m: evaluate.measure_layers(m, TOKENS[:0]), "nothing to run"),
    "layers of no tokens": (lambda m: evaluate.measure_layers(m, TOKENS[:, :0]), "nothing to run"),
    "layers of images": (lambda m: evaluate.measure_layers(m, IMAGES), "tokens are float32"),
    "layers of windows": (lambda m: evaluate.measure_layers(m, WINDOWS), "tokens are object"),
    "layers, thresholds": (lambda m: evaluate.measure_layers(m, TOKENS, thresholds=(100, 1000)), "give Thresholds"),
    "layers, a short mask": (lambda m: evaluate.measure_layers(m, TOKENS, mask=np.ones((1, 6), bool)), "mask is bool"),
    "tokens for windows": (lambda m: evaluate.check_places(m, TOKENS, PLACES), "data is .*give Windows"),
    "places of text": (lambda m: evaluate.check_places(m, WINDOWS, "0:1"), "places is '0:1'"),
    "places of pairs": (lambda m: evaluate.check_places(m, WINDOWS, [(0, 1)]), "give a list of Place"),
    "means of no data": (lambda m: evaluate.site_means(m, None, 1, PLACES), "data is None"),
    "fewer means": (lambda m: evaluate.intervene(m, WINDOWS, 1, PLACES, ZERO, []), "there are 0 means"),
    "no means": (lambda m: evaluate.intervene(m, WINDOWS, 1, PLACES, ZERO, None), "means is None"),
    "operations in words": (lambda m: evaluate.intervene(m, WINDOWS, 1, PLACES, ["zero"], [0.0]), "list of Operation"),
    "one operation": (lambda m: evaluate.intervene(m, WINDOWS, 1, PLACES, ZERO[0], [0.0]), "operations is"),
    "measure of tokens": (lambda m: evaluate.measure_of(m, TOKENS), "data is"),
    "measure of images": (lambda m: evaluate.measure_of(m, Images(IMAGES, ("a", "b"))), "is a language model"),
    "profile of nothing": (lambda m: evaluate.measure_profile(m, None), "windows is None"),
    "profile of no window": (lambda m: evaluate.measure_profile(m, of(TOKENS[:0])), "windows is"),
    "features of tokens": (lambda m: evaluate.features(m, TOKENS), "is a language model"),
    "bits": (lambda m: evaluate.quantized_inputs(m.config, 1), "bits is 1; give a whole number from 2 to 16"),
}
VISION = {
    "layers of tokens": (lambda m: evaluate.measure_layers(m, TOKENS), "images are int32"),
    "layers of no image": (lambda m: evaluate.measure_layers(m, IMAGES[:0]), "nothing to run"),
    "profile of windows": (lambda m: evaluate.measure_profile(m, WINDOWS), "images are int32"),
    "profile of an array": (lambda m: evaluate.measure_image_profile(m, IMAGES, None), "source is"),
    "profile of no image": (lambda m: evaluate.measure_image_profile(m, images(), None), "no images"),
    "no image": (lambda m: evaluate.run_images(m, []), "no images"),
    "features of nothing": (lambda m: evaluate.features(m, None), "images are object"),
    "features of no image": (lambda m: evaluate.features(m, IMAGES[:0]), "nothing to run"),
}


def refused(run):
    with pytest.raises(ValueError) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("case", LANGUAGE)
def test_of_a_language_model(tiny_model, case):
    run, message = LANGUAGE[case]
    with pytest.raises(ValueError, match=message):
        run(tiny_model)
    refused(lambda: run(tiny_model))


@pytest.mark.parametrize("case", VISION)
def test_of_a_vision_model(tiny_vision, case):
    run, message = VISION[case]
    with pytest.raises(ValueError, match=message):
        run(tiny_vision)
    refused(lambda: run(tiny_vision))


@pytest.mark.parametrize("labels", [[1], [0, 1, 2], [[0, 1]], [0.0, 1.0], None])
def test_labels_are_one_an_image(labels):
    outputs = evaluate.ImageOutputs(np.ones((2, 4), np.float32), np.eye(2, 5, dtype=np.float32))
    assert "give int[2], one an image" in refused(lambda: outputs.top1(labels))
    assert outputs.top1([0, 3]) == 0.5


@pytest.mark.parametrize("text", [None, "", "0", "0:", ":1", "0:1:2", "-1:2", "٣:1", "²:1", "0:" + "9" * 5000, 5])
def test_places_that_are_none(text):
    assert "cannot read the place" in refused(lambda: evaluate.parse_places(text))


@pytest.mark.parametrize("text", [None, "", "zero=", "zero=1", "set", "set=", "scale=nan", "=1", 5])
def test_operations_that_are_none(text):
    assert "operation" in refused(lambda: Operation.parse(text))


def test_similarities_are_of_as_many():
    assert "give as many of one width" in refused(lambda: evaluate.cosine_similarity(np.ones((2, 3)), np.ones((3, 3))))
    np.testing.assert_allclose(evaluate.cosine_similarity([[1.0, 0.0]], [[2.0, 0.0]]), [1.0])
