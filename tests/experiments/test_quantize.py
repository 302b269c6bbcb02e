"""`experiments.quantize` on the tiny model; slow: it compiles two models with edits of every site."""

import pytest


@pytest.mark.slow
def test_default(run, text_file):
    """BOS is in front without being asked for; the methods are those of the question; tables and a figure are there."""
    windows = (f"--text={text_file}", "--windows=2", "--context=32")
    got = run("quantize", *windows, "--settings=W16A16,W8A8")
    assert (got["bos"], got["metric"], got["predicted_tokens"], got["left_out"]) == (True, "perplexity", 62, {})
    costs = {(o["method"], o["setting"]): o["cost"]["value"] for o in got["outcomes"]}
    assert [method for method, setting in costs if setting == "W8A8"] == ["plain", "absorb", "rotate", "rotate+absorb"]
    assert all(abs(cost) < 1e-3 for (_, setting), cost in costs.items() if setting == "W16A16")
    assert abs(costs["absorb", "W8A8"]) < abs(costs["plain", "W8A8"])
    assert (run.workdir / "quantize.png").stat().st_size > 10_000
    assert (run.workdir / "quantize.md").read_text().count("| setting | scales | plain |") == 2
    assert "absorbing BOS takes the cost" in run.out
    got = run("quantize", *windows, "--settings=KV4", "--nobos")
    assert [o["method"] for o in got["outcomes"]] == ["plain", "rotate"]
    assert "without absorb: BOS is what becomes the attention bias" in run.out
