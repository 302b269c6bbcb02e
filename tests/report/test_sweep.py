"""The map of a sweep: what it says, that all of it can be read, and what is left blank."""

import math

import numpy as np
import pytest

from massive_jax.report import plot_sweep, style, sweep
from tests.fixtures.figures import assert_readable

TOKENS = ("The", " capital", " of", "<b>$x_1$</b>", " \n")


def result(layers=6, tokens=TOKENS, **changes):
    """The metric rises by 7.5 at layer 3, position 1, where gradients say half as much; by hundredths elsewhere."""
    values = np.arange(layers * len(tokens), dtype=float).reshape(layers, -1) / 1000
    values[min(2, layers - 1), min(1, len(tokens) - 1)] = 7.5
    return {
        **{"model": "/some/where/tiny", "dtype": "float32", "bos": False, "tokens": tokens, "windows": 1},
        **{"context": len(tokens), "site": "block_out", "dim": None, "op": "set", "value": 0.0, "metric": "loss"},
        **{"unedited": 0.5, "values": (values + 0.5).tolist(), "approximate": (values / 2).tolist(), "spearman": 0.25},
        **changes,
    }


def drawn(given):
    """The figure, under its settings, and its words."""
    with style.context():
        made = sweep.draw(given)
        return made, assert_readable(made)


def test_it_says_what_was_found(tmp_path):
    made, words = drawn(result())
    said = " ".join(words)
    assert "tiny: the loss changes most (0.500 → 8.00) at layer 3, token 1 “␣capital”" in said
    assert "loss under one edit each: block_out of a token set to 0" in said
    assert "rank correlation of gradients with the truth (Spearman): 0.250" in said
    assert {"Change", "To first order, by gradients", "Layer", "<b>$x_1$</b>", "\u2423\\n"} <= set(words)
    change, first_order = (ax.images[0] for ax in made.axes[:2])
    assert change.get_array()[2, 1] == 7.5
    assert first_order.get_array()[2, 1] == 3.75
    for image in (change, first_order):  # on one scale, so that the two can be compared
        assert (image.norm.vmin, image.norm.vmax) == (-7.5, 7.5)
    plot_sweep(result(), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("changes", [{"layers": 1, "tokens": ("a",)}, {"layers": 80, "tokens": ("token",) * 64}])
def test_sizes(changes):
    drawn(result(**changes))


def test_another_prompts_tensors_by_a_metric_without_gradient():
    values = [[math.inf, math.nan, 2.0], [0.5, 1.0, -math.inf]]
    patched = {"value": None, "patched_from": "A long prompt " * 9, "targets": (" Paris", "\ud83d"), "dim": 507}
    given = result(2, ("a", "b", "c"), values=values, approximate=None, spearman=None, metric="logit_difference")
    made, words = drawn({**given, **patched})
    assert len(made.axes) == 2  # a map and its scale
    np.testing.assert_array_equal(
        np.ma.getmaskarray(made.axes[0].images[0].get_array()), [[True, True, False], [False, False, True]]
    )
    said = " ".join(words)
    assert "the logit difference changes most (0.500 → 2.00) at layer 1, token 2 “c”" in said
    assert "logit difference of “␣Paris” and “\\ud83d” under one edit each: block_out of a token, dim 507, set" in said
    flat, words = drawn(result(2, ("a",), values=[[0.5], [0.5]], approximate=None))
    assert flat.axes[0].images[0].norm.vmax == 1.0
    assert "tiny: no edit changes the loss, 0.500" in " ".join(words)
    words = drawn(result(1, ("a",), values=[[math.nan]], approximate=None))[1]
    assert "tiny: the loss is no number under any edit" in " ".join(words)


def test_wrong_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"change has shape \(2, 3\); expected layers × 1 tokens"):
        sweep.draw(result(2, ("a",), values=[[1.0] * 3] * 2))
    with pytest.raises(ValueError, match=r"by gradients has shape \(1, 1\)"):
        sweep.draw(result(2, ("a",), approximate=[[1.0]]))
    with pytest.raises(ValueError, match=r"name it \.png"):
        plot_sweep(result(2, ("a",)), tmp_path / "sweep.txt")
