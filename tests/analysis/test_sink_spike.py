"""Sinks and spikes of a census."""

import numpy as np
import pytest

from massive_jax.analysis import has_sink, has_spike, mean_interval, middle_blocks, sink_and_spike


def layer(number, **changes):
    values = {"first": 4.0, "first_dim": 7, "others": 3.0, "typical": 2.0, "largest": 4.0, "median": 0.5}
    rates = {"first_share": 0.1, "sink_heads": 0.0, "slot_rate": 0.0, "kurtosis": 3.0}
    top = [{"value": 4.0, "position": 0, "dim": 7}]
    return {"layer": number, "top": top, **values, **rates, **changes}


def test_the_middle_blocks():
    assert [list(middle_blocks(n)) for n in (1, 2, 4)] == [[0], [0], [0, 1, 2]]


def test_each_number_is_of_its_block():
    """The first token's best block, the top of any token, means over heads; and nothing of the last block."""
    last = layer(4, first=1e6, largest=1e6, sink_heads=1.0, first_share=1.0, slot_rate=1.0, kurtosis=1e6)
    elsewhere = [{"value": -80.0, "position": 9, "dim": 3}]
    found = sink_and_spike(
        [
            layer(1, largest=80.0, top=elsewhere, first_share=0.4),
            layer(2, first=60.0, largest=60.0, others=5.0, typical=1.0, kurtosis=90.0, sink_heads=1.0, slot_rate=0.3),
            layer(3, first=70.0, median=1.0, first_dim=None, sink_heads=0.5),
            last,
        ]
    )
    assert (found.ratio, found.layer, found.dim) == (120.0, 2, 7)
    assert (found.others_ratio, found.typical_ratio) == (10.0, 2.0)
    assert (found.top_ratio, found.top_layer, found.top_position, found.top_dim) == (160.0, 1, 9, 3)
    assert (found.sink_heads, found.block_heads, found.kurtosis) == (0.5, 1.0, 90.0)
    assert found.first_share == pytest.approx(0.2)
    assert found.slot_share == pytest.approx(0.1)


def test_a_census_without_the_first_token():
    for given in ([], [{"layer": 1, "largest": 1.0, "median": 0.1}], [layer(1, typical=None)]):
        with pytest.raises(ValueError, match="does not say what the first token's largest is; take it again"):
            sink_and_spike(given)


@pytest.mark.parametrize(
    ("ratio", "typical", "fixed", "expected"),
    [
        (100.0, 50.0, True, True),
        (99.9, 5.0, True, False),
        (500.0, 260.0, True, False),  # a dim that is large on every token
        (500.0, 10.0, False, False),
    ],
)
def test_what_is_a_spike(ratio, typical, fixed, expected):
    assert has_spike(ratio, typical, fixed=fixed) is expected


def test_what_is_a_sink():
    assert (has_sink(0.5), has_sink(0.49)) == (True, False)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_interval_is_students(count):
    import scipy.stats  # takes a second, which not every process of a test run need spend

    x = np.random.default_rng(count).lognormal(size=count)
    for ratios, of, back in ((False, x, np.asarray), (True, np.log(x), np.exp)):
        found = mean_interval(x, level=0.9, ratios=ratios)
        expected = scipy.stats.t.interval(0.9, count - 1, of.mean(), scipy.stats.sem(of))
        np.testing.assert_allclose([found.value, found.low, found.high], back([of.mean(), *expected]))


def test_one_number_has_no_interval():
    assert (mean_interval([2.0]).value, mean_interval([2.0]).low) == (2.0, None)
    for wrong, message in ((([],), "at least"), (([1.0, 0.0],), "ratios must be positive")):
        with pytest.raises(ValueError, match=message):
            mean_interval(*wrong, ratios=True)
