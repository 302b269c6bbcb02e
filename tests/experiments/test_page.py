"""What a page explores of a vision model: its numbers are those of the model."""

import base64
import dataclasses
import io
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import page, reproduce
from massive_jax.analysis import Thresholds
from massive_jax.evaluate import Images, cosine_similarity
from massive_jax.inputs.images import ImageProcessor
from massive_jax.probe import Capture, Edit
from massive_jax.report.results import EditedAt, EditedPlace, Findings, ImageSource, Intervention

LIMITS = Thresholds(magnitude=2.0, ratio=1.5)
NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture(scope="module")
def vit(tiny_vision):
    """4 × 4 patches, a class token, two registers, five classes."""
    processor = ImageProcessor({"image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}})
    return dataclasses.replace(tiny_vision, processor=processor)


@pytest.fixture(scope="module")
def images(vit):
    ramp = np.linspace(0, 255, 28).astype(np.uint8)
    pixels = [np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(80 * i)), axis=-1) for i in range(3)]
    return Images(vit.preprocess(pixels), NAMES)


def changed(metric="cosine_similarity", **more):
    source = ImageSource(images=NAMES, image_size=(28, 28))
    return Intervention(model="tiny", dtype="float32", source=source, layer=2, **{metric: {"original": 1.0}}, **more)


def test_images_are_explored(vit, images, monkeypatch):
    shown = page.images_shown(vit, images)
    assert shown.names == NAMES[:2]
    heads = vit.config.num_layers * vit.config.num_heads
    monkeypatch.setattr(page, "_NUMBERS", 2 * heads * 7**2)
    first, second = page.images_of(vit, shown, 2, LIMITS)
    assert (first.input, second.input) == ("1: a.png", "2: b.png")
    assert first.tokens == ("CLS", "reg1", "reg2", *(f"({row},{column})" for row in range(4) for column in range(4)))
    kept = vit(shown.inputs, capture=Capture(("block_out", "attn_probs"))).intermediates
    states, probs = (np.asarray(kept[site]) for site in ("block_out", "attn_probs"))
    for row, one in enumerate((first, second)):
        assert one.image.grid == (4, 4)
        data = base64.b64decode(one.image.picture.removeprefix("data:image/jpeg;base64,"))
        seen = np.asarray(Image.open(io.BytesIO(data))).astype(float)
        np.testing.assert_allclose(seen, vit.pixels(shown.inputs)[row], atol=12)
        for layer, state in zip(one.layers, states[:, row], strict=True):
            np.testing.assert_allclose(layer.values, state[np.arange(19), np.abs(state).argmax(axis=1)], rtol=1e-5)
        # Seven cells fit: what is before the patches by itself, and the four quarters.
        cells = (0, 1, 2, 3, 3, 4, 4, 3, 3, 4, 4, 5, 5, 6, 6, 5, 5, 6, 6)
        assert one.attention.cells == cells
        quarter = np.flatnonzero(np.array(cells) == 6)
        share = probs[1, row, 2][np.ix_(quarter, quarter)].sum(axis=1).mean()
        assert one.attention.maps[1][2][6][6] == pytest.approx(1000 * share, abs=0.51)
        assert one.map.cells == tuple(range(19))  # there is room for them
        np.testing.assert_allclose(np.array(one.map.rows), np.abs(states[1, row]), rtol=1e-3)
    assert (page.images_of(vit, Images(shown.inputs[:1], NAMES[:1]), 2, LIMITS))[0].input == "a.png"


def test_images_that_are_too_large(vit, images, monkeypatch):
    monkeypatch.setattr(sys.modules["massive_jax.evaluate.explore"], "_BYTES", 4 * 12 * 19**2 - 1)
    with pytest.raises(ValueError, match="images of 19 tokens are too large .* smaller --image_size"):
        page.images_shown(vit, images)


@pytest.mark.parametrize("sites", [(), (EditedPlace(position=1, dim=3, value_mean=5.0),)])
def test_images_are_changed(vit, images, sites):
    found = page.what_if(vit, images.inputs, changed(sites=sites), LIMITS)
    assert (found.image, found.text, found.metric) == ("a.png", None, "cosine_similarity")
    assert found.unedited.value == pytest.approx(1)
    image = images.inputs[:1]
    state = np.abs(np.asarray(vit(image, capture=Capture("block_out")).intermediates["block_out"])[1, 0])
    position, dim = (1, 3) if sites else np.unravel_index(state.argmax(), state.shape)
    assert found.places[0] == f"massive: {vit.token_texts(image[0])[position]}, dim {dim}"
    assert len(found.edits) <= 64
    (one,) = (e for e in found.edits if (e.layer, e.place, found.operations[e.operation]) == (2, 0, "set to zero"))
    edit = Edit("block_out", layer=2, position=int(position), dim=int(dim), op="scale", value=0.0)
    plain, edited = vit(image), vit(image, edits=edit)
    assert one.value == pytest.approx(cosine_similarity(edited.pooled, plain.pooled)[0], abs=1e-6)
    logits = np.asarray(edited.logits)[0]
    assert [likely.name for likely in one.top] == [f"class {i}" for i in np.argsort(-logits)]
    assert sum(likely.probability for likely in one.top) == pytest.approx(1, rel=1e-4)


def test_the_headline_of_images():
    where = EditedAt(layer=2, sites=(EditedPlace(position=1, dim=3, value_mean=5.0),))
    bare = {"massive": (), "one_criterion": (), "attention_share": None, "attention_layer": None}
    found = Findings(
        model="tiny",
        layer=2,
        **bare,
        intervention=where,
        top1_agreement={"original": 1.0, "zero": 0.625, "mean": 1.0},
        zero_low=0.5,
        zero_high=0.75,
    )
    assert reproduce.headline(found) == (
        "Setting one number to zero in tiny, after block 2, leaves 62.5 % (95 % interval 50.0 % to 75.0 %) of the "
        "images their most likely class; setting the same to the mean gives 100.0 %."
    )
    other = dataclasses.replace(found, top1_agreement=None, cosine_similarity={"original": 1.0})
    assert reproduce.headline(other) == "tiny has no massive activations at layer 2 on this image."
