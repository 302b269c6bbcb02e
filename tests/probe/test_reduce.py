import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from massive_jax.probe.coordinates import Coordinates
from massive_jax.probe.order_statistics import SEARCHES, Search
from massive_jax.probe.reduce import Reductions, median_magnitude, moments, top_k_magnitude
from massive_jax.probe.sites import SITES

# Each shape is compiled once; the values are what hypothesis varies. Odd and even counts, and a single element.
SHAPES = [(1, 1), (2, 2), (1, 3, 5), (3, 2, 7), (2, 4, 3, 2)]
DENORMAL = float(np.float32(1e-45))
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, DENORMAL, -DENORMAL, 1e-40, 3e38, float("inf"), float("-inf")]
median = jax.jit(median_magnitude)
top_k = jax.jit(top_k_magnitude, static_argnums=1)


def float32_arrays(shape):
    """Arrays with many ties, zeros of both signs, infinities and denormals."""
    any_float = st.floats(width=32, allow_nan=False)
    return hnp.arrays(np.float32, shape, elements=st.one_of(st.sampled_from(SPECIAL), any_float), fill=st.nothing())


def lower_median(x):
    """Of |x| over all axes but the first, by sorting; as `torch.median`."""
    flat = np.sort(np.abs(x.astype(np.float32)).reshape(len(x), -1), axis=-1)
    return flat[:, (flat.shape[1] - 1) // 2]


@given(st.sampled_from(SHAPES).flatmap(float32_arrays))
@example(np.full((2, 2), DENORMAL, np.float32))
@example(np.full((2, 2), -np.inf, np.float32))
@example(np.array([[1.0, 2.0], [-4.0, 3.0]], np.float32))
@settings(deadline=None, max_examples=150)
def test_median_equals_sorting(x):
    found = np.asarray(median(x))
    assert found.dtype == np.float32
    # Bit for bit: a denormal flushed to zero would pass a comparison of values.
    np.testing.assert_array_equal(found.view(np.uint32), lower_median(x).view(np.uint32))


@given(st.sampled_from(SHAPES).flatmap(float32_arrays))
@settings(deadline=None, max_examples=60)
def test_median_of_bfloat16_equals_sorting(x):
    x = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(median(x)).view(np.uint32), lower_median(x).view(np.uint32))


@given(st.sampled_from(SHAPES).flatmap(float32_arrays))
@settings(deadline=None, max_examples=40)
def test_median_of_float16_equals_sorting(x):
    with np.errstate(over="ignore"):
        x = x.astype(np.float16)
    np.testing.assert_array_equal(median(x), lower_median(x))


def test_median_of_an_even_count_is_the_lower_one_and_of_each_sequence():
    x = np.array([[4.0, -1.0, 2.0, 3.0], [0.0, 0.0, 5.0, -7.0]], np.float32)
    assert median(x).tolist() == [2.0, 0.0]


def test_median_of_many():
    x = np.random.default_rng(0).standard_cauchy(size=(2, 300, 41)).astype(np.float32)
    np.testing.assert_array_equal(median(x), lower_median(x))


MANY = (3, 40, 160)  # enough for a sample of a hundred and more, and to need many reads
HARD = {
    "a scale for each column": lambda rng: rng.normal(size=MANY) * rng.lognormal(0, 3, size=MANY[-1]),
    "few different numbers": lambda rng: rng.integers(-3, 4, size=MANY) / 7,
    "more than half are zero": lambda rng: np.maximum(rng.normal(size=MANY) - 0.1, 0),
    "two heaps far apart": lambda rng: np.where(rng.random(MANY) < 0.5, 1e-38, 1e38) * (1 + 0.01 * rng.random(MANY)),
    "the sample sees other numbers than there are": lambda rng: np.where(
        np.arange(MANY[1] * MANY[2]).reshape(MANY[1:]) % 63, rng.normal(size=MANY), 1e30
    ),
    "half and one more are infinite": lambda rng: np.where(
        np.arange(MANY[1] * MANY[2]).reshape(MANY[1:]) < 3199, rng.normal(size=MANY), np.inf
    ),
    "denormals": lambda rng: rng.normal(size=MANY) * 1e-42,
}


