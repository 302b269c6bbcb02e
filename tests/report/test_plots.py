"""Figures: what they say, and that none of it is cut or overlaps. A missing glyph is a warning: an error."""

import ast
import copy
import math
import os
import pathlib

import numpy as np
import pytest
from matplotlib.patches import Rectangle

import massive_jax.report
from massive_jax.report import (
    Panel,
    attention,
    feature_map,
    intervention,
    label,
    layerwise,
    overlay,
    plot_attention,
    plot_feature_map,
    plot_intervention,
    plot_layerwise,
    plot_overlay,
    plot_registers,
    registers,
    style,
)
from tests.fixtures.figures import assert_readable, texts_of

TOKENS = ["Summer", " is", " warm", ".", " Winter", " is", " cold", ".", "\n"]
STRANGE = [
    "<b>$x_1^2$</b>",
    "中文字",
    "\x00\x1b[0m",
    "a" * 60,
    "",
    "\t  ",
    "🙂",
    "\ud83d",
    "é\u0301",
    "▁the",
    "\\",
]
HEAD = {"model": "SmolLM2-135M-Instruct", "dtype": "float32", "bos": False}


# ---- made-up results, with the sizes of real ones


def _layerwise(layers=30, token="Summer", found=True):
    rows, massive = [], []
    for layer in range(1, layers + 1):
        part = layer / layers
        top = (12.0, 8.0, 6.5) if part < 0.05 else (206.1, 79.1, 59.2) if part < 0.11 else (23147.1, 1692.8, 850.0)
        top = (331.6, 190.0, 171.0) if part > 0.97 else top
        top = top if found else (20 * part + 5, 15 * part + 4, 12 * part + 3)
        median = 0.4 + 3.1 * part
        entries = [
            {"value": v, "position": 0, "dim": d, "token": token} for v, d in zip(top, (507, -1, 14), strict=True)
        ]
        rows.append({"layer": layer, "top": entries, "median": median})
        massive += [
            {**e, "layer": layer, "ratio": e["value"] / median, "meets_magnitude": True}
            | {"meets_ratio": e["value"] > 1000 * median}
            for e in entries
            if e["value"] > 100
        ]
    thresholds = {"magnitude": 100.0, "ratio": 1000.0}
    more = {"tokens": TOKENS, "windows": 1, "context": 9, "layers": rows}
    return {**HEAD, **more, "massive": massive, "thresholds": thresholds}


def _feature_map(T=9, D=576, spikes=((0, 507, 23147.1), (0, 247, -1692.8), (0, 14, 850.0)), tokens=None):
    tokens = tokens or [TOKENS[t % 9] for t in range(T)]
    magnitudes = np.abs(np.random.default_rng(0).standard_normal((T, D))).astype(np.float32)
    for position, dim, value in spikes:
        magnitudes[position, dim] = abs(value)
    found = [{"position": t, "dim": d, "token": tokens[t], "value": v} for t, d, v in spikes]
    more = {
        "layer": 12,
        "tokens": tokens,
        "median": 1.721,
        "massive": found,
        "dims": [d for _, d, _ in spikes],
    }
    return {**HEAD, **more}, magnitudes


def _attention(T=9, layers=30, massive=(0,), emergence=4, tokens=None):
    rng = np.random.default_rng(0)
    logits = rng.normal(-4, 1, (T, T))
    logits[:, list(massive)] += 5
    logits[np.triu_indices(T, 1)] = np.nan
    probs = np.nan_to_num(np.exp(logits))
    probs /= probs.sum(axis=1, keepdims=True)
    result = {
        **HEAD,
        "layer": layers // 2,
        "head": "mean",
        "tokens": tokens or [TOKENS[t % 9] for t in range(T)],
        "massive_positions": list(massive),
        "shares": [0.25 if layer < (emergence or 99) else 0.9 for layer in range(1, layers + 1)],
        "emergence_layer": emergence,
    }
    return result, logits, probs


def _intervention(**perplexity):
    sites = [
        {"position": 0, "dim": d, "value_mean": v} for d, v in ((507, 23147.1), (247, -1692.8), (14, float("nan")))
    ]
    perplexity = perplexity or {"original": 23.76, "zero": 1962311.0, "mean": 23.80, "random_zero": 23.77}
    return {**HEAD, "layer": 12, "context": 512, "windows": 4, "sites": sites, "perplexity": perplexity}


