"""Layer tables and interventions on the tiny model, against whole tensors."""

import math

import numpy as np
import pytest

from massive_jax.data import Windows, cut_windows
from massive_jax.evaluate import (
    Operation,
    Place,
    hidden_state,
    intervene,
    measure_layers,
    parse_places,
    perplexity,
    place_means,
)
from massive_jax.evaluate import batches as batches_module
from massive_jax.probe import Capture, Edit
from tests.fixtures.tiny import TINY

TEXT = "ab. cdefgh\nijklmno. pq" * 4  # its delimiters are at other positions in every window


@pytest.fixture(scope="module")
def windows(tiny_model):
    return cut_windows(tiny_model, TEXT, context=13, windows=5)


@pytest.fixture(scope="module")
def stream(tiny_model, windows):
    """block_out, whole: [L, W, T, D]."""
    return np.asarray(tiny_model(windows.tokens, capture=Capture("block_out")).intermediates["block_out"])


def test_measure_layers(tiny_model, windows, stream, monkeypatch):
    monkeypatch.setattr(batches_module, "TOKENS_A_BATCH", 26)  # two windows, two, and one
    table = measure_layers(tiny_model, windows.tokens)
    assert [summary.layer for summary in table.layers] == [1, 2, 3, 4]
    assert table.final_norm.layer is None
    magnitude = np.abs(stream).reshape(4, 5, -1)
    ranked = -np.sort(-magnitude, axis=-1)[..., :16].mean(axis=1)  # the k-th largest of each window, wherever it is
    np.testing.assert_allclose([summary.magnitudes for summary in table.layers], ranked, rtol=1e-4)
    largest = ranked[:, 0]
    np.testing.assert_allclose([summary.largest for summary in table.layers], largest, rtol=1e-4)
    medians = np.sort(magnitude, axis=-1)[..., (magnitude.shape[-1] - 1) // 2].mean(axis=-1)
    np.testing.assert_allclose([summary.median for summary in table.layers], medians, rtol=1e-4)
    assert table.full_size_layer == int(np.argmax(largest >= largest.max() / 2)) + 1
    for summary, layer in zip(table.layers, stream, strict=True):
        for location in summary.locations:
            window, position = location.example
            assert abs(layer[window, position, location.dim]) > 0
            if isinstance(location.position, int):
                assert position == location.position
            if location.share == 1.0 and isinstance(location.position, int):
                np.testing.assert_allclose(location.value, layer[:, position, location.dim].mean(), rtol=1e-3)


def test_hidden_state(tiny_model, windows, stream):
    np.testing.assert_allclose(hidden_state(tiny_model, windows.tokens, 3), stream[2], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="layer 5 is out of range"):
        hidden_state(tiny_model, windows.tokens, 5)


def test_place_means(tiny_model, windows, stream):
    places = [Place(0, 3), Place(4, 31), Place("first_delimiter", 7)]
    delimiters = tiny_model.first_delimiter(windows.tokens)
    assert len(set(delimiters.tolist())) > 2
    rows = np.flatnonzero(delimiters >= 0)
    expected = [stream[1][:, 0, 3].mean(), stream[1][:, 4, 31].mean(), stream[1][rows, delimiters[rows], 7].mean()]
    np.testing.assert_allclose(place_means(tiny_model, windows, 2, places), expected, rtol=1e-4)


def test_place_means_leave_out_windows_without_a_delimiter(tiny_model):
    tokens = np.array([list(b"a.cd"), list(b"abcd"), list(b"abc.")], np.int32)
    windows = Windows(tokens, 4, False)
    hidden = hidden_state(tiny_model, tokens, 2)
    (found,) = place_means(tiny_model, windows, 2, [Place("first_delimiter", 7)])
    assert found == pytest.approx((hidden[0, 1, 7] + hidden[2, 3, 7]) / 2, rel=1e-4)
    with pytest.raises(ValueError, match="delimiter, and no window has one"):
        place_means(tiny_model, Windows(tokens[1:2], 4, False), 2, [Place("first_delimiter", 7)])


def test_wrong_places_are_all_named(tiny_model, windows):
    places = [Place(99, 0), Place(0, 0), Place(0, 32)]
    with pytest.raises(ValueError, match=r"99:0, 0:32 out of range.* positions 0 to 12.* dims 0 to 31"):
        place_means(tiny_model, windows, 2, places)


def test_intervene(tiny_model, windows):
    places = [Place(0, 3), Place("first_delimiter", 7)]
    operations = [Operation.parse(text) for text in ("zero", "mean", "set=0.5", "scale=2", "add=4", "shuffle")]
    means = [1.5, -2.0]
    found = intervene(tiny_model, windows, 2, places, operations, means)
    assert list(found) == ["zero", "mean", "set=0.5", "scale=2", "add=4", "shuffle"]

    def expected(op, *values):
        edits = [
            Edit("block_out", layer=2, position=site.position, dim=site.dim, op=op, value=value)
            for site, value in zip(places, values, strict=True)
        ]
        return pytest.approx(perplexity(tiny_model, windows, edits), rel=1e-6)

    assert found["zero"] == expected("set", 0.0, 0.0)
    assert found["mean"] == expected("set", *means)
    assert found["set=0.5"] == expected("set", 0.5, 0.5)
    assert found["scale=2"] == expected("scale", 2.0, 2.0)
    assert found["add=4"] == expected("add", 4.0, 4.0)
    assert found["shuffle"] == expected("shuffle", 0.0, 0.0)
    assert len({round(value, 6) for value in found.values()}) == len(found)
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("text", ["zero", "mean", "shuffle", "set=0.5", "scale=-2", "add=1e+06", "noise=3"])
def test_operations_read_as_they_are_written(text):
    assert str(Operation.parse(text)) == text


@pytest.mark.parametrize("text", ["", "zeros", "set", "zero=1", "shuffle=2", "=3", "set="])
def test_operations_that_are_refused(text):
    with pytest.raises(ValueError, match=r"unknown operation .*; known: zero, mean, shuffle, set=X"):
        Operation.parse(text)


def test_an_operation_with_something_that_is_no_number():
    with pytest.raises(ValueError, match="operation 'scale=two': 'two' is not a"):
        Operation.parse("scale=two")


def test_places_are_read():
    assert parse_places("0:507, 0:247,delim:14") == [
        Place(0, 507),
        Place(0, 247),
        Place("first_delimiter", 14),
    ]
    assert [str(site) for site in parse_places("3:4,first_delimiter:5")] == ["3:4", "first_delimiter:5"]


@pytest.mark.parametrize("text", ["", "0", "0:", ":5", "a:5", "0:-1", "-1:5", "0:5;1:5", "0:5,", "0.0:5"])
def test_places_that_are_refused(text):
    with pytest.raises(ValueError, match="cannot read the place"):
        parse_places(text)


def test_a_place_given_twice():
    with pytest.raises(ValueError, match="name a place twice"):
        parse_places("0:5,0:5")


def test_the_fixture_is_the_size_these_tests_count_on():
    assert (TINY.num_layers, TINY.hidden_size) == (4, 32)
