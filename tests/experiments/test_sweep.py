"""`experiments.sweep` on the tiny model."""

import numpy as np
import pytest

import massive_jax as mj
from tests.experiments.conftest import LAYERS

PROMPT = "--prompt=A cat."


def test_a_map_is_measured_drawn_and_gone_on_from(run, tiny):
    metric = ("--site=mlp_out", "--metric=logit_difference", "--token=x", "--other=y")
    got = run("sweep", PROMPT, "--op=scale", "--value=0.9", *metric)
    tokens, ids = tiny.tokenize("A cat."), tiny.encode("xy")
    assert got["tokens"] == ["A", " ", "c", "a", "t", "."]
    assert (got["targets"], got["dim"], got["value"]) == (["x", "y"], None, 0.9)
    assert np.shape(got["values"]) == np.shape(got["approximate"]) == (LAYERS, 6)
    logits = tiny(tokens, edits=mj.Edit("mlp_out", layer=2, position=3, op="scale", value=0.9)).logits[0, -1]
    assert got["values"][1][3] == pytest.approx(float(logits[ids[0]] - logits[ids[1]]), abs=1e-4)
    assert got["spearman"] > 0.9  # a small change
    assert "rank correlation of gradients with the truth (Spearman): " in run.out
    assert (run.workdir / "sweep.png").stat().st_size > 0
    with pytest.raises(ValueError, match="sweep.npz' is of another sweep: of other edits"):
        run("sweep", PROMPT, *metric)


def test_another_prompts_tensors_are_put_in(run, tiny):
    got = run("sweep", PROMPT, "--patch_from=A dog.", "--metric=kl")
    assert got["unedited"] == pytest.approx(0, abs=1e-6)
    assert "spearman" not in got or got["spearman"] is None
    clean = np.asarray(tiny(tiny.tokenize("A dog.")).logits[0, -1], np.float64)
    logits = np.asarray(tiny(tiny.tokenize("A cat.")).logits[0, -1], np.float64)
    log, other = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (logits, clean))
    assert got["values"][-1][-1] == pytest.approx((np.exp(log) * (log - other)).sum(), abs=1e-4)
    assert got["values"][0][0] == pytest.approx(0, abs=1e-5)  # the first tokens are alike


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric=logit"], "--metric=logit needs --token: the text of a token"),
        (["--metric=logit", "--token=xy"], "--token='xy' has 2 tokens \\('x', 'y'\\); give the text of one"),
        (["--token=x"], "--token has no effect with --metric=loss"),
        (["--patch_from=A dog", "--value=3"], "--value has no effect beside --patch_from"),
        (["--patch_from=A dog"], "--patch_from has 5 tokens and --prompt 6"),
        (["--site=embed"], "site embed is outside the blocks"),
        (["--site=nowhere"], "unknown site 'nowhere'"),
        (["--dim=32"], "dim 32 is out of range"),
        (["--value=nan"], "value holds NaN"),
    ],
)
def test_refused(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        run("sweep", PROMPT, *arguments)