def _registers(layers=40, found=True, **changes):
    rows, massive = [], []
    for layer in range(layers):
        values = [0.3 + 0.1 * layer, 50.0 + layer, -0.2 - 800 * (found and layer > 0), 0.31 + 0.1 * layer]
        largest = [{"register": r, "dim": 10 * r, "value": v} for r, v in enumerate(values, 1)]
        rows.append({"layer": layer, "median": 0.01 + 0.02 * layer, "largest": largest})
        massive += [{"layer": layer, **largest[2]}] if found and layer > 0 else []
    return {"model": "tiny", "means": "collected", "count": 3, "layers": rows, "massive": massive, **changes}


def _overlay(H=70, W=56, grid=(5, 4), model="tiny", maps=2):
    rng = np.random.default_rng(0)
    panels = [Panel("The image; outlined: 1 outlier", marked=[(1, 2)])]
    panels += [Panel(f"Norm {i}: up to {i}", i * rng.random(grid), "norm") for i in range(1, maps + 1)]
    image = rng.integers(0, 256, (H, W, 3)).astype(np.uint8)
    return {"model": model}, "A title that says what was found", "a note " * 12, image, grid, panels


def _broken_layers():
    result = _layerwise(48)
    result["layers"][20]["top"][0]["value"] = None
    result["layers"][21]["top"][0]["value"] = math.inf
    return result


def _no_value():
    result = _layerwise(6)
    for row in result["layers"]:
        row["median"] = None
        for entry in row["top"]:
            entry["value"] = None
    return result


CROWDED = (
    (0, 1415, 900.0),
    (0, 1416, 870.0),
    (0, 1420, 880.0),
    (1, 1415, 700.0),
    (63, 8191, 500.0),
    (63, 0, 400.0),
)
LLAMA = ((0, 1415, -458.0), (0, 2533, 767.0), (7, 1415, -1502.0), (7, 2533, 2546.8))
LONG = {"model": "/a/very/long/path/" + "x" * 90, "bos": True, "windows": 4, "context": 4096}
CASES = {
    "layerwise": (layerwise, (_layerwise(),)),
    "layerwise-1": (layerwise, (_layerwise(1),)),
    "layerwise-12": (layerwise, (_layerwise(12),)),
    "layerwise-80": (layerwise, (_layerwise(80, token="<|begin_of_text|>"),)),
    "layerwise-none": (layerwise, (_layerwise(32, found=False),)),
    "layerwise-long": (layerwise, ({**_layerwise(24, token="x" * 80), **LONG},)),
    "layerwise-cjk": (layerwise, (_layerwise(token="中\n"),)),
    "layerwise-broken": (layerwise, (_broken_layers(),)),
    "layerwise-no-value": (layerwise, (_no_value(),)),
    "feature-map": (feature_map, _feature_map()),
    "feature-map-1": (feature_map, _feature_map(1, 64, ((0, 7, 300.0),))),
    "feature-map-64": (feature_map, _feature_map(64, 4096, LLAMA)),
    "feature-map-crowded": (feature_map, _feature_map(64, 8192, CROWDED)),
    "feature-map-none": (feature_map, _feature_map(16, 2048, ())),
    "feature-map-strange": (feature_map, _feature_map(11, 768, ((3, 447, 3000.0),), STRANGE)),
    "feature-map-zero": (feature_map, (_feature_map(4, 16, ())[0], np.zeros((4, 16)))),
    "attention": (attention, _attention()),
    "attention-1": (attention, _attention(1, 12)),
    "attention-64": (attention, _attention(64, 80, (0, 7))),
    "attention-late": (attention, _attention(33, 32, (0, 7, 8), 31)),
    "attention-last": (attention, _attention(9, 12, (0,), 12)),
    "attention-none": (attention, _attention(16, 32, (), None)),
    "attention-strange": (attention, _attention(11, 24, (3, 4), 1, STRANGE)),
    "intervention": (intervention, (_intervention(),)),
    "intervention-inf": (
        intervention,
        (_intervention(original=5.47, zero=math.inf, mean=None, other_one=math.nan),),
    ),
    "intervention-null": (intervention, (_intervention(original=30.219, zero=30.214, mean=30.214),)),
    "intervention-huge": (
        intervention,
        (_intervention(original=3.2, zero=3.4e17, a_name_without_end_at_all_it_seems=9),),
    ),
    "registers": (registers, (_registers(),)),
    "registers-1": (registers, (_registers(1, found=False),)),
    "registers-12": (registers, (_registers(12, means="/some/where/means.npz", model="x" * 90),)),
    "overlay": (overlay, _overlay()),
    "overlay-wide": (overlay, _overlay(56, 112, (4, 8), "/a/very/long/path/" + "x" * 90, 4)),
    "intervention-one": (intervention, ({**_intervention(original=1.0), "sites": []},)),
}
# As many layers or places as others have, nearly; the smallest and the largest of each figure are quick.
OTHER_SIZES = (
    "layerwise-12",
    "feature-map-64",
    "attention-late",
    "attention-last",
    "intervention-null",
    "registers-12",
)


