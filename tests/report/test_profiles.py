"""Models side by side: what is drawn is what was given."""

import numpy as np
import pytest

from massive_jax.report import plot_profiles, profiles, style
from tests.fixtures.figures import assert_readable


def draw(models, **more):
    with style.context():
        return profiles.draw({"title": "One and two", "conditions": "float32", "models": models, **more})


def model(name, largest):
    return {"name": name, "largest": largest, "median": [0.5] * len(largest), "sink_rate": [0.2] * len(largest)}


def test_a_curve_a_model_and_its_median():
    made = draw([model("one", [1.0, 300.0, 20.0]), model("two", [1.0, 2.0])], sink="one token")
    largest, sink = made.axes
    one, two, *medians = largest.lines
    np.testing.assert_allclose(one.get_xydata(), [(1, 1.0), (2, 300.0), (3, 20.0)])
    np.testing.assert_allclose(two.get_ydata(), [1.0, 2.0])
    assert [line.get_linestyle() for line in medians] == [":", ":"]
    assert sink.get_ylim()[0] == 0
    words = [text.get_text() for text in made.texts]
    assert words.count("one") == words.count("two") == 2
    assert "Attention on one token" in words
    assert "Attention on position 0" in [text.get_text() for text in draw([model("one", [1.0])]).texts]


def test_numbers_that_cannot_be_drawn_are_gaps():
    made = draw([model("one", [1.0, None, 0.0])])
    np.testing.assert_array_equal(np.isnan(made.axes[0].lines[0].get_ydata()), [False, True, True])


def test_more_models_than_colours_and_none(tmp_path):
    assert len(draw([model(str(i), [1.0, 2.0]) for i in range(15)]).axes[1].lines) == 15
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_profiles({"title": "", "conditions": "", "models": []}, tmp_path / "a.png")


def test_a_name_in_another_script_leaves_room_for_the_curves():
    made = draw([model("模型" * 40, [1.0, 2.0])], sink="模型" * 40)
    assert made.axes[0].get_position().width > 0.5
    assert_readable(made)
