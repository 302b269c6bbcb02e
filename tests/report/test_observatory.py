"""Models side by side: the numbers on their axes."""

import pytest

from massive_jax.report import observatory


@pytest.mark.parametrize(
    ("value", "text"), [(50.0, "50"), (2e4, "20k"), (5e6, "5M"), (1e9, "10⁹"), (2e40, "2 × 10⁴⁰"), (1e-6, "10⁻⁶")]
)
def test_a_number_on_an_axis_is_short(value, text):
    assert observatory._short(value) == text
