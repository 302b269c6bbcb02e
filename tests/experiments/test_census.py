"""The census: its numbers against torch's, what it says, and what becomes of one that is killed."""

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from massive_jax.data import Windows, cut_windows, load_text
from massive_jax.evaluate import Images, batches, census, measure_attention, take_census
from massive_jax.files import read_json
from massive_jax.report import as_record
from massive_jax.report.results import ModelCensus
from tests.experiments.conftest import HEADS, PLANTED
from tests.fixtures import census_reference, hf_reference
from tests.models.test_default_model import torch_model

TEXT = "".join(f"line {i:02d} of the small book. It is short.\n" for i in range(10))
KEYS = {"model", "text", "dtype", "bos", "windows", "context", "sink_rate", "layers"}
LAYER = {"layer", "median", "first", "places", "sink_rate", "sink_mass", "bias_spread", "rest_spread"}
LAYER |= {"value_norm_ratio", "entropy"}


@pytest.mark.parametrize("bos", [False, True])
def test_every_number_is_torchs(run, tiny, tiny_directory, text_file, bos):
    got = run("census", f"--text={text_file}", "--windows=5", "--context=16", f"--bos={bos}")
    assert got.keys() >= KEYS
    assert all(layer.keys() >= LAYER for layer in got["layers"])
    assert (got["text"], got["bos"], got["windows"], got["context"]) == (str(text_file), bos, 5, 16)
    tokens = cut_windows(tiny, TEXT, windows=5, context=16, bos=bos).tokens
    expected = census_reference.of_torch(hf_reference.LLAMA, census_reference.eager(tiny_directory), tokens)
    census_reference.assert_same(got["layers"], expected)
    assert got["sink_rate"] == pytest.approx(np.mean([layer["sink_rate"] for layer in expected]))
    uniform = np.mean(1 / np.arange(1, tokens.shape[1] + 1))
    for layer in got["layers"]:
        assert layer["sink_mass_uniform"] == pytest.approx(uniform)
        assert len(layer["sink_mass_by_head"]) == HEADS
        low, high = layer["intervals"]["entropy"]
        assert low < layer["entropy"] < high
        null = layer["random_spread"]
        assert 0 < null["low"] < null["mean"] < null["high"]
    assert as_record(ModelCensus, got).layers[0].median == got["layers"][0]["median"]


def test_places_and_the_life_of_a_planted_activation(run, text_file):
    got = run("census", f"--text={text_file}", "--windows=5", "--context=16", "--bos", "--massive_ratio=500")
    assert got["massive"]
    assert "position 0 in dim 5" in got["finding"]
    assert "position 0 in dim 5" in run.out
    for layer in got["layers"]:
        (place,) = (p for p in layer["places"] if p["massive"])
        assert (place["position"], place["class"], place["dim"]) == (0, "start", PLANTED)
        assert (place["count"], place["share"]) == (5, 1.0)
        assert (place["mean"], place["std"]) == (
            pytest.approx(layer["first"][0]["mean"]),
            pytest.approx(layer["first"][0]["std"], rel=1e-3),
        )
        assert place["mean"] == pytest.approx(3000, rel=0.05)
    (life,) = got["lives"]
    assert (life["place"], life["dim"], life["up"], life["down"]) == ("start", PLANTED, [], [])  # there from the start
    assert (run.workdir / "census.png").stat().st_size > 10_000


def test_tokens_are_counted_by_their_text(run, text_file):
    low = ("--massive_magnitude=1.5", "--massive_ratio=2")
    got = run("census", f"--text={text_file}", "--windows=8", "--context=32", *low)
    text, first = TEXT[: 8 * 32], {32 * w for w in range(8)}
    for layer in got["layers"]:
        assert layer["places"]
        for place in layer["places"]:
            if "token" not in place:
                assert place["class"] == "start"
                continue
            assert place["share"] == pytest.approx(place["count"] / _occurrences(text, place, first))
    classes = {place["class"] for layer in got["layers"] for place in layer["classes"]}
    assert classes == {"start", "first_delimiter", "delimiter", "weak_word", "other"}


def _occurrences(text, place, first):
    """How often a token of a class is there; every byte is one."""
    windows = [text[i : i + 32] for i in sorted(first)]
    delimiters = [min((w.find(c, 1) for c in ".\n" if c in w[1:]), default=-1) for w in windows]
    all_of_it = sum(w[1:].count(place["token"]) for w in windows)
    led = sum(d > 0 and w[d] == place["token"] for w, d in zip(windows, delimiters, strict=True))
    return led if place["class"] == "first_delimiter" else all_of_it - led


