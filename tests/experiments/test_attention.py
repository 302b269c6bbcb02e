"""Attention over a corpus from the command line: what is written, and what is said where there is nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import attention
from massive_jax.analysis import Thresholds
from massive_jax.data import cut_windows
from massive_jax.evaluate import measure_attention
from massive_jax.report import as_json, as_record, plot_massive_attention, style
from massive_jax.report import massive_attention as figure
from massive_jax.report.results import MassiveAttention
from tests.experiments.conftest import HEADS, LAYERS

TEXT = "".join(f"line {i:02d} of the small book. It is short.\n" for i in range(10))
WINDOWS = ("--windows=5", "--context=16", "--bos", "--random_sets=3", "--massive_ratio=500")

NO_THRESHOLDS = ("--massive_magnitude=0", "--massive_ratio=0")


def test_a_planted_massive_token(run, tiny, text_file):
    """BOS is massive from the embedding on."""
    got = run("attention", f"--text={text_file}", *WINDOWS)
    assert (got["text"], got["bos"], got["windows"], got["context"]) == (str(text_file), True, 5, 16)
    assert got["massive"] == [{"position": 0, "token": None, "count": 5}]
    assert (got["with_massive"], got["birth"], got["draws"]) == (5, 1, 3)
    assert got["thresholds"] == {"magnitude": 100.0, "ratio": 500.0}
    assert len(got["layers"]) == LAYERS
    data = cut_windows(tiny, TEXT, windows=5, context=16, bos=True)
    numbers = measure_attention(tiny, data, thresholds=Thresholds(100, 500), draws=3).numbers
    uniform = np.mean(1 / np.arange(1, 18))
    for i, layer in enumerate(got["layers"]):
        assert layer["baseline"] == pytest.approx(uniform)
        assert "slots" not in layer
        assert layer["concentration"] == pytest.approx(numbers.concentration[i].mean(), rel=1e-5)
        heads = [head["concentration"] for head in layer["heads"]]
        assert len(heads) == HEADS
        np.testing.assert_allclose(heads, numbers.concentration[i], rtol=1e-5)
        assert layer["random_spread"]["low"] < layer["random_spread"]["high"]
        assert set(layer["vectors"]) == {"attn_norm", "query", "key", "value"}
        # The same token at the same place, with nothing before it.
        assert layer["vectors"]["value"]["massive"]["cosine"] == pytest.approx(1, abs=1e-5)
        assert layer["across_windows"] < 1
    later = got["layers"][1:]
    assert got["after"]["first"] == 2
    assert got["after"]["concentration"] == pytest.approx(np.mean([layer["concentration"] for layer in later]))
    assert got["before"]["last"] == 1
    assert 0 < got["error"] < 1e-5
    np.testing.assert_allclose(np.load(run.workdir / "attention.npz")["bias"], numbers.bias, rtol=1e-4, atol=1e-6)
    assert (run.workdir / "attention.png").stat().st_size > 10_000
    assert got["finding"] in run.out
    result = as_record(MassiveAttention, got)
    assert as_record(MassiveAttention, as_json(result)) == result
    with style.context():
        attention, logit, spread, cosine = figure.draw(result).axes
    assert len(attention.lines) == HEADS + 3  # the heads, the mean, the uniform one, and where the birth is
    np.testing.assert_allclose(attention.lines[HEADS].get_ydata(), [layer["concentration"] for layer in got["layers"]])
    np.testing.assert_allclose(spread.lines[0].get_ydata(), [layer["spread"] for layer in got["layers"]])
    assert logit.get_ylim()[0] < 0
    assert cosine.get_ylim()[1] > 1


def test_nothing_massive_is_said_in_one_sentence(run, text_file):
    run.workdir.mkdir()
    for name in ("attention.npz", "attention.png"):  # of an earlier run
        (run.workdir / name).touch()
    got = run("attention", f"--text={text_file}", "--windows=5", "--context=16")
    assert (got["with_massive"], got["birth"], got["layers"], got["error"]) == (0, None, [], None)
    sentence = "no massive activations: no token of 5 windows is above 100.0 and 1,000 times the median"
    assert got["finding"] == sentence
    assert sentence in run.out
    assert [path.name for path in run.workdir.iterdir()] == ["attention.json"]
    everywhere = run("attention", f"--text={text_file}", "--windows=5", "--context=16", *NO_THRESHOLDS)
    assert everywhere["everywhere"] == 80
    assert everywhere["finding"].startswith("no massive tokens: 80 are above 0 and 0 times the median, and none")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_massive_attention(got, run.workdir / "a.png")


def test_the_finding_names_one_layer_as_one():
    stage = SimpleNamespace(concentration=0.5, baseline=0.25, first=2, last=2, random_spread=np.nan)
    found = SimpleNamespace(everywhere=0, windows=1)
    words = attention._finding(found, {"before": stage, "after": stage}, Thresholds(), "windows")
    assert words == "50 % of attention lands on massive tokens in layer 2, 50 % before (25 % were it uniform)"
