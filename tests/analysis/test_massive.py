import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from massive_jax.analysis import (
    DEFINITION,
    Location,
    Thresholds,
    attention_shares,
    find_massive,
    full_size_layer,
    median_places,
    rank_locations,
)


def rank(rows, median=1.0, **options):
    """`rank_locations` of windows given as lists of (position, dim, value), largest first."""
    positions, dims, values = (np.array([[item[i] for item in row] for row in rows]) for i in range(3))
    return rank_locations(values.astype(np.float32), positions, dims, np.full(len(rows), median), **options)


def test_one_sequence_comes_back_in_its_own_order():
    found = rank([[(0, 507, 23147.1), (0, 247, -1692.8), (3, 507, 59.2)]], median=1.7)
    assert [(x.position, x.dim) for x in found] == [(0, 507), (0, 247), (3, 507)]
    assert [x.share for x in found] == [1.0] * 3
    assert found[1].value == pytest.approx(-1692.8)
    assert found[1].ratio == pytest.approx(1692.8 / 1.7)
    # Of the three, the second is below 1,000 medians and the third below 100 as well.
    assert [(x.meets_magnitude, x.meets_ratio, x.massive) for x in found] == [
        (True, True, True),
        (True, False, False),
        (False, False, False),
    ]


def test_thresholds_are_exclusive_and_settable():
    on_the_line = rank([[(0, 1, 100.0)]], median=0.1)[0]
    assert not on_the_line.meets_magnitude
    assert not on_the_line.meets_ratio
    above = rank([[(0, 1, 100.01)]], median=0.1)[0]
    assert above.massive
    assert not rank([[(0, 1, 100.01)]], median=0.1, thresholds=Thresholds(ratio=2000))[0].massive
    assert rank([[(0, 1, 5.0)]], median=0.1, thresholds=Thresholds(4, 10))[0].massive
    assert (DEFINITION.magnitude, DEFINITION.ratio) == (100.0, 1000.0)


@pytest.mark.parametrize("fields", [{"magnitude": -1.0}, {"ratio": -1.0}])
def test_negative_thresholds_are_refused(fields):
    with pytest.raises(ValueError, match="must not be negative"):
        Thresholds(**fields)


def test_windows_are_averaged_by_place():
    found = rank([[(0, 5, 300.0), (2, 5, 10.0)], [(0, 5, 100.0), (7, 1, -8.0)]])
    by_place = {(x.position, x.dim): x for x in found}
    assert by_place[0, 5].value == 200.0
    assert (by_place[0, 5].share, by_place[2, 5].share) == (1.0, 0.5)
    assert by_place[7, 1].example == (1, 7)
    assert [(x.position, x.dim) for x in found] == [(0, 5), (2, 5), (7, 1)]


def test_a_zero_median_is_no_division_by_zero():
    found = rank([[(0, 5, 300.0)]], median=0.0)[0]
    assert found.meets_ratio
    assert np.isfinite(found.ratio)


def test_delimiters_at_different_positions_are_one_place():
    rows = [[(0, 9, 400.0), (position, 9, 300.0 + position), (20, 1, 5.0)] for position in (3, 5, 8)]
    found = rank(rows, delimiters=np.array([3, 5, 8]))
    assert [(x.position, x.dim, x.share) for x in found] == [
        (0, 9, 1.0),
        ("first_delimiter", 9, 1.0),
        (20, 1, 1.0),
    ]
    assert found[1].value == pytest.approx(300 + 16 / 3)
    assert found[1].example == (0, 3)
    apart = rank(rows)
    assert {x.position for x in apart} == {0, 3, 5, 8, 20}


def test_a_fixed_position_is_not_mistaken_for_the_delimiter():
    """Where most windows have it at one position, that is where it is, delimiter or not."""
    rows = [[(4, 9, 300.0)]] * 3 + [[(6, 9, 300.0)]]
    found = rank(rows, delimiters=np.array([4, 4, 4, 6]))
    assert [(x.position, x.share) for x in found] == [(4, 0.75), ("first_delimiter", 0.25)]


def test_windows_without_a_delimiter_stay_out_of_it():
    rows = [[(position, 9, 300.0)] for position in (3, 5, 8, 2)]
    found = rank(rows, delimiters=np.array([3, 5, -1, 7]))
    assert {(x.position, x.share) for x in found} == {("first_delimiter", 0.5), (8, 0.25), (2, 0.25)}


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=4, max_size=4, unique=True),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.integers(-1, 3), min_size=6, max_size=6),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=150)
def test_every_occurrence_is_in_exactly_one_place(places, delimiters, random):
    rows = [[(position, dim, random.uniform(-9, 9)) for position, dim in row] for row in places]
    for options in ({}, {"delimiters": np.array(delimiters[: len(rows)])}):
        found = rank(rows, **options)
        assert len({(x.position, x.dim) for x in found}) == len(found)
        assert sum(x.share for x in found) * len(rows) == pytest.approx(4 * len(rows))
        total = sum(value for row in rows for _, _, value in row)
        assert sum(x.value * x.share for x in found) * len(rows) == pytest.approx(total, rel=1e-5, abs=1e-4)
        weights = [x.share * abs(x.value) for x in found]
        assert weights == sorted(weights, reverse=True)


