"""Emergence curves: what is drawn is what was given."""

import numpy as np
import pytest

from massive_jax.report import emergence, plot_emergence, style


def result(slot_rate=0.0, **changes):
    def layer(number, step):
        values = {"largest": number * (1.0 + step), "kurtosis": 3.0 + step, "sink_rate": step / 200}
        return {"layer": number, **values, "median": 0.5, "slot_rate": slot_rate, **changes}

    census = [{"step": step, "layers": [layer(n, step) for n in (1, 2, 3)]} for step in (0, 50, 100)]
    about = {
        "model": "GPT-2",
        "preset": "small",
        "attention_bias": "none",
        "text": "python",
        "dtype": "float32",
        "parameters": 1000,
    }
    return {**about, "census": census}


def draw(given):
    with style.context():
        return emergence.draw(given)


def words(made):
    return [text.get_text() for text in made.texts]


def test_a_line_a_layer():
    made = draw(result())
    assert len(made.axes) == 3
    largest, _, sink = made.axes
    for number, line in enumerate(largest.lines, 1):
        np.testing.assert_allclose(line.get_xydata(), [(s, number * (1.0 + s)) for s in (0, 50, 100)])
    assert len(sink.lines) == 3
    np.testing.assert_allclose(sink.lines[0].get_ydata(), [0, 0.25, 0.5])
    title = " ".join(words(made))
    assert "largest activation 303, 606 times the median; up to 50 % of attention on position 0" in title
    assert words(made).count("Layer 3") == 3


def test_slots_have_a_panel_where_there_are_any():
    made = draw(result(slot_rate=0.4))
    assert len(made.axes) == 4
    np.testing.assert_allclose(made.axes[3].lines[1].get_ydata(), 0.4)


def test_numbers_that_cannot_be_drawn_are_gaps():
    made = draw(result(kurtosis=None))
    assert np.isnan(made.axes[1].lines[0].get_ydata()).all()
    assert "606 times the median" in " ".join(words(without := draw(result(sink_rate=None))))
    assert "nan" not in " ".join(words(without))


def test_one_census_is_enough_and_none_is_not(tmp_path):
    one = result()
    one["census"] = one["census"][-1:]
    plot_emergence(one, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_emergence({**one, "census": []}, tmp_path / "b.png")


def test_fits_are_curves_through_points():
    parameters = {"amplitude": 2.0, "decay": 0.1, "rate": 0.02, "offset": 1.0, "baseline": 3.0}
    estimates = {name: {"value": value, "error": None} for name, value in parameters.items()}
    problem = {"layer": 2, "problem": "the ratio does not change."}
    given = {
        "model": "training",
        "text": "book.txt",
        "census": result()["census"],
        "r_squared": 0.75,
        "fits": [{"layer": 1, "parameters": estimates, "r_squared": 0.75}, problem, {**problem, "layer": 3}],
    }
    with style.context():
        made = emergence.draw_fits(given)
    curve, points, line, _ = made.axes[0].lines
    x, y = curve.get_xydata().T
    np.testing.assert_allclose(y, 2 * np.exp(-0.1 * (0.02 * x + 1)) * np.log(0.02 * x + 1) + 3)
    np.testing.assert_allclose(points.get_xydata(), [(s, (1.0 + s) / 0.5) for s in (0, 50, 100)])
    assert (points.get_linestyle(), line.get_linestyle()) == ("None", "-")
    said = " ".join(words(made))
    assert "layer 3's largest is 606 times its median; curves through 1 of 3 layers, R² 0.750 on average" in said
    assert "3 checkpoints · text: book.txt" in said
    with pytest.raises(ValueError, match="nothing to draw"):
        emergence.draw_fits({**given, "census": []})
