"""An intervention taken apart, against perplexities of edits written by hand; all of it by one compiled program."""

import dataclasses
import sys

import numpy as np
import pytest

from massive_jax.data import Windows, text_windows
from massive_jax.evaluate import (
    CONTROLS,
    Closer,
    Images,
    Operation,
    Place,
    layer_means,
    measure_effects,
    parse_places,
    perplexity,
    window_nll,
)
from massive_jax.probe import Capture, Edit
from massive_jax.report import intervention_of, intervention_rows
from tests.fixtures.tiny import BOS, programs

nll_module = sys.modules["massive_jax.evaluate.perplexity"]
PLACES = [Place(0, 3), Place("last", 7)]
ZERO, MEAN = Operation("zero"), Operation("mean")


@pytest.fixture(scope="module")
def windows():
    return Windows(np.random.default_rng(3).integers(0, BOS, size=(5, 12), dtype=np.int32), 12, False)


@pytest.fixture(scope="module")
def stream(tiny_model, windows):
    """block_out, whole: [L, W, T, D]."""
    return np.asarray(tiny_model(windows.tokens, capture=Capture("block_out")).intermediates["block_out"], np.float64)


@pytest.fixture(scope="module")
def effects(tiny_model, windows):
    """Two operations at two places of layer 2, and what else is looked at."""
    return measure_effects(tiny_model, windows, 2, PLACES, [ZERO, MEAN], closer=Closer(draws=3, sweep=True), seed=4)


def by_hand(model, windows, places, values, layer=2):
    edits = [
        Edit("block_out", layer=layer, position=place.position, dim=place.dim, value=value)
        for place, value in zip(places, values, strict=True)
    ]
    return pytest.approx(perplexity(model, windows, edits), rel=1e-6)


def test_windows_score_what_their_sum_is(tiny_model, windows):
    found = window_nll(tiny_model, windows)
    assert found.counts.tolist() == [11] * 5
    assert found.value == perplexity(tiny_model, windows)
    alone = window_nll(tiny_model, Windows(windows.tokens[2:3], 12, False))
    assert alone.sums[0] == pytest.approx(found.sums[2], rel=1e-5)
    interval = found.estimate()
    assert interval.low < interval.value < interval.high
    assert (alone.estimate().low, alone.estimate().high) == (None, None)  # of one window there is none
    again = found.difference(found)
    assert (again.value, again.low, again.high) == (0.0, 0.0, 0.0)  # paired by window


def test_scores_of_other_windows_have_no_difference(tiny_model, windows):
    few = window_nll(tiny_model, Windows(windows.tokens[:4], 12, False))
    with pytest.raises(ValueError, match="measure both on the same"):
        few.difference(window_nll(tiny_model, windows))


def test_padded_windows_and_skip(tiny_model):
    windows = text_windows(tiny_model, ["abcdefg", "hijkl"])
    found = window_nll(tiny_model, windows, skip=1)
    assert found.counts.tolist() == [5, 3]
    assert found.value == perplexity(tiny_model, windows, skip=1)


def test_together_alone_and_by_layer(tiny_model, windows, stream, effects):
    means = [stream[1][:, 0, 3].mean(), stream[1][:, -1, 7].mean()]
    np.testing.assert_allclose(effects.means, means, rtol=1e-5)
    assert effects.original.value == pytest.approx(perplexity(tiny_model, windows), rel=1e-6)
    assert effects.together["zero"].value == by_hand(tiny_model, windows, PLACES, [0, 0])
    assert effects.together["mean"].value == by_hand(tiny_model, windows, PLACES, means)
    assert effects.strongest in ("zero", "mean")
    assert list(effects.alone) == PLACES
    values = {"zero": [0, 0], "mean": means}[effects.strongest]
    for place, value in zip(PLACES, values, strict=True):
        found = effects.alone[place][effects.strongest].value
        assert found == by_hand(tiny_model, windows, [place], [value])
    assert list(effects.sweep) == [1, 2, 3, 4]
    for layer, found in effects.sweep.items():
        there = [stream[layer - 1][:, 0, 3].mean(), stream[layer - 1][:, -1, 7].mean()]
        assert found["zero"].value == by_hand(tiny_model, windows, PLACES, [0, 0], layer)
        assert found["mean"].value == by_hand(tiny_model, windows, PLACES, there, layer)


