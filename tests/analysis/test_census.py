"""What a census counts, against numbers worked out by hand."""

import numpy as np
import pytest

from massive_jax.analysis import Places, Sums, class_of, matrix_entropy, null_interval, steps, uniform_sink_mass

RNG = np.random.default_rng(0)


def test_sums_give_mean_deviation_and_interval_whatever_the_batches():
    x = RNG.normal(size=(3, 10)) + 1000
    whole, parts = Sums.of(x), Sums.of(x[:, :4]) + Sums.of(x[:, 4:])
    for found in (whole, parts):
        np.testing.assert_allclose(found.mean, x.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(found.std, x.std(axis=1), rtol=1e-6)
        error = 1.96 * x.std(axis=1, ddof=1) / np.sqrt(10)
        np.testing.assert_allclose(found.interval, (x.mean(axis=1) - error, x.mean(axis=1) + error), rtol=1e-6)


def test_sums_leave_out_what_is_not_there():
    x = np.array([[1.0, np.nan, 3.0, 9.0]])
    found = Sums.of(x, where=np.array([True, True, True, False]))
    assert (found.count[0], found.mean[0]) == (2, 2.0)
    nothing = Sums.of(x, where=np.zeros(4, bool))
    assert np.isnan(nothing.mean[0])
    assert np.isnan(Sums.of(x[:, :1]).interval).all()


def test_places_are_counted_by_what_they_are():
    places = Places.none((2, 3, 5, 7))
    for layer, values in ((1, [3.0, 5.0]), (0, [-1.0, -1.0]), (1, [4.0])):
        n = np.ones(len(values), int)
        places = places.add((layer * n, 2 * n, 4 * n, 6 * n), np.array(values), np.array(values) * 10)
    assert [part.tolist() for part in places.parts()] == [[0, 1], [2, 2], [4, 4], [6, 6]]
    np.testing.assert_allclose(places.sums[:, 0], [2, 3])
    np.testing.assert_allclose(places.means, [-1, 4])
    np.testing.assert_allclose(places.stds, [0, np.std([3, 5, 4])])
    np.testing.assert_allclose(places.ratios, [-10, 40])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" The", "weak_word"),
        ("2", "weak_word"),
        (" ...", "delimiter"),
        (" \n", "delimiter"),
        ("<", "other"),
        ("a.", "other"),
    ],
)
def test_kinds_of_tokens(text, kind):
    assert class_of(text) == kind


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_entropy_is_of_the_singular_values(shape):
    x = RNG.normal(size=shape)
    p = np.linalg.svd(x, compute_uv=False) ** 2
    p /= p.sum()
    gram = x @ x.T if shape[0] < shape[1] else x.T @ x
    np.testing.assert_allclose(matrix_entropy(gram), -(p * np.log(p)).sum() / np.log(6), rtol=1e-9)


def test_uniform_attention():
    assert uniform_sink_mass(4, causal=True) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert uniform_sink_mass(4, causal=True, window=2) == pytest.approx((1 + 1 / 2) / 4)
    assert uniform_sink_mass(4, causal=False) == 0.25


def test_steps_name_who_made_them():
    attention, mlp = np.array([0.0, 5.0, 0.0, -60.0]), np.array([1.0, 80.0, 1.0, 0.0])
    after = np.cumsum(attention + mlp)
    up, down = steps(after, attention, mlp)
    assert (up.layer, up.change, up.attention, up.mlp, up.up) == (2, 85.0, 5.0, 80.0, True)
    assert (down.layer, down.change, down.up) == (4, -60.0, False)
    (sign,) = steps(np.array([-50.0, -50.0]), np.zeros(2), np.array([-50.0, 0.0]))
    assert sign.up


def test_null_interval_is_of_the_draws():
    found = null_interval(np.arange(101.0)[None])
    assert [found[name][0] for name in ("low", "mean", "high")] == [2.5, 50.0, 97.5]
