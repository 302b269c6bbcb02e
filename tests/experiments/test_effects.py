"""`experiments.intervene` looked at closely, and `experiments.super_weights`, on the tiny model."""

import pytest

from massive_jax.data import cut_windows
from massive_jax.evaluate import perplexity
from massive_jax.probe import Edit
from tests.experiments.conftest import LAYERS, PLANTED

SMALL = ("--windows=3", "--context=24", "--bos")


def test_everything_at_once(run, tiny, text_file):
    got = run(
        *("intervene", f"--text={text_file}", *SMALL, "--layer=2", f"--places=0:{PLANTED},last:1", "--ops=zero"),
        *("--draws=2", "--sweep"),
    )
    windows = cut_windows(tiny, text_file.read_text(), context=24, windows=3, bos=True)
    first = Edit("block_out", layer=2, position=0, dim=PLANTED, value=0.0)
    last = Edit("block_out", layer=2, position="last", dim=1, value=0.0)
    assert got["perplexity"]["zero"] == pytest.approx(perplexity(tiny, windows, [first, last]), rel=1e-6)
    assert [(one["position"], one["dim"]) for one in got["alone"]] == [(0, PLANTED), ("last", 1)]
    alone = got["alone"][0]["effects"]["zero"]
    assert alone["value"] == pytest.approx(perplexity(tiny, windows, first), rel=1e-6)
    assert alone["low"] <= alone["value"] <= alone["high"]
    assert alone["difference"]["value"] == pytest.approx(alone["value"] - got["perplexity"]["original"])
    assert got["alone"][0]["share"] == pytest.approx(1, abs=0.01)  # nothing is predicted by the last token
    assert [at["layer"] for at in got["sweep"]] == list(range(1, LAYERS + 1))
    assert got["sweep"][1]["effects"]["zero"]["value"] == pytest.approx(got["perplexity"]["zero"], rel=1e-6)
    assert [control["kind"] for control in got["control_draws"]] == ["median_sized", "same_position", "same_dim"]
    assert all(len(control["effects"]["zero"]["values"]) == 2 for control in got["control_draws"])
    assert got["control_draws"][0]["effects"]["zero"]["values"][0] == got["perplexity"]["random_zero"]
    assert f"0:{PLANTED} alone has 100% of the effect of all 2." in run.out


@pytest.mark.slow
def test_every_layer_and_one_window(run, tiny, text_file):
    got = run(
        *("intervene", f"--text={text_file}", "--windows=1", "--context=24", "--bos", "--layer=all"),
        *("--ops=zero", "--nocontrols"),
    )
    assert (got["layer"], got["found_at"]) == ("all", 1)
    windows = cut_windows(tiny, text_file.read_text(), context=24, windows=1, bos=True)
    everywhere = Edit("block_out", layer="all", position=0, dim=PLANTED, value=0.0)
    assert got["perplexity"]["zero"] == pytest.approx(perplexity(tiny, windows, everywhere), rel=1e-6)
    zero = got["effects"]["zero"]
    assert (zero["low"], zero["high"], zero["difference"]["low"], got["bootstrap_draws"]) == (None, None, None, None)
    assert "No intervals over windows" in run.out


@pytest.mark.parametrize("name", ["feature_map", "attention_map", "reproduce"])
def test_who_takes_one_layer_says_so(run, name):
    with pytest.raises(ValueError, match="--layer=all: here it is one layer"):
        run(name, "--layer=all")


def test_draws_without_controls(run):
    with pytest.raises(ValueError, match="--draws has no effect with --nocontrols"):
        run("intervene", "--draws=3", "--nocontrols")


def test_super_weights(run, text_file):
    one = ("--windows=1", "--context=24", "--bos", "--massive_magnitude=0", "--massive_ratio=0", "--tested=1")
    got = run("super_weights", f"--text={text_file}", *one)
    (weight,) = got["tested"]
    assert weight["size"] == 48 * 32
    assert weight["without_others"]["weights"] == 1000
    assert weight["without"]["perplexity"]["value"] > 0
    assert weight["without"]["nats"]["low"] is None  # of one window
    assert got["predicted_tokens"] == 24
    assert len(got["from_weights"]["gains"]) == LAYERS
    assert f"layer {weight['layer']}, {weight['unit']} → {weight['dim']}" in run.out
    assert (run.workdir / "super_weights.png").stat().st_size > 0
    got = run("super_weights", f"--text={text_file}", "--windows=1", "--context=24", "--bos")
    assert got["tested"] == []
    assert "has no super weight: nothing that one of its MLPs adds is massive" in run.out


@pytest.mark.slow
class TestDefaultModel:
    def test_dim_507_alone_does_it(self, run):
        got = run(
            "intervene", "--model=smollm2_135m", "--layer=12", "--places=0:507,0:247", "--context=256", "--draws=2"
        )
        alone = {one["dim"]: one for one in got["alone"]}
        assert alone[507]["share"] > 0.8
        assert alone[247]["share"] < 0.05
        assert got["effects"]["zero"]["nats"]["low"] > 10
        for control in got["control_draws"]:
            assert control["effects"]["zero"]["nats"]["high"] < 0.1
