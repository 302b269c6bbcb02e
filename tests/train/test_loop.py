"""The loop: what it writes, and that stopping, being killed and going on leave no trace in the numbers."""

import dataclasses
import itertools
import os
import resource
import signal
import time

import jax
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.models import AttentionBias
from massive_jax.train import Preempted, Trainer, read_lines, train
from massive_jax.train.data import even_windows
from tests.fixtures.train_shapes import RECIPE, gpt

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def losses(workdir):
    return {record["step"]: record["loss"] for record in read_lines(workdir / "metrics.jsonl") if "loss" in record}


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(make_config, token_file, tmp_path_factory):
    """A training that was never stopped: its directory, what came of it, what it said."""
    workdir = tmp_path_factory.mktemp("whole")
    said = []
    return workdir, train(make_config(), token_file, workdir, say=said.append), said


@pytest.fixture
def killed_at(monkeypatch):
    """`killed_at(step)`: the process dies, by no Exception, when it takes that step."""

    def kill(step):
        original, taken = Trainer.step, itertools.count(1)

        def dying(self, state, tokens):
            if next(taken) == step:
                raise KeyboardInterrupt
            return original(self, state, tokens)

        monkeypatch.setattr(Trainer, "step", dying)

    return kill


def test_what_is_written(whole, make_config, token_file):
    workdir, trained, said = whole
    assert list(losses(workdir)) == list(range(1, 10))
    records = read_lines(workdir / "metrics.jsonl")
    assert records[0].keys() >= {"step", "loss", "grad_norm", "learning_rate"}
    validated = {record["step"]: record["validation_loss"] for record in records if "validation_loss" in record}
    assert list(validated) == [4, 8, 9]
    assert trained.validation_loss == validated[9] < validated[4]
    assert trained.loss == losses(workdir)[9]
    assert steps_saved(workdir) == [6, 9]
    assert any((workdir / "tensorboard").iterdir())
    assert any("step 4/9  loss " in line and "tokens/s" in line and "left" in line for line in said)


def test_the_model_loads(whole, make_config):
    _, trained, _ = whole
    model = mj.load(str(trained.directory))
    jax.tree.map(np.testing.assert_array_equal, model.params, jax.device_get(trained.params))
    assert model.config == make_config().model
    assert model.tokenize("abc").tolist() == [[97, 98, 99]]


def test_a_bos_that_it_was_trained_with(make_config, token_file, tmp_path):
    """It begins the sequences that are trained on, validated and counted, and it is the saved model's."""
    seen = {}
    for bos in (None, 0):
        trained = train(make_config(bos=bos), token_file, tmp_path / str(bos))
        workdir = tmp_path / str(bos)
        untrained = read_lines(workdir / "census.jsonl")[0]["layers"]
        seen[bos] = losses(workdir)[1], trained.validation_loss, untrained
    assert seen[0][0] != seen[None][0]
    assert seen[0][1] != seen[None][1]
    assert seen[0][2] != seen[None][2]
    model = mj.load(str(trained.directory))
    assert model.bos_id() == 0
    assert model.tokenize("ab", bos=True).tolist() == [[0, 97, 98]]


