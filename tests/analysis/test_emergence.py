"""The curve of five parameters: found again where it is known, refused where it cannot be."""

import math

import numpy as np
import pytest

from massive_jax.analysis import PARAMETERS, emergence_curve, fit_emergence

# Pythia's checkpoints: powers of two, then every few thousand steps.
STEPS = np.array([0, *(2**k for k in range(10)), *range(1000, 143001, 8000)])
# As the paper has them: an early peak, a rise that has not ended, a dip, and one layer of Pythia-410M (its data set).
KNOWN = {
    "early peak": (200.0, 0.5, 1e-4, 1.0, 5.0),
    "rising": (50.0, 1e-3, 1e-3, 1.2, 30.0),
    "dip": (-3.0, 0.2, 5e-5, 0.5, 4.0),
    "pythia": (0.1991413, 0.1245164, 1.124350e-4, 0.6212193, 0.1219349),
    "over within a few points": (2000.0, 2.0, 1e-3, 0.9, 100.0),
}


def curve(values, steps=STEPS):
    return emergence_curve(steps, **dict(zip(PARAMETERS, values, strict=True)))


def test_the_curve_is_equation_9():
    """By hand: x = 2 · 3 + 1 = 7."""
    (found,) = curve((5.0, 0.1, 2.0, 1.0, 4.0), [3])
    assert found == pytest.approx(5 * math.exp(-0.7) * math.log(7) + 4)


@pytest.mark.parametrize("name", KNOWN)
def test_known_parameters_are_found_again(name):
    known = KNOWN[name]
    fit = fit_emergence(STEPS, curve(known))
    assert [getattr(fit, name) for name in PARAMETERS] == pytest.approx(known, rel=1e-4)
    assert fit.r_squared == pytest.approx(1, abs=1e-9)
    assert max(error / abs(value) for error, value in zip(fit.errors, known, strict=True)) < 1e-4
    np.testing.assert_allclose(fit.at(STEPS), curve(known), rtol=1e-6)


def test_the_peak_is_where_the_curve_is_highest():
    from scipy.optimize import minimize_scalar  # takes a second, which not every process of a test run need spend

    fit = fit_emergence(STEPS, curve(KNOWN["early peak"]))
    by_search = minimize_scalar(lambda step: -curve(KNOWN["early peak"], [step])[0], bounds=(0, 143_000))
    assert fit.peak == pytest.approx(by_search.x, rel=1e-4)


def test_errors_are_those_that_noise_makes():
    """Standard errors against the spread of the estimates over many draws of the noise."""
    known, noise, draws = KNOWN["pythia"], 0.002, np.random.default_rng(0)
    fits = [fit_emergence(STEPS, curve(known) + noise * draws.standard_normal(len(STEPS))) for _ in range(12)]
    for i, name in enumerate(PARAMETERS):
        spread = np.std([getattr(fit, name) for fit in fits], ddof=1)
        typical = np.median([fit.errors[i] for fit in fits])
        assert 0.4 < spread / typical < 2.5, name  # twelve draws tell a spread to a fifth
    assert all(0.98 < fit.r_squared < 1 for fit in fits)


def test_a_logarithm_that_does_not_decay_has_no_baseline_of_its_own():
    """With λ = 0 another γ is another K: the curve is found, and what is not told says so."""
    true = 300.0, 0.0, 1e-3, 1.0, 20.0
    fit = fit_emergence(STEPS, curve(true))
    np.testing.assert_allclose(fit.at(STEPS), curve(true), rtol=1e-5)
    assert (fit.decay, fit.peak) == (0, None)
    assert fit.amplitude == pytest.approx(300, rel=1e-4)
    assert [math.isnan(error) for error in fit.errors] == [False, False, True, True, True]


def test_an_exponential_is_all_but_in_the_family():
    """What the curves near where γ grows without bound: found, with parameters that are finite and not determined."""
    y = 3 - 2 * np.exp(-STEPS / 20_000)
    fit = fit_emergence(STEPS, y)
    assert fit.r_squared > 0.999
    assert np.isfinite([getattr(fit, name) for name in PARAMETERS]).all()
    assert fit.baseline == pytest.approx(3, rel=0.01)
    np.testing.assert_allclose(fit.at(STEPS), y, atol=0.05)


def test_steps_in_another_order_and_unit_are_the_same_curve():
    y = curve(KNOWN["early peak"])
    fit = fit_emergence(STEPS[::-1] * 10, y[::-1] * 7)
    assert fit.rate == pytest.approx(1e-5, rel=1e-4)
    assert fit.amplitude == pytest.approx(1400, rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "ratios", "message"),
    [
        ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5], "5 points; a curve of five parameters needs at least six"),
        (range(6), [1, 2, math.nan, 3, 4, 5], "a step or a ratio is not finite"),
        (range(6), [2.0] * 6, "the ratio does not change"),
        ([0, 1, 2, 2, 3, 4], range(6), "a step is negative, or there twice"),
        (range(-1, 5), range(6), "a step is negative, or there twice"),
        (range(6), range(7), r"steps of shape \(6,\) and ratios of shape \(7,\)"),
    ],
)
def test_what_cannot_be_fitted_says_why(steps, ratios, message):
    with pytest.raises(ValueError, match=message):
        fit_emergence(list(steps), list(ratios))
