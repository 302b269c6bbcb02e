"""Mean register features, Fix-Reg-Mean, linear heads and test-time registers, on tiny random models."""

import dataclasses

import flax.traverse_util
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.data import ImageList
from massive_jax.evaluate import (
    add_register,
    attach_head,
    check_classes,
    find_register_neurons,
    mean_registers,
    move_neurons,
    patch_norms,
    run_images,
)
from massive_jax.weights.linear_head import LinearHead


@pytest.fixture(scope="module")
def model(make_vision):
    """Without a head; registers at positions 1 and 2, 4 × 4 patches after them."""
    return make_vision(num_classes=0)


def some_images(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 28, 28, 3)).astype(np.float32)


def one_by_one(images):
    """One image a batch, so that few programs are compiled."""
    return [(slice(i, i + 1), images[i : i + 1]) for i in range(len(images))]


KEPT = [mj.Capture("embed"), mj.Capture("block_out")]


def inputs_of(out):
    """Every block's input for the registers: [L, R, D] of the one image."""
    return np.stack([out.intermediates["embed"], *out.intermediates["block_out"][:-1]])[:, 0, 1:3]


def test_means_are_those_of_the_registers_at_every_input(model):
    images = some_images(3)
    expected = np.mean([inputs_of(model(images[i : i + 1], capture=KEPT)) for i in range(3)], axis=0)
    means = mean_registers(model, one_by_one(images))
    assert means.values.shape == (3, 2, 32)
    np.testing.assert_allclose(means.values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean_registers(model, [(slice(0, 3), images)]).values, expected, rtol=1e-5, atol=1e-6)


def test_fixing_the_registers_of_one_image_to_their_own_values_changes_nothing(model):
    image, other = some_images(1), some_images(1, seed=9)
    means = mean_registers(model, one_by_one(image))
    edits = means.edits(first=1)
    before, after = model(image, capture=KEPT).last_hidden, model(image, edits=edits, capture=KEPT).last_hidden
    scale = np.linalg.norm(before)
    assert np.linalg.norm(after - before) <= 1e-5 * scale
    # Another image's registers do change it, and are what every block then sees.
    found = model(other, edits=edits, capture=KEPT)
    assert np.linalg.norm(found.last_hidden - model(other, capture=KEPT).last_hidden) > 1e-2 * scale
    np.testing.assert_array_equal(inputs_of(found), means.values)


def test_accuracy_and_similarity(model):
    images = some_images(3)
    plain = run_images(model, one_by_one(images))
    expected = np.concatenate([model(images[i : i + 1], capture=KEPT).pooled for i in range(3)])
    np.testing.assert_allclose(plain.features, expected, rtol=1e-5, atol=1e-5)
    assert plain.cosine(plain) == pytest.approx(1)
    edited = run_images(model, one_by_one(images), mj.Edit("block_out", layer=2, position=0, value=0.0))
    a, b = plain.features, edited.features
    similar = np.mean([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)])
    assert plain.cosine(edited) == pytest.approx(similar, rel=1e-5)
    assert similar < 0.999
    with pytest.raises(ValueError, match="needs a model with a head"):
        plain.top1(np.zeros(3, int))


def test_a_head_reads_the_class_token_and_the_mean_of_the_patches(model):
    rng, images = np.random.default_rng(0), some_images(3)
    head = LinearHead(rng.normal(size=(5, 64)).astype(np.float32), rng.normal(size=5).astype(np.float32))
    classifier = attach_head(model, head)
    hidden = np.concatenate([model(images[i : i + 1], capture=KEPT).last_hidden for i in range(3)])
    feature = np.concatenate([hidden[:, 0], hidden[:, 3:].mean(axis=1)], axis=-1)
    out = run_images(classifier, one_by_one(images))
    np.testing.assert_allclose(out.logits, feature @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4)
    labels = out.logits.argmax(axis=-1)
    assert out.top1(labels) == 1
    assert out.top1(np.where(np.arange(3) == 1, labels + 1, labels)) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="features of width 20; this model's tokens have width 32"):
        attach_head(model, LinearHead(np.ones((5, 20), np.float32), np.ones(5, np.float32)))
    check_classes(classifier, ImageList((), classes=tuple("abcde")))
    with pytest.raises(ValueError, match="the images have 2 classes, the model's head 5"):
        check_classes(classifier, ImageList((), classes=("a", "b")))