def test_census(whole, make_config, token_file):
    workdir, trained, _ = whole
    records = read_lines(workdir / "census.jsonl")
    assert [record["step"] for record in records] == [0, 4, 8, 9]
    config = make_config()
    windows = even_windows(token_file, token_file.split(0.1, 16)[1], context=16, count=2)[:, :-1]
    model = mj.load(str(trained.directory))
    out = model(windows, capture=[mj.Capture("block_out"), mj.Capture("attn_probs")]).intermediates
    for layer, found in enumerate(records[-1]["layers"]):
        hidden, probs = np.asarray(out["block_out"][layer]), np.asarray(out["attn_probs"][layer])
        magnitude = np.abs(hidden)
        w, position, dim = np.unravel_index(magnitude.argmax(), hidden.shape)
        assert found["layer"] == layer + 1
        assert found["top"][0] == {
            "value": pytest.approx(float(hidden[w, position, dim]), rel=1e-4),
            "position": position,
            "dim": dim,
        }
        assert len(found["top"]) == 3
        assert found["largest"] == pytest.approx(magnitude.max(axis=(1, 2)).mean(), rel=1e-4)
        assert found["median"] == pytest.approx(
            np.mean([np.sort(m, axis=None)[(m.size - 1) // 2] for m in magnitude]), rel=1e-4
        )
        centred = hidden - hidden.mean(axis=(1, 2), keepdims=True)
        fourth, variance = ((centred**n).mean(axis=(1, 2)) for n in (4, 2))
        assert found["kurtosis"] == pytest.approx((fourth / variance**2).mean(), rel=1e-3)
        assert found["sink_rate"] == pytest.approx(probs[..., 0].mean(), rel=1e-4)
    assert len(records[-1]["layers"]) == config.model.num_layers


def test_killed_and_resumed_is_bit_identical(whole, make_config, token_file, tmp_path, killed_at, monkeypatch):
    with monkeypatch.context():
        killed_at(8)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(), token_file, tmp_path)
    monkeypatch.undo()
    assert steps_saved(tmp_path)[-1] == 6
    assert 7 not in losses(tmp_path) or losses(tmp_path)[7] == losses(whole[0])[7]
    trained = train(make_config(), token_file, tmp_path)
    assert losses(tmp_path) == losses(whole[0])
    jax.tree.map(np.testing.assert_array_equal, trained.params, whole[1].params)
    assert read_lines(tmp_path / "census.jsonl") == read_lines(whole[0] / "census.jsonl")


def test_sigterm_saves_and_stops(whole, make_config, token_file, tmp_path, monkeypatch):
    original, taken = Trainer.step, itertools.count(1)

    def terminated(self, state, tokens):
        if next(taken) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, state, tokens)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Trainer, "step", terminated)
    with pytest.raises(Preempted, match="stopped by SIGTERM after step 5"):
        train(make_config(), token_file, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps_saved(tmp_path) == [3, 5]
    train(make_config(keep=1, log_every=5), token_file, tmp_path)
    assert losses(tmp_path) == losses(whole[0])
    assert steps_saved(tmp_path) == [9]


def test_another_config_is_refused_by_field(whole, make_config, token_file):
    other = make_config(seed=1, model=gpt(num_heads=4), optimizer=dataclasses.replace(RECIPE, weight_decay=0.0))
    with pytest.raises(ValueError) as caught:
        train(other, token_file, whole[0])
    for part in ("seed was 0 and is 1", "model.num_heads was 2 and is 4", "optimizer.weight_decay was 0.1 and is 0.0"):
        assert part in str(caught.value)
    assert "learning_rate" not in str(caught.value)
    assert losses(whole[0]).keys() == set(range(1, 10))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    make_config, token_file, tmp_path, monkeypatch
):
    original, taken = Trainer.step, itertools.count(1)

    def broken(self, state, tokens):
        if next(taken) == 5:
            state = dataclasses.replace(state, params=jax.tree.map(lambda x: x * np.nan, state.params))
        return original(self, state, tokens)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(ValueError, match=r"loss of step 5 is nan: stopped; the last good checkpoint is of step 3\."):
        train(make_config(), token_file, tmp_path)
    assert steps_saved(tmp_path) == [3]
    assert list(losses(tmp_path)) == [1, 2, 3, 4]


def test_a_full_disk_keeps_the_checkpoint_before(make_config, token_file, tmp_path, monkeypatch):
    original, taken = Trainer.step, itertools.count(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(self, state, tokens):
        if next(taken) == 5:  # from here on no file may grow beyond 20 kB
            deadline = time.monotonic() + 60
            while not (tmp_path / "checkpoints" / "3").is_dir() and time.monotonic() < deadline:
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return original(self, state, tokens)

    monkeypatch.setattr(Trainer, "step", filling)
    try:
        with pytest.raises(ValueError, match=r"could not be written .*; the last whole one is of step 3\. Make room"):
            train(make_config(), token_file, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    train(make_config(steps=4), token_file, tmp_path)
    assert steps_saved(tmp_path)[-1] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"context": 17}, "context is 17, more than the model's max_position 16"),
        (
            {"model": gpt(position="rope", attention_bias=AttentionBias("sink_token")), "context": 16},
            "context is 16, more than the model's max_position 16 with a prefix of 1 before it",
        ),
        ({"batch": 3}, "batch is 3, no multiple of accumulate 2"),
        ({"validation": 0.0}, "validation is 0.0, expected a share"),
        ({"ema": 1.0}, "ema is 1.0, expected a decay"),
    ],
)
def test_bad_configs(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_data_that_do_not_fit(make_config, token_file, tmp_path):
    with pytest.raises(ValueError, match="more than the model's 100"):
        train(make_config(model=gpt(vocab_size=100)), token_file, tmp_path)
    with pytest.raises(ValueError, match="the training is of data"):
        train(make_config(data="0" * 64), token_file, tmp_path)
    assert not list(tmp_path.iterdir())