def _words(module, *data):
    with style.context():
        return [words for words, _ in texts_of(module.draw(*data))]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in OTHER_SIZES else ()) for name in CASES]
)
def test_no_text_is_cut_or_overlaps(name):
    module, data = CASES[name]
    with style.context():
        assert_readable(module.draw(*data))


def test_layerwise_says_what_was_found():
    words = _words(layerwise, _layerwise())
    assert "Massive activations in SmolLM2-135M-Instruct: layers 4–29" in words
    assert "23,147 at layer 4, position 0 “Summer”, dim 507" in words
    for name in ("Top 1", "Top 2", "Top 3", "Median", "1,000 × median", "Threshold 100"):
        assert name in words
    assert {"1", "5", "30"} <= set(words)
    assert "No massive activation in SmolLM2-135M-Instruct" in _words(layerwise, _layerwise(found=False))
    assert "Not finite, so left out: layers 21–22" in _words(layerwise, _broken_layers())


def test_layerwise_fills_the_markers_that_meet_both_criteria():
    with style.context():
        made = layerwise.draw(_layerwise())
    full = {
        marked.get_marker(): sorted(int(x) for x in marked.get_xdata())
        for marked in made.axes[0].lines
        if marked.get_marker() in ("o", "s", "^") and marked.get_markerfacecolor() != "white"
    }
    # Top 2, 1692.8, where the median, 0.4 + 3.1 l / 30, is below 1.6928; top 3 where it is below 0.85.
    assert full == {"o": list(range(4, 30)), "s": list(range(4, 13)), "^": [4]}


def _over_windows(**more):
    """Two of four windows have 30 at a place of their own, the other two 20: no mean of places is in order."""
    places = [(900.0, 1.0), (-20.0, 0.5), (30.0, 0.25)]
    top = [{"value": v, "position": i, "dim": i, "token": None, "share": s} for i, (v, s) in enumerate(places)]
    rows = [{"layer": layer, "top": top, "median": 1.0, **more} for layer in (1, 2)]
    return {**HEAD, "text": "a.txt", "windows": 4, "context": 9, "layers": rows, "massive": []}


@pytest.mark.parametrize(
    ("more", "drawn", "said"),
    [
        ({"magnitudes": [900, 25, 9.5]}, [900, 25, 9.5], "900.0 at layer 1, position 0, dim 0"),
        (
            {"magnitudes": [925, 25, 9.5]},
            [925, 25, 9.5],
            "925.0 on average at layer 1; 900.0 at position 0, dim 0",
        ),
        ({}, [900, 30, 20], "900.0 at layer 1, position 0, dim 0"),  # a file of before
    ],
)
def test_layerwise_draws_the_kth_largest_of_each_window(more, drawn, said):
    with style.context():
        made = layerwise.draw(_over_windows(**more))
    marks = {line.get_marker(): line.get_ydata() for line in made.axes[0].lines if len(line.get_ydata())}
    np.testing.assert_allclose([marks[mark][0] for mark in "os^"], drawn)
    assert said in " ".join(words for words, _ in texts_of(made))


def test_layerwise_says_in_how_many_windows_the_largest_is():
    result = _over_windows(magnitudes=[950, 25, 9.5])
    result["layers"][0]["top"][0]["share"] = 0.75
    assert "950.0 on average at layer 1; 900.0 at position 0, dim 0 in 75 % of the windows" in " ".join(
        _words(layerwise, result)
    )