def test_models_without_registers_or_images(model, make_vision, tiny_model):
    with pytest.raises(ValueError, match="has no register tokens"):
        mean_registers(make_vision(registers=0), [])
    with pytest.raises(ValueError, match="no images"):
        mean_registers(model, [])
    for measure in (mean_registers, run_images, patch_norms):
        with pytest.raises(ValueError, match="is a language model"):
            measure(tiny_model, [])


@pytest.fixture(scope="module")
def outlying(make_vision):
    """A model without registers in which one neuron of layer 2 makes those patches large on which it is active."""
    model = make_vision(registers=0, num_classes=0)
    flat = flax.traverse_util.flatten_dict(model.params, sep="/")
    up, down = "layers/mlp/up/kernel", "layers/mlp/down/kernel"
    changed = {up: flat[up].at[1, :, 0].multiply(8.0), down: flat[down].at[1, 0].multiply(20.0)}
    changed = flax.traverse_util.unflatten_dict(flat | changed, sep="/")
    return dataclasses.replace(model, params=changed)


def test_register_neurons_and_their_move(outlying):
    images = some_images(4)
    options = {"count": 3, "layer": 2, "outlier": 2.0}
    (neuron, *_) = found = find_register_neurons(outlying, [(slice(0, 4), images)], **options)
    assert (neuron.layer, neuron.dim) == (2, 0)
    kept = outlying(images, capture=mj.Capture(("block_out", "mlp_hidden"))).intermediates
    norms = np.linalg.norm(kept["block_out"][1][:, 1:], axis=-1)
    outliers = norms > 2 * np.median(norms, axis=-1, keepdims=True)
    hidden = np.where(outliers[..., None], kept["mlp_hidden"][:2, :, 1:], np.nan)
    expected = np.nanmean(np.nanmean(hidden, axis=2), axis=1)  # over each image's outliers, then over the images
    assert outliers.any(axis=-1).all()
    np.testing.assert_allclose([n.activation for n in found], np.sort(expected, axis=None)[:-4:-1], rtol=1e-4)

    moved = add_register(outlying)
    assert (moved.config.registers, moved.config.prefix) == (1, 2)
    edits = move_neurons(moved, [neuron])
    elsewhere = [dataclasses.replace(edits[0], layer=3)]  # the same program, and layer 2 as it is
    state, unmoved = (
        np.asarray(moved(images, edits=e, capture=mj.Capture("mlp_hidden", layers=2)).intermediates["mlp_hidden"][0])
        for e in (edits, elsewhere)
    )
    np.testing.assert_allclose(state[:, 1, 0], np.delete(unmoved[..., 0], 1, axis=1).max(axis=1), rtol=1e-5)
    assert not np.delete(state[..., 0], 1, axis=1).any()
    after = patch_norms(moved, [(slice(0, 4), images)], edits)
    assert (after.largest[1] < norms.max(axis=-1)).all()
    assert (after.other[1] > 2 * after.median[1]).all()  # the register has it now
    assert after.outputs.features.shape == (4, 32)


def test_register_neurons_that_cannot_be_found(outlying):
    batches = one_by_one(some_images(2))
    for options, message in [
        ({"count": 1, "outlier": 1e6}, "no patch of any image exceeds 1e\\+06 times"),
        ({"count": 0, "layer": 2, "outlier": 0.5}, "outlier is 0.5"),
        ({"count": 1, "layer": 4}, "layer 4 is out of range"),
        ({"count": 1, "top_layer": 0}, "layer 0 is out of range"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_register_neurons(outlying, batches, **options)