@pytest.mark.parametrize(
    ("dtype", "search"),
    [
        (np.float32, SEARCHES["default"]),
        (np.float32, Search(100, 2)),
        (np.float32, Search(0, 5)),
        (ml_dtypes.bfloat16, SEARCHES["cuda"]),
        (ml_dtypes.bfloat16, SEARCHES["tpu"]),
        (np.float16, Search(0, 15, 8)),
    ],
)
def test_median_of_any_numbers_by_any_search(dtype, search):
    find = jax.jit(lambda x, valid: median_magnitude(x, valid, search))
    for number, numbers in enumerate(HARD.values()):
        rng = np.random.default_rng(number)
        with np.errstate(over="ignore"):
            x = numbers(rng).astype(np.float32).astype(dtype)
        valid = rng.random(MANY[:2])[..., None] < np.array([1, 0.5, 0.2])[:, None, None]
        expected = [lower_median(row[own[:, 0]][None])[0] for row, own in zip(x, valid, strict=True)]
        # Bit for bit, as above.
        np.testing.assert_array_equal(np.asarray(find(x, valid)).view(np.uint32), np.stack(expected).view(np.uint32))


def test_a_nan_makes_a_median_nan_where_it_counts():
    x = np.ones((4, 3, 160), np.float32)
    x[1, 2, 7], x[2, :2], x[3, 0, 0] = np.nan, -np.nan, np.nan
    valid = np.array([[True, True, True]] * 3 + [[False, True, True]])[..., None]
    np.testing.assert_array_equal(jax.jit(median_magnitude)(x, valid), [1, np.nan, np.nan, 1])


def numpy_top_k(x, k):
    """Largest magnitudes first, ties to the lower index."""
    flat = x.astype(np.float32).reshape(len(x), -1)
    order = np.argsort(-np.abs(flat), axis=-1, kind="stable")[:, :k]
    return np.take_along_axis(flat, order, axis=-1), order


@pytest.mark.parametrize("k", [1, 3, 8])
@given(x=st.sampled_from(SHAPES).flatmap(float32_arrays))
@example(x=np.ones((3, 2, 7), np.float32))  # nothing but ties
@example(x=np.array([[0.0, -0.0, 1.0], [2.0, -2.0, 2.0]], np.float32)[:, None, :])
@settings(deadline=None, max_examples=60)
def test_top_k_equals_sorting(k, x):
    """k larger than a row, and than everything, included."""
    values, indices = top_k(x, k)
    expected_values, expected_indices = numpy_top_k(x, k)
    assert values.dtype == np.float32
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(values, expected_values)


def test_top_k_is_signed_and_largest_may_share_a_row():
    x = np.zeros((1, 4, 5), np.float32)
    x[0, 2] = [0, -9, 8, 0, -7]
    x[0, 3, 0] = 6
    values, indices = top_k(x, 4)
    assert values[0].tolist() == [-9, 8, -7, 6]
    assert indices[0].tolist() == [11, 12, 14, 15]


def test_top_k_of_what_counts_and_nan_before_all():
    x = np.array(
        [[[1, -2, 2], [np.nan, 5, 4]], [[0, 0, -0.0], [9, 9, 9]], [[7, -np.inf, 3], [-np.nan, 8, 8]]], np.float32
    )
    valid = np.array([[True, True], [True, False], [False, False]])[..., None]
    for dtype in (np.float32, ml_dtypes.bfloat16):
        values, indices = jax.jit(top_k_magnitude, static_argnums=1)(x.astype(dtype), 4, valid)
        np.testing.assert_array_equal(values, [[np.nan, 5, 4, -2], [0, 0, 0, 0], [0, 0, 0, 0]])
        assert indices.tolist() == [[3, 4, 5, 1], [0, 1, 2, -1], [-1, -1, -1, -1]]