def test_layerwise_keeps_a_sign_visible():
    result = _layerwise()
    result["layers"][11]["top"][0]["value"] = -30000.0
    assert any(words.startswith("|−30,000| at layer 12") for words in _words(layerwise, result))


def test_feature_map_says_what_was_found():
    words = _words(feature_map, *_feature_map())
    assert "3 massive activations in layer 12 of SmolLM2-135M-Instruct" in words
    assert {"507", "247", "14", "23,147", "|−1,693|", "850", "0  Summer", "8  \\n"} <= set(words)
    words = _words(feature_map, *_feature_map(64, 4096, LLAMA))
    assert {"1415", "2533", "0  Summer", "7  .", "2,547", "767"} <= set(words)


def test_feature_map_says_what_is_not_finite():
    result, magnitudes = _feature_map(4, 8, ((0, 7, 300.0),))
    magnitudes[1, 2:4] = np.inf
    magnitudes[3] = np.nan
    with style.context():
        made = feature_map.draw(result, magnitudes)
    said = "Not finite: 10 values at positions 1, 3; inf is drawn as high as the largest, nan as 0"
    assert said in [words for words, _ in texts_of(made)]
    ridges = [np.ptp(line.get_ydata()) for line in made.axes[0].lines if len(line.get_ydata()) == 8]
    assert ridges[3] == 0 < ridges[2] < ridges[1] == pytest.approx(ridges[0], rel=0.01)


def test_feature_map_loses_no_spike_of_a_wide_model():
    result, magnitudes = _feature_map(2, 8192, ((0, 100, 300.0),))
    magnitudes[1, 4321] = 299.0  # in no list, and there are more dimensions than points to draw
    heights = []
    for values in (magnitudes, np.minimum(magnitudes, 50)):
        with style.context():
            lines = feature_map.draw({**result, "massive": []}, values).axes[0].lines
        heights.append([np.ptp(ridge.get_ydata()) for ridge in lines if len(ridge.get_ydata()) > 100])
    assert len(heights[0]) == 2
    assert heights[0][1] == pytest.approx(heights[0][0] * 299 / 300, rel=0.02)


def test_attention_says_what_was_found():
    result, logits, probs = _attention()
    words = _words(attention, result, logits, probs)
    assert "Attention in layer 15 of SmolLM2-135M-Instruct: 90 % lands on the massive token" in words
    assert {"Summer", "␣is", "\\n", "massive from", "layer 4 on"} <= set(words)


@pytest.mark.parametrize("changes", [{"massive_positions": []}, {"shares": [None, None]}, {"shares": []}])
def test_attention_has_no_empty_panel(changes):
    result, logits, probs = _attention(3, 2)
    with style.context():
        made = attention.draw({**result, **changes}, logits, probs)
    assert len(made.axes) == 4  # the two maps and their bars
    assert_readable(made)
    if not changes.get("massive_positions", True):
        assert "no massive token" in " ".join(words for words, _ in texts_of(made))


def test_attention_says_what_is_the_same_everywhere():
    result, logits, probs = _attention(4)
    words = _words(attention, result, np.zeros_like(logits), np.full_like(probs, 0.25))
    assert {"Logit (before softmax): everywhere 0", "Probability (after softmax): everywhere 0.250"} <= set(words)
    words = _words(attention, result, np.full_like(logits, np.inf), probs)  # as 16 bits overflow
    assert {"Logit (before softmax): no finite value", "Probability (after softmax): no finite value"} <= set(words)


def test_attention_leaves_masked_entries_blank():
    result, logits, probs = _attention()
    masked = np.isnan(logits)
    for mask in (np.nan, -np.inf, np.finfo(np.float32).min):
        with style.context():
            made = attention.draw(result, np.where(masked, mask, logits), probs)
        images = [image for ax in made.axes[:4] for image in ax.images]
        assert len(images) == 2
        for image in images:
            np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), masked)
        assert images[0].norm.vmax == pytest.approx(np.nanmax(np.abs(logits)))


def test_attention_takes_keys_that_are_no_tokens():
    result, logits, probs = _attention(4)
    wide = [np.pad(a, ((0, 0), (0, 1)), constant_values=0.1) for a in (logits, probs)]
    with pytest.raises(ValueError, match="S = 4"):
        attention.draw(result, *wide)
    assert "bias" in _words(attention, {**result, "key_tokens": [*TOKENS[:4], "bias"]}, *wide)


