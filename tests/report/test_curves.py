"""Axes that can be read: some numbers on each, whatever its range."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from massive_jax.report import style
from massive_jax.report.curves import Chart, Curve, draw_charts, logarithmic_ticks, number_logarithmic


@pytest.mark.parametrize("logarithmic", [True, False])
@pytest.mark.parametrize(("low", "high"), [(2.5, 3.1), (0.2, 8.0), (0.5, 30_000.0), (1e-6, 1e6), (7.0, 7.0)])
def test_every_axis_has_numbers(low, high, logarithmic):
    curve = Curve(np.arange(3), np.array([low, high, np.nan]), "black", "one")
    with style.context():
        made = draw_charts("", "", [Chart("y", logarithmic, [curve])], height=1.7, x_label="x", x_limits=None)
    bottom, top = made.axes[0].get_ylim()
    labelled = [tick for tick in made.axes[0].yaxis.get_majorticklocs() if bottom <= tick <= top]
    assert 2 <= len(labelled) <= 12
    assert [text.get_text() for text in made.texts].count("one") == 1


@pytest.mark.parametrize("most", [2, 3, 4, 12])
def test_a_logarithmic_axis_has_two_numbers_or_more(most):
    rng = np.random.default_rng(0)
    for low, wide in zip(10 ** rng.uniform(-9, 9, 500), 10 ** rng.uniform(0.02, 12, 500), strict=True):
        ticks = logarithmic_ticks(low, low * wide, most)
        assert 2 <= len(ticks) <= most, (low, wide)
        assert low <= ticks[0] < ticks[-1] <= low * wide


@pytest.mark.parametrize(
    ("low", "high", "first", "last"), [(3, 8, "4", "8"), (1e-7, 1, "10⁻⁷", "10⁰"), (1.1e9, 4.1e9, "2 × 10⁹", "4 × 10⁹")]
)
def test_numbers_on_a_logarithmic_axis(low, high, first, last):
    axis = Figure().subplots().yaxis
    number_logarithmic(axis, low, high)
    labels = [axis.get_major_formatter()(tick, None) for tick in axis.get_majorticklocs()]
    assert (labels[0], labels[-1]) == (first, last)


def test_a_chart_of_nothing_says_so():
    ys = {"a": [1, 2], "b": [np.nan, 0]}
    charts = [Chart(name, True, [Curve(np.arange(2), np.array(y), "black", "one")]) for name, y in ys.items()]
    with style.context():
        made = draw_charts("", "", charts, height=1.0, x_label="x", x_limits=None)
    (said,) = [text for text in made.texts if text.get_text() == "No finite value to draw"]
    made.draw_without_rendering()
    centre = said.get_window_extent().get_points().mean(axis=0)
    assert [ax.bbox.contains(*centre) for ax in made.axes] == [False, True]


@pytest.mark.parametrize(("x", "labels"), [([7], ["7"]), ([0, 1, 2], ["0", "1", "2"])])
def test_steps_are_whole_numbers(x, labels):
    curve = Curve(np.array(x), np.ones(len(x)), "black", "one")
    with style.context():
        made = draw_charts("", "", [Chart("y", False, [curve])], height=1.0, x_label="x", x_limits=None)
        made.draw_without_rendering()
    axis = made.axes[0].xaxis
    low, high = axis.get_view_interval()
    assert [
        axis.get_major_formatter()(tick, None) for tick in axis.get_majorticklocs() if low <= tick <= high
    ] == labels
