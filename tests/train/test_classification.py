"""Training on images: batches, their augmentation, the average of the parameters, and that a kill leaves no trace."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

import massive_jax as mj
from massive_jax.data import LabelledImages
from massive_jax.models import VisionTransformer
from massive_jax.train import (
    Classification,
    ImageTrainConfig,
    Trainer,
    read_lines,
    shuffled_batches,
    train_images,
)
from massive_jax.train.classification import _shifted
from tests.fixtures.tiny import TINY_VISION
from tests.fixtures.train_shapes import RECIPE

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
VIT = dataclasses.replace(TINY_VISION, num_layers=2, num_classes=3)


def images_of(count, seed=0):
    """Three classes that differ in brightness."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int32)
    pixels = (80 * labels[:, None, None, None] + rng.integers(0, 60, (count, 28, 28, 3))).astype(np.uint8)
    return LabelledImages(labels, ("a", "b", "c"), (28, 28), f"{seed}" * 64, lambda which: pixels[which])


@pytest.fixture(scope="module")
def images():
    return images_of(22), images_of(10, seed=1)


@pytest.fixture(scope="module")
def config(images):
    return ImageTrainConfig(
        model=VIT,
        optimizer=RECIPE,
        data=images[0].checksum,
        steps=8,
        batch=8,
        shift=1,
        ema=0.9,
        smoothing=0.1,
        log_every=2,
        eval_every=4,
        census_every=4,
        checkpoint_every=3,
        census_images=4,
    )


@pytest.fixture(scope="module")
def whole(images, config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train_images(config, *images, workdir)


def test_every_epoch_has_each_image_once(images):
    numbered = dataclasses.replace(
        images[0], read=lambda which: np.broadcast_to(which[:, None, None, None], (len(which), 2, 2, 3))
    )
    batches = shuffled_batches(numbered, batch=8, seed=3)
    found = np.concatenate([next(batches)["images"][:, 0, 0, 0] for _ in range(11)])  # 4 epochs of 22
    for epoch in found.reshape(4, 22):
        assert sorted(epoch) == list(range(22))
    assert not np.array_equal(found[:22], found[22:44])
    parts = [shuffled_batches(numbered, batch=8, seed=3, shard=(i, 2)) for i in range(2)]
    both = np.concatenate([next(part)["images"][:, 0, 0, 0] for part in parts])
    np.testing.assert_array_equal(both, found[:8])


def test_processes_share_a_batch_as_one_would_have_it(images):
    """What is done to an image does not depend on how many processes there are."""
    augmented = {"batch": 8, "seed": 3, "flip": True, "shift": 2}
    alone = shuffled_batches(images[0], **augmented)
    parts = [shuffled_batches(images[0], **augmented, shard=(i, 2)) for i in range(2)]
    for _ in range(3):
        expected, found = next(alone), [next(part) for part in parts]
        for name in ("images", "labels"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in found]), expected[name])


def test_batches_go_on_where_they_were(images):
    batches = shuffled_batches(images[0], batch=8, seed=0, flip=True, shift=2)
    for _ in range(3):
        next(batches)
    state, expected = batches.get_state(), next(batches)
    again = shuffled_batches(images[0], batch=8, seed=0, flip=True, shift=2)
    again.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, next(again), expected)


def test_augmentation():
    x = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    moved = _shifted(x, np.array([[1, 0], [0, -2]]))
    np.testing.assert_array_equal(moved[0], x[0][[0, 0, 1]])
    np.testing.assert_array_equal(moved[1], x[1][:, [2, 3, 3, 3]])
    batch = next(shuffled_batches(images_of(64), batch=64, seed=0, flip=True))
    original = next(shuffled_batches(images_of(64), batch=64, seed=0))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(batch["images"], original["images"], strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(batch["images"], original["images"], strict=True)]
    assert np.logical_xor(mirrored, same).all()
    assert 16 < sum(mirrored) < 48