def test_the_largest_of_many_is_nan_where_one_that_counts_is():
    """A maximum of floats that is compiled for a CPU may lose it."""
    x = np.random.default_rng(0).normal(size=(5, 30, 120)).astype(np.float32)
    for row, place in enumerate((0, 1799, 3599)):
        x[row].flat[place] = np.nan
    x[3:, 0], positions = np.nan, np.tile(np.arange(30, dtype=np.int32), (5, 1))
    positions[3:] -= 1  # padding
    found = jax.jit(Reductions(max=True), static_argnums=0)(SITES["block_out"], x, Coordinates({"T": positions}))
    np.testing.assert_array_equal(found.max, [np.nan] * 3 + np.abs(x[3:, 1:]).max(axis=(1, 2)).tolist())


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32])
def test_whole_numbers_are_numbers(dtype):
    x = np.array([[3, 1, 2, 700, 100]], dtype)
    assert median(x).tolist() == [3]
    assert [found.tolist() for found in top_k(x, 2)] == [[[700, 100]], [[3, 4]]]


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_they_can_be_compiled_for_other_platforms(platform):
    """As far as jax's own checks go, which need no such device."""

    def statistics(x, valid):
        return median_magnitude(x, valid), top_k_magnitude(x, 3, valid), moments(x, valid)

    for dtype in (jnp.bfloat16, jnp.float32):
        x, valid = jax.ShapeDtypeStruct((1, 256, 512), dtype), jax.ShapeDtypeStruct((1, 256, 1), bool)
        lowered = jax.jit(statistics).trace(x, valid).lower(lowering_platforms=(platform,)).as_text()
        counted = SEARCHES.get(platform, SEARCHES["default"]).thresholds
        # The widest reduction is of its search's thresholds, not another's.
        assert max(line.count(" init:") for line in lowered.splitlines()) == counted


def test_where_jax_has_64_bits_they_are_the_same():
    x = np.random.default_rng(0).normal(size=(2, 20, 160))
    valid = np.arange(20)[:, None] < np.array([20, 7])[:, None, None]
    with jax.enable_x64(True):
        found = jax.jit(lambda *a: (median_magnitude(*a), *top_k_magnitude(a[0], 3, a[1])))(x, valid)
    assert [a.dtype for a in found] == [np.float32, np.float32, np.int32]
    for b, own in enumerate((x[0], x[1, :7])):
        np.testing.assert_array_equal(found[0][b], lower_median(own[None].astype(np.float32))[0])
        for got, expected in zip(found[1:], numpy_top_k(own[None], 3), strict=True):
            np.testing.assert_array_equal(got[b], expected[0])


def test_derivatives_pass_by_a_median_and_through_the_largest():
    def statistics(x):
        return median_magnitude(x)[0], top_k_magnitude(x, 2)[0]

    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 160)).astype(np.float32))
    of_median, of_largest = jax.jit(jax.jacrev(statistics))(x)
    assert not of_median.any()
    indices = top_k(x, 2)[1]
    np.testing.assert_array_equal(of_largest.reshape(2, -1).argmax(axis=1), indices[0])
    assert of_largest.sum() == 2


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_moments(offset):
    """A mean far from zero is where one-pass formulas lose the variance."""
    x = (np.random.default_rng(0).gamma(2.0, size=(3, 50, 20)) + offset).astype(np.float32)
    exact = x.astype(np.float64).reshape(3, -1)
    centred = exact - exact.mean(axis=1, keepdims=True)
    mean, variance, kurtosis = jax.jit(moments)(x)
    np.testing.assert_allclose(mean, exact.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var(axis=1), rtol=1e-4)
    np.testing.assert_allclose(kurtosis, (centred**4).mean(axis=1) / exact.var(axis=1) ** 2, rtol=1e-3)


def test_moments_of_bfloat16_are_float32():
    x = np.random.default_rng(0).normal(size=(1, 4000)).astype(ml_dtypes.bfloat16)
    mean, variance, kurtosis = jax.jit(moments)(x)
    assert {mean.dtype, variance.dtype, kurtosis.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(variance, x.astype(np.float64).var(axis=1), rtol=1e-4)


def test_only_what_is_asked_for_is_computed():
    assert not Reductions()
    assert Reductions(median=True)
    stats = Reductions(top_k=2, variance=True)(SITES["block_out"], jnp.arange(12.0).reshape(1, 3, 4))
    present = {name for name, value in vars(stats).items() if value is not None}
    assert present == {"top_values", "top_indices", "variance"}
    assert stats.top_positions.tolist() == [[2, 2]]
    assert stats.top_dims.tolist() == [[3, 2]]
    assert Reductions(max=True)(SITES["block_out"], jnp.zeros((1, 3, 4))).top_dims is None