def test_controls_are_elsewhere(tiny_model, windows, effects):
    kinds = [control.kind for control in effects.controls]
    assert kinds == [kind for kind in CONTROLS for _ in range(3)]
    assert len({control.places for control in effects.controls}) == 9  # each drawn anew
    for control in effects.controls:
        assert not set(control.places) & set(PLACES)
        if control.kind == "same_position":
            assert [place.position for place in control.places] == [0, "last"]
            assert not {place.dim for place in control.places} & {3, 7}
        if control.kind == "same_dim":
            assert [place.dim for place in control.places] == [3, 7]
            assert 0 not in [place.position for place in control.places]
    first = effects.controls[0]
    assert set(first.scores) == {"zero", "mean"}
    assert first.scores["zero"].value == by_hand(tiny_model, windows, first.places, [0, 0])


def test_nothing_is_compiled_again(tiny_model, windows, effects):
    before = programs(nll_module._nll)
    closer = Closer(draws=2, sweep=True)
    measure_effects(tiny_model, windows, 3, [Place(1, 2), Place(5, 9), Place(5, 1)], [ZERO], closer=closer, seed=1)
    assert programs(nll_module._nll) == before


def test_every_layer_at_once(tiny_model, windows, stream):
    places = [Place(0, 3)]
    found = measure_effects(tiny_model, windows, 2, places, [ZERO, MEAN], everywhere=True, closer=Closer(controls=()))
    everywhere = Edit("block_out", layer="all", position=0, dim=3, value=0.0)
    assert found.together["zero"].value == pytest.approx(perplexity(tiny_model, windows, everywhere), rel=1e-6)
    each = [Edit("block_out", layer=l + 1, position=0, dim=3, value=stream[l][:, 0, 3].mean()) for l in range(4)]  # noqa: E741
    assert found.together["mean"].value == pytest.approx(perplexity(tiny_model, windows, each), rel=1e-6)
    result = intervention_of(found, {"model": "tiny", "dtype": "float32", "source": None})
    assert (result.layer, result.found_at) == ("all", 2)


def test_means_by_a_rule_of_padded_windows(tiny_model):
    windows = text_windows(tiny_model, ["abcdefg", "hijkl"])
    hidden = np.asarray(
        tiny_model(windows.tokens, mask=windows.mask, capture=Capture("block_out")).intermediates["block_out"]
    )[1]
    found = layer_means(tiny_model, windows, 2, [Place("last", 7)])
    assert found.of([Place("last", 7)]) == pytest.approx([hidden[:, -1, 7].mean()], rel=1e-5)  # padded in front
    first = [hidden[w, np.flatnonzero(windows.mask[w])[0], 3] for w in range(2)]
    assert found.of([Place(0, 3)]) == pytest.approx([np.mean(first)], rel=1e-5)


def test_results_have_intervals(effects):
    result = intervention_of(effects, {"model": "tiny", "dtype": "float32", "source": None}, seed=4)
    assert result.bootstrap_draws == 1000
    for name, value in result.measured.items():
        effect = result.effects[name]
        assert effect.value == value
        assert effect.low <= value <= effect.high
        assert effect.difference.value == pytest.approx(value - result.measured["original"])
    assert [draw.kind for draw in result.control_draws] == list(CONTROLS)
    drawn = result.control_draws[1].effects[effects.strongest]
    assert len(drawn.values) == 3
    assert min(drawn.values) <= drawn.low <= drawn.mean <= drawn.high <= max(drawn.values)
    keys = [row.key for row in intervention_rows(result)]
    assert {f"{effects.strongest} at 0:3 only", f"{effects.strongest} at same dim × 3"} <= set(keys)


def test_images(tiny_vision, tiny_images):
    data = Images(tiny_images, ("a", "b"))
    found = measure_effects(tiny_vision, data, 1, [Place(1, 5)], [Operation("set", 1e4)], closer=Closer(draws=2))
    assert found.metric == "top1_agreement"
    assert found.original.value == 1.0
    assert found.original.sums.tolist() == [1.0, 1.0]
    assert len(found.controls) == 6


def test_wrong_arguments(tiny_model, windows):
    for closer, message in (
        ({"draws": 0}, "draws is 0"),
        ({"controls": ("other",)}, "unknown controls other; known: median_sized, same_position, same_dim"),
    ):
        with pytest.raises(ValueError, match=message):
            Closer(**closer)
    short = dataclasses.replace(windows, tokens=windows.tokens[:, :2])
    with pytest.raises(ValueError, match=r"other positions: there are only 0 others to draw 2 from"):
        measure_effects(
            tiny_model, short, 2, [Place(0, 3), Place(1, 3)], [ZERO], closer=Closer(controls=("same_dim",), draws=1)
        )
    with pytest.raises(ValueError, match="layer 9 is out of range"):
        measure_effects(tiny_model, windows, 9, PLACES, [ZERO])
    assert parse_places("last:3,first:4") == [Place("last", 3), Place("first", 4)]
