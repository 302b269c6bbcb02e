"""Axes that can be read: some numbers on each, whatever its range."""

import numpy as np
import pytest

from massive_jax.report import style
from massive_jax.report.curves import Chart, Curve, draw_charts


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