def test_intervention_says_what_was_found():
    words = _words(intervention, _intervention())
    assert {"23.76", "1,962,311", "23.80", "23.77", "× 82,600", "+0.17 %"} <= set(words)
    assert {"Original", "Set to zero", "Set to mean", "Random entries set to zero"} <= set(words)
    assert any("dims 507 (mean 23,147), 247 (mean −1,693), 14 (mean nan)" in line for line in words)
    assert "less than 1 %" in " ".join(_words(intervention, _intervention(original=30.219, zero=30.214)))


def test_intervention_draws_what_is_not_finite_open_and_longest():
    with style.context():
        made = intervention.draw(_intervention(original=5.47, zero=math.inf, mean=100.0))
    original, zero, mean = (next(iter(container)) for container in made.axes[0].containers)
    assert zero.get_facecolor() == (1, 1, 1, 1)
    assert zero.get_width() > mean.get_width() > original.get_width()
    assert mean.get_width() == pytest.approx(2)  # log10
    assert "inf" in [words for words, _ in texts_of(made)]


def test_registers_say_what_was_found():
    words = _words(registers, _registers())
    assert any("reg3, dim 30 (−800.2 in layer 1)" in row for row in (" ".join(words),))
    assert {"reg1", "reg2", "reg3", "reg4", "median"} <= set(words)
    assert "Registers of tiny: none has a massive activation" in " ".join(_words(registers, _registers(found=False)))


def test_overlay_draws_maps_on_one_scale_and_outlines_patches():
    data = _overlay()
    with style.context():
        made = overlay.draw(*data)
    image, first, second = (ax.images[-1] for ax in made.axes[:3])
    (bar,) = made.axes[3:]
    assert bar.get_ylim() == (first.norm.vmin, first.norm.vmax)
    np.testing.assert_array_equal(image.get_array(), data[3])
    assert first.norm.vmax == second.norm.vmax == max(panel.values.max() for panel in data[5][1:])
    (outline,) = made.axes[0].patches
    assert isinstance(outline, Rectangle)
    assert (*outline.get_xy(), outline.get_width()) == (2 * 14 - 0.5, 14 - 0.5, 14)  # column 2, row 1
    for wrong in ({"marked": [(5, 0)]}, {"values": np.ones((4, 4))}):
        with pytest.raises(ValueError, match=r"the patches are \(5, 4\)"):
            overlay.draw(*data[:5], [Panel("x", **wrong)])


def test_an_overlay_that_is_the_same_everywhere_is_said_and_not_drawn():
    *data, panels = _overlay()
    flat = [Panel(name, np.full((5, 4), value), "attention") for name, value in (("same", 0.05), ("lost", np.nan))]
    nearly = Panel("nearly", np.linspace(1.0, 1.004, 20).reshape(5, 4), "norm")
    with style.context():
        made = overlay.draw(*data, [*panels, *flat, nearly])
    assert [len(ax.images) for ax in made.axes[:6]] == [1, 2, 2, 1, 1, 1]
    assert len(made.axes) == 7  # one bar, of the scale that has a range
    said = " ".join(words for words, _ in texts_of(made))
    assert "same: everywhere 0.0500" in said
    assert "lost: no finite value" in said
    assert "1.00" in said
    assert_readable(made)


PLOTS = {
    "layerwise": (plot_layerwise, (_layerwise(),)),
    "feature_map": (plot_feature_map, _feature_map()),
    "attention": (plot_attention, _attention()),
    "intervention": (plot_intervention, (_intervention(),)),
    "registers": (plot_registers, (_registers(),)),
    "overlay": (plot_overlay, _overlay()),
}