def test_a_model_without_massive_activations_says_so(run, text_file):
    got = run("census", f"--text={text_file}", "--windows=2", "--context=16")
    assert (got["massive"], got["birth"], got["lives"]) == (False, None, [])
    assert got["finding"].startswith("no massive activations: nothing is above 100.0 and 1,000 times the median")
    assert got["finding"] in run.out


def test_one_window_has_no_interval(run, text_file):
    got = run("census", f"--text={text_file}", "--windows=1", "--context=16")
    assert all(np.isnan(layer["intervals"]["entropy"]).all() for layer in got["layers"])


def test_several_models(run, tiny_directory, text_file, clean_flags, tmp_path):
    module = importlib.import_module("experiments.census")
    clean_flags()
    copy = tmp_path / "another"
    os.symlink(tiny_directory, copy)
    models, more = f"--models={tiny_directory},{copy}", ("--context=16", f"--text={text_file}")
    flags.FLAGS(["census", models, f"--workdir={run.workdir}", *more])
    module.main()
    found = sorted(run.workdir.glob("*/census.json"))
    assert len(found) == 2
    assert read_json(found[0])["layers"] == read_json(found[1])["layers"]


def test_it_goes_on_after_a_kill_with_the_same_numbers(tiny, tmp_path, monkeypatch):
    """Killed after every batch: one census of many short lives counts what one counts at a stretch."""
    monkeypatch.setattr(batches, "TOKENS_A_BATCH", 32)
    monkeypatch.setattr(census, "_SAVE_EVERY", 0.0)
    data = cut_windows(tiny, TEXT, windows=9, context=16, bos=True)
    state, whole = tmp_path / "state.npz", take_census(tiny, data).arrays()

    class Killed(BaseException):
        pass

    lives = 0
    while True:
        add, lives, done = census._add, lives + 1, []

        def one_more(*args, add=add, done=done):
            if done:
                raise Killed
            done.append(1)
            return add(*args)

        monkeypatch.setattr(census, "_add", one_more)
        try:
            found = take_census(tiny, data, state=state)
            break
        except Killed:
            continue
        finally:
            monkeypatch.setattr(census, "_add", add)
    assert lives == 9
    assert not state.exists()
    assert found.arrays().keys() == whole.keys()
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)


