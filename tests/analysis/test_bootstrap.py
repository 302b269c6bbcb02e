"""Intervals of averages over windows, and what part of an effect each place has."""

import math

import numpy as np
import pytest

from massive_jax.analysis import carrier, percentiles, resampled_means, shares_alone


def test_means_are_those_of_windows_drawn_again():
    sums, counts = np.array([1.0, 20.0, 300.0]), np.array([1, 2, 3])
    drawn = np.random.default_rng(7).integers(3, size=(50, 3))
    expected = [sum(sums[i] for i in row) / sum(counts[i] for i in row) for row in drawn]
    np.testing.assert_allclose(resampled_means(sums, counts, draws=50, seed=7), expected)
    both = resampled_means(np.stack([sums, 2 * sums]), counts, draws=50, seed=7)
    np.testing.assert_allclose(both, [expected, np.multiply(2, expected)])


def test_an_interval_holds_the_mean_as_often_as_it_says():
    """Of 200 samples from one distribution: 95 %, within what chance allows."""
    rng = np.random.default_rng(0)
    inside = 0
    for sample in rng.exponential(3.0, size=(200, 60)):
        low, high = percentiles(resampled_means(sample, draws=400))
        inside += low <= 3.0 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_infinite_scores_have_an_infinite_end():
    low, high = percentiles(resampled_means(np.array([1.0, 2.0, math.inf]), draws=200))
    assert low < high == math.inf


def test_what_cannot_be_drawn_from():
    for sums, counts in (([], None), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="give a sum and a count a window"):
            resampled_means(np.array(sums), None if counts is None else np.array(counts))
    with pytest.raises(ValueError, match="draws is 0"):
        resampled_means(np.ones(3), draws=0)


@pytest.mark.parametrize(
    ("together", "alone", "expected"),
    [
        (15.8, [15.4, 3.05], 0),
        (15.8, [3.0, 15.4], 1),
        (15.8, [9.0, 9.0], None),  # half each
        (15.8, [15.4, 15.0], None),  # either does it
        (3.025, [3.025, 3.02], None),  # too little to speak of
        (math.inf, [math.inf, 3.0], None),
    ],
)
def test_the_place_that_does_it_all(together, alone, expected):
    assert carrier(3.02, together, alone) == expected


def test_shares():
    assert shares_alone(0.8, 0.3, [0.3, 0.8, 0.55]) == pytest.approx([1.0, 0.0, 0.5])  # agreement falls
    assert np.isnan(shares_alone(1.0, 1.0, [1.0, 1.0])).all()
