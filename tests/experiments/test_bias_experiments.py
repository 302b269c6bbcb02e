"""The experiments on explicit attention biases, on the tiny model whose BOS carries a planted massive activation."""

import subprocess
import sys

import numpy as np
import pytest

import massive_jax as mj
from massive_jax.data import cut_windows
from massive_jax.evaluate import perplexity, quantized_inputs
from massive_jax.files import read_json

LAYERS = 3  # as in conftest.py


@pytest.fixture
def explicit(run, text_file):
    """What explicit_bias writes, and the directory it saves the model to."""
    directory = run.workdir.parent / "explicit"
    return run("explicit_bias", f"--text={text_file}", "--context=40", "--windows=2", f"--save={directory}"), directory


def test_explicit_bias(explicit, run, tiny, text_file, clean_flags):
    got, directory = explicit
    windows = cut_windows(tiny, text_file.read_text(), context=40, windows=2, bos=True)
    assert got["prefix"] == {"text": "bos", "tokens": [256]}
    assert got["perplexity"]["original"] == pytest.approx(perplexity(tiny, windows, skip=1), rel=1e-6)
    assert got["perplexity"]["explicit"] == pytest.approx(got["perplexity"]["original"], rel=1e-4)
    assert got["logits"]["relative_difference"] < 1e-5
    assert got["logits"]["beyond_1e-4"] == 0
    # BOS holds 3,000; without it nothing does, and int8 has a scale to work with.
    assert got["largest"]["original"] > 2900 > 100 > got["largest"]["explicit"]
    quantised = perplexity(tiny, windows, quantized_inputs(tiny.config), skip=1)
    assert got["int8_per_tensor"]["original"] == pytest.approx(quantised, rel=1e-6)
    assert [layer["layer"] for layer in got["layers"]["explicit"]] == [1, 2, 3]
    for before, after in zip(got["layers"]["original"], got["layers"]["explicit"], strict=True):
        assert before["slot_rate"] == 0
        # BOS itself, of 41 queries one, had nothing else to attend to.
        assert before["sink_rate"] == pytest.approx((40 * after["slot_rate"] + 1) / 41, rel=1e-4)
    assert (run.workdir / "explicit_bias.png").stat().st_size > 10_000

    # The saved model is one like any other: its attention has a slot more than it has tokens.
    loaded = mj.load(str(directory))
    assert loaded.config.num_slots == 1
    found = run("attention_map", f"--model={directory}", "--prompt=Summer.", "--layer=2")
    assert found["key_tokens"] == [*"Summer.", "slot 1"]
    with np.load(run.workdir / "attention_map.npz") as arrays:
        np.testing.assert_allclose(np.nansum(arrays["probs"], axis=1), 1, rtol=1e-5)
    check_compared(run, text_file, explicit, directory, "kv")


def check_compared(run, text_file, explicit, other, kind):
    """Compares another model with the explicit one, which is what it was."""
    got, directory = explicit
    models = f"--models={other},{directory}"
    compared = run("compare_bias", models, f"--text={text_file}", "--context=40", "--windows=2")["models"]
    assert [m["attention_bias"] and m["attention_bias"]["kind"] for m in compared] == [kind, "kv"]
    assert compared[1]["perplexity"] == pytest.approx(got["perplexity"]["explicit"], rel=1e-5)
    assert compared[1]["largest"] == pytest.approx(got["largest"]["explicit"], rel=1e-5)
    assert len(compared[0]["layers"]) == LAYERS


@pytest.mark.slow
def test_the_original_beside_it(explicit, run, tiny, text_file, clean_flags):
    check_compared(run, text_file, explicit, tiny.name, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prefix="], "prefix is empty"),
        (["--prefix=" + "x" * 96], "no room"),
        (["--context=96"], "longer than the model"),
    ],
)
def test_bad_input(run, text_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        run("explicit_bias", f"--text={text_file}", "--windows=1", *arguments)
    assert not run.workdir.exists()


@pytest.mark.slow
def test_explicit_bias_is_exact_in_float64(tiny_directory, tmp_path, text_file):
    """A process of its own: --dtype=float64 switches it on in all of jax."""
    subprocess.run(
        [
            *(sys.executable, "-m", "experiments.explicit_bias", f"--model={tiny_directory}", f"--workdir={tmp_path}"),
            *(f"--text={text_file}", "--context=40", "--windows=2", "--dtype=float64"),
        ],
        check=True,
        capture_output=True,
    )
    got = read_json(tmp_path / "explicit_bias.json")
    assert got["dtype"] == "float64"
    assert got["logits"]["positions"] == 80
    assert got["logits"]["relative_difference"] < 1e-12
    assert got["perplexity"]["explicit"] == pytest.approx(got["perplexity"]["original"], rel=1e-12)


def test_compare_needs_models(run):
    with pytest.raises(ValueError, match="two models"):
        run("compare_bias")