@pytest.mark.parametrize("name", PLOTS)
def test_a_figure_is_a_file_and_its_data_is_untouched(tmp_path, name):
    plot, data = PLOTS[name]
    before = copy.deepcopy(data)
    plot(*data, tmp_path / "a.png")
    plot(*data, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]
    np.testing.assert_equal(data, before)


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_a_figure_may_be_vectors(tmp_path, suffix):
    plot_layerwise(_layerwise(), tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes()[:5] in (b"%PDF-", b"<?xml")


@pytest.mark.parametrize("name", PLOTS)
def test_nothing_is_left_when_a_plot_fails(tmp_path, name, monkeypatch):
    plot, data = PLOTS[name]
    with pytest.raises(ValueError, match=r"name it \.png"):
        plot(*data, tmp_path / "a.txt")

    def fail(self, path, **options):
        pathlib.Path(path).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot(*data, tmp_path / "a.png")
    assert not os.listdir(tmp_path)


def test_wrong_data_is_refused_with_what_was_given():
    result, magnitudes = _feature_map()
    with pytest.raises(ValueError, match=r"\(9, 576\).*8 tokens"):
        feature_map.draw({**result, "tokens": TOKENS[:8]}, magnitudes)
    with pytest.raises(ValueError, match=r"\(0, 576\)"):
        feature_map.draw({**result, "dims": [576]}, magnitudes)
    result, logits, probs = _attention()
    with pytest.raises(ValueError, match=r"\[9\] are outside"):
        attention.draw({**result, "massive_positions": [9]}, logits, probs)
    with pytest.raises(ValueError, match="one layer or more"):
        layerwise.draw({**_layerwise(), "layers": []})
    with pytest.raises(ValueError, match="at least 1"):
        intervention.draw(_intervention(original=0.5))
    with pytest.raises(ValueError, match="empty"):
        intervention.draw({**_intervention(), "perplexity": {}})


# ---- words, numbers, places


def test_labels_show_what_cannot_be_seen():
    shown = [
        label(token) for token in ["\n", " the", "▁the", "", "a\\n", "\x00", "中", "\u200b", "\ud83d", "🙂", "\xa0"]
    ]
    wanted = [
        "\\n",
        "␣the",
        "▁the",
        "(empty)",
        "a\\\\n",
        "\\x00",
        "\\u4e2d",
        "\\u200b",
        "\\ud83d",
        "\\U0001f642",
    ]
    assert shown == [*wanted, "\\xa0"]
    assert label("中 \u0301", font=False) == "中␣\\u0301"
    assert label("abcdefghij", limit=6) == "abcd…j"
    assert label("abcdef", limit=6) == "abcdef"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (23.8, "23.80"),
        (1962311.0, "1,962,311"),
        (206.14, "206.1"),
        (999.96, "1,000"),
        (9.9999, "10.00"),
        (0.722, "0.7220"),
        (0.0, "0"),
        (12, "12"),
        (-1692.8, "−1,693"),
        (1.962e12, "1.962 × 10¹²"),
        (math.inf, "inf"),
        (-math.inf, "−inf"),
        (math.nan, "nan"),
        (None, "not finite"),
    ],
)
def test_numbers_are_written_for_people(value, wanted):
    assert style.number(value) == wanted


def test_spans():
    assert style.spans([4]) == "4"
    assert style.spans([3, 1, 2, 2, 7]) == "1–3, 7"
    assert style.spans([1, 3, 5, 7]) == "4 in 1–7"


def test_spread_moves_labels_no_more_than_needed():
    np.testing.assert_allclose(style.spread([5, 1, 9], [1, 1, 1], 0, 10), [5, 1, 9])
    np.testing.assert_allclose(style.spread([5, 5], [1, 1], 0, 10), [4.5, 5.5])
    np.testing.assert_allclose(style.spread([0, 0.2, 8], [1, 1, 1], 0, 10), [0.5, 1.5, 8])
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.uniform(0.2, 1, 8)
        targets = rng.uniform(0, 10, 8)
        placed = style.spread(targets, sizes, 0, 10)
        order = np.argsort(targets)
        gaps = np.diff(placed[order]) - (sizes[order][1:] + sizes[order][:-1]) / 2
        assert gaps.min() > -1e-9
        assert (placed - sizes / 2).min() > -1e-9
        assert (placed + sizes / 2).max() < 10 + 1e-9


@pytest.mark.parametrize("last", [1, 2, 12, 16, 24, 30, 48, 80, 126])
def test_layer_ticks_name_the_ends_and_are_few(last):
    ticks = style.layer_ticks(1, last)
    assert ticks[0] == 1
    assert ticks[-1] == last
    assert len(ticks) <= 18


def test_drawing_is_imported_only_when_something_is_drawn():
    for path in pathlib.Path(massive_jax.report.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"jax", "flax"}, path
            assert "matplotlib" not in roots or node not in tree.body, path
            assert not any("pyplot" in name for name in names), path