BASE = Location(0, 1, 500.0, 2000.0, 1.0, (0, 0), True, True)


def test_find_massive():
    rare = dataclasses.replace(BASE, dim=2, share=0.4)
    large = dataclasses.replace(BASE, dim=3, meets_ratio=False)
    far = dataclasses.replace(BASE, dim=4, meets_magnitude=False)
    small = dataclasses.replace(BASE, dim=5, meets_magnitude=False, meets_ratio=False)
    everything = [BASE, rare, large, far, small]
    assert find_massive(everything) == [BASE]
    assert find_massive(everything, share=0.4) == [BASE, rare]
    assert find_massive(everything, either=True) == [BASE, large, far]
    assert find_massive(everything, either=True, limit=2) == [BASE, large]
    assert find_massive([]) == []


@pytest.mark.parametrize(
    ("largest", "fraction", "layer"),
    [
        ([1, 2, 700, 1400, 1300, 40], 0.5, 3),
        ([1, 2, 699, 1400], 0.5, 4),
        ([9, 9, 9], 0.5, 1),
        ([1, 2, 700, 1400], 1.0, 4),
    ],
)
def test_full_size_layer(largest, fraction, layer):
    assert full_size_layer(np.array(largest, float), fraction) == layer


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2**31), st.data())
@settings(deadline=None, max_examples=150)
def test_median_places(T, D, count, excluded, seed, data):
    hidden = np.random.default_rng(seed).standard_cauchy(size=(T, D)).astype(np.float32)
    places = st.tuples(st.integers(0, T - 1), st.integers(0, D - 1))
    exclude = data.draw(st.lists(places, min_size=0, max_size=excluded))
    if T * D - len(set(exclude)) < count:
        return
    found = median_places(hidden, count, exclude=exclude, seed=seed)
    assert len(set(found)) == count == len(found)
    assert not set(found) & set(exclude)
    assert all(0 <= t < T and 0 <= d < D and type(t) is int and type(d) is int for t, d in found)
    assert found == median_places(hidden, count, exclude=exclude, seed=seed)


def test_median_places_are_near_the_median():
    hidden = np.random.default_rng(0).standard_cauchy(size=(100, 50)).astype(np.float32)
    magnitude = np.abs(hidden)
    low, high = np.quantile(magnitude, [0.4, 0.6])
    chosen = {seed: median_places(hidden, 20, seed=seed) for seed in range(3)}
    for places in chosen.values():
        assert all(low <= magnitude[t, d] <= high for t, d in places)
    assert len({tuple(places) for places in chosen.values()}) == 3


def test_median_places_of_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="5 places near the median: there are only 4"):
        median_places(np.ones((2, 2)), 5)


def test_attention_shares():
    mass = np.zeros((2, 3, 4, 6), np.float32)  # [L, B, H, S]
    mass[0, :, :, 0] = 0.75
    mass[0, :, :, 5] = 0.25
    mass[1, 0, :, 0] = 0.9
    assert attention_shares(mass, [0]).tolist() == [0.75, pytest.approx(0.3)]
    assert attention_shares(mass, [0, 5])[0] == 1.0
    assert attention_shares(mass, []).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "5", None])
@pytest.mark.parametrize("name", ["magnitude", "ratio"])
def test_thresholds_are_finite_numbers(name, value):
    with pytest.raises(ValueError, match="threshold"):
        Thresholds(**{name: value})


def test_arguments_out_of_range():
    nothing = np.full((2, 3), np.nan, np.float32)
    for call, message in (
        (lambda: median_places(nothing, 1), "not finite, so there is no median"),
        (lambda: median_places(np.zeros((2, 3)), -1), "count is -1"),
        (lambda: median_places(np.zeros((2, 3)), 1, seed=0.5), "seed is 0.5"),
        (lambda: full_size_layer(np.array([1.0, np.nan])), "give a finite magnitude"),
        (lambda: full_size_layer(np.array([])), "of one at least"),
        (lambda: full_size_layer(np.ones(2), fraction=2), "fraction is 2"),
        (lambda: find_massive([], share=float("nan")), "share is nan"),
        (lambda: find_massive([], limit=-1), "limit is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