def test_a_state_of_other_flags_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(census, "_SAVE_EVERY", 0.0)
    state = tmp_path / "state.npz"
    data = cut_windows(tiny, TEXT, windows=4, context=16)
    counted = take_census(tiny, data)
    census._save(state, counted, census._about(tiny, data, census.DEFINITION, 0, {"bos": False}))
    with pytest.raises(ValueError, match="with seed 0, this one with 1"):
        take_census(tiny, data, state=state, about={"bos": False}, seed=1)
    with pytest.raises(ValueError, match="with bos False, this one with True"):
        take_census(tiny, data, state=state, about={"bos": True})
    changed = {**tiny.params, "embedding": tiny.params["embedding"] * 2}
    with pytest.raises(ValueError, match="with weights '"):  # of the same name
        take_census(tiny.with_params(tiny.config, changed), data, state=state, about={"bos": False})
    whole = state.read_bytes()
    flipped = bytes([*whole[: len(whole) // 2], whole[len(whole) // 2] ^ 255, *whole[len(whole) // 2 + 1 :]])
    for damaged in (b"PK no archive", b"", whole[:100], whole[:-30], flipped):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no state of a census"):
            take_census(tiny, data, state=state)


def test_bad_input(run, tiny, tiny_directory, text_file):
    with pytest.raises(ValueError, match="enough for 6 windows of 64; 7 are needed"):
        run("census", f"--text={text_file}", "--windows=7", "--context=64")
    with pytest.raises(ValueError, match="--model has no effect beside --models"):
        run("census", "--models=a,b")
    with pytest.raises(ValueError, match="too short for a census: give at least 4"):
        take_census(tiny, cut_windows(tiny, TEXT, windows=2, context=3))
    with pytest.raises(ValueError, match="windows of one length"):
        take_census(tiny, Windows(np.zeros((1, 8), np.int32), 8, False, np.ones((1, 8), bool)))
    with pytest.raises(ValueError, match="thresholds is 3"):
        take_census(tiny, cut_windows(tiny, TEXT, windows=2, context=8), thresholds=3)
    with pytest.raises(ValueError, match="give Windows"):
        take_census(tiny, TEXT)


def test_a_wrong_model_shows_before_the_first_has_run(run, tiny_directory, broken_directory, monkeypatch, clean_flags):
    (broken_directory / "config.json").write_text("{")
    module = importlib.import_module("experiments.census")
    monkeypatch.setattr(module, "run", None)
    for wrong, words in {"/nowhere": "no model '/nowhere'", broken_directory: "config.json"}.items():
        clean_flags()
        flags.FLAGS(["census", f"--models={tiny_directory},{wrong}", f"--workdir={run.workdir}"])
        with pytest.raises(ValueError, match=words):
            module.main()


def test_a_stream_that_is_mostly_zero(tiny):
    """Its median is 0: ratios are large and finite, what has no direction has no spread, and nothing warns."""
    params = jax.tree.map(jnp.zeros_like, tiny.params)
    params["embedding"] = params["embedding"].at[:, PLANTED].set(200.0)
    model = dataclasses.replace(tiny, params=params)
    data = cut_windows(model, TEXT, windows=2, context=16)
    counted = take_census(model, data)
    assert (counted.sums["median"].mean == 0).all()
    assert np.isfinite(counted.places.ratios).all()
    assert np.isnan(counted.sums["bias_spread"].mean).all()
    np.testing.assert_allclose(counted.places.means, 200.0)
    assert measure_attention(model, data, apart=0.5).with_massive == 2


def test_images(tiny_vision, tiny_images):
    counted = take_census(tiny_vision, Images(tiny_images, ("a", "b")))
    kinds = np.bincount(counted.tokens.parts()[1], weights=counted.tokens.sums[:, 0])
    assert kinds[5:].tolist() == [2, 4, 32]  # class token, registers, patches of two images
    assert counted.sums["sink_mass"].mean.shape == (3, 4)
    assert np.isfinite(counted.sums["bias_spread"].mean).all()


@pytest.mark.slow
def test_the_default_model_is_torchs(default_model, tmp_path):
    data = cut_windows(default_model, load_text(), windows=4, context=64)
    model = torch_model()
    expected = census_reference.of_torch(hf_reference.LLAMA, model, data.tokens)
    counted = take_census(default_model, data)
    for name in ("median", "bias_spread", "rest_spread", "value_norm_ratio", "entropy"):
        np.testing.assert_allclose(counted.sums[name].mean, [layer[name] for layer in expected], rtol=1e-3)
    mass = counted.sums["sink_mass"].mean
    np.testing.assert_allclose(mass.mean(axis=1), [layer["sink_mass"] for layer in expected], rtol=1e-3)
    np.testing.assert_allclose((mass > 0.3).mean(axis=1), [layer["sink_rate"] for layer in expected])


@pytest.mark.slow
def test_sigkill_ten_times(tiny_directory, tmp_path):
    """The process itself is killed, at any time: the last one writes the same file, bit for bit."""
    text = tmp_path / "long.txt"
    text.write_text("".join(f"line {i:06d} of the long book. It is not short.\n" for i in range(20_000)))
    arguments = [sys.executable, "-m", "experiments.census", f"--model={tiny_directory}", f"--text={text}"]
    arguments += ["--windows=13000", "--context=64"]

    def start(name):
        return subprocess.Popen([*arguments, f"--workdir={tmp_path / name}"], stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    for _ in range(10):
        process, state = start("killed"), tmp_path / "killed" / ".census.state.npz"
        saved = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > saved):
            time.sleep(0.05)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    whole, killed = ((tmp_path / name / "census.json").read_bytes() for name in ("whole", "killed"))
    assert killed == whole


def test_of_long_windows_only_some_entropies_are_computed(tiny, monkeypatch):
    data = cut_windows(tiny, TEXT, windows=5, context=16)
    monkeypatch.setattr(census, "_ALL_ENTROPIES", 8)
    monkeypatch.setattr(census, "_ENTROPY_WINDOWS", 3)
    found = take_census(tiny, data).sums["entropy"]
    first = take_census(tiny, cut_windows(tiny, TEXT, windows=3, context=16)).sums["entropy"]
    np.testing.assert_array_equal(found.count, 3)
    np.testing.assert_allclose(found.mean, first.mean, rtol=1e-6)