def test_loss_is_smoothed_cross_entropy(images):
    module = VisionTransformer(VIT)
    params = Trainer(module, RECIPE, objective=Classification()).init(0).params
    batch = {"images": images[0][np.arange(4)], "labels": images[0].labels[:4]}

    @jax.jit
    def both(params, batch):
        logits, _, _ = module.apply({"params": params}, (batch["images"] / 255 - 0.5) / 0.5)
        return Classification(smoothing=0.2).loss(module, params, batch), logits

    loss, logits = both(params, batch)
    p = np.asarray(logits, np.float64)
    p -= np.log(np.exp(p).sum(axis=-1, keepdims=True))
    expected = -(0.8 * p[np.arange(4), batch["labels"]] + 0.2 * p.mean(axis=-1)).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_average_of_the_parameters(images):
    trainer = Trainer(VisionTransformer(VIT), RECIPE, objective=Classification(), ema=0.3)
    state = trainer.init(0)
    expected = jax.device_get(state.params)
    batch = {"images": images[0][np.arange(4)], "labels": images[0].labels[:4]}
    for step in range(1, 6):
        state, _ = trainer.step(state, batch)
        decay = min(0.3, step / (step + 9))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.average, expected)
    assert state.evaluated is state.average


def test_learns_and_is_saved(whole, images, config):
    workdir, trained = whole
    assert trained.validation["accuracy"] > 0.6
    model = mj.load(str(trained.directory))
    assert model.config == VIT
    held_out = images[1]
    out = model(model.preprocess(held_out[np.arange(10)]))
    assert float(np.mean(out.logits.argmax(axis=-1) == held_out.labels)) == pytest.approx(
        trained.validation["accuracy"]
    )
    nll = optax.softmax_cross_entropy_with_integer_labels(out.logits, held_out.labels)
    assert float(nll.mean()) == pytest.approx(trained.validation_loss, rel=1e-5)
    records = read_lines(workdir / "census.jsonl")
    assert [record["step"] for record in records] == [0, 4, 8]
    probs = np.asarray(
        model(model.preprocess(held_out[np.array([0, 3, 6, 9])]), capture=mj.Capture("attn_probs")).intermediates[
            "attn_probs"
        ]
    )  # [L, B, H, T, S]
    most = probs.mean(axis=(2, 3)).max(axis=-1).mean(axis=-1)
    np.testing.assert_allclose([layer["sink_rate"] for layer in records[-1]["layers"]], most, rtol=1e-4)


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(whole, images, config, tmp_path, monkeypatch):
    original, taken = Trainer.step, itertools.count(1)

    def dying(self, state, batch):
        if next(taken) == 6:
            raise KeyboardInterrupt
        return original(self, state, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            train_images(config, *images, tmp_path)
    trained = train_images(config, *images, tmp_path)
    assert read_lines(tmp_path / "census.jsonl") == read_lines(whole[0] / "census.jsonl")
    jax.tree.map(np.testing.assert_array_equal, trained.params, whole[1].params)
    with pytest.raises(ValueError, match="shift was 1 and is 0"):
        train_images(dataclasses.replace(config, shift=0), *images, tmp_path)


def test_images_that_do_not_fit(images, config, tmp_path):
    training, held_out = images
    small = dataclasses.replace(training, size=(14, 14))
    two = dataclasses.replace(held_out, classes=("a", "b"))
    for found, message in (
        ((small, held_out), "the training images have .* pixels"),
        ((training, two), "the held-out images are of 2 classes"),
        ((held_out, held_out), "the training is of data"),
    ):
        with pytest.raises(ValueError, match=message):
            train_images(config, *found, tmp_path)
    for changes, message in (
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"shift": 28}, "shift is 28"),
        ({"model": dataclasses.replace(VIT, num_classes=0)}, "no head"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **changes)
    assert not list(tmp_path.iterdir())
