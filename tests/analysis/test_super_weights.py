"""What the weights of an MLP alone tell, on arrays."""

import numpy as np
import pytest

from massive_jax.analysis import (
    Gain,
    find_signature,
    largest_gain,
    largest_others,
    mlp_gains,
    rank_of,
    told_from_weights,
)

D, F = 6, 9


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {"down": rng.normal(size=(F, D)), "up": rng.normal(size=(D, F)), "gate": rng.normal(size=(D, F))}


@pytest.fixture(scope="module")
def inputs():
    """Of norm √D, as a norm makes them."""
    x = np.random.default_rng(1).normal(size=(20000, D))
    return x * np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)


SCALE = np.linspace(0.5, 2, D)


@pytest.mark.parametrize("centred", [False, True])
def test_no_input_exceeds_the_gain_of_a_gated_unit(weights, inputs, centred):
    gains = mlp_gains(**weights, scale=SCALE, centred=centred)
    x = inputs
    if centred:  # as a layer norm makes them
        x = x - x.mean(axis=1, keepdims=True)
        x *= np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.abs((x * SCALE) @ weights["gate"] * ((x * SCALE) @ weights["up"])).max(axis=0)
    written = unit[:, None] * np.abs(weights["down"])
    assert (written <= gains * (1 + 1e-5)).all()
    assert (written >= 0.8 * gains).mean() > 0.9  # and some come close


@pytest.mark.parametrize("squared", [False, True])
def test_no_input_exceeds_the_gain_of_a_plain_unit(weights, inputs, squared):
    shift, bias = np.linspace(-1, 1, D), np.linspace(0, 1, F)
    gains = mlp_gains(weights["down"], weights["up"], squared=squared, scale=SCALE, shift=shift, up_bias=bias)
    unit = np.maximum((inputs * SCALE + shift) @ weights["up"] + bias, 0).max(axis=0)
    written = (unit**2 if squared else unit)[:, None] * np.abs(weights["down"])
    assert (written <= gains * (1 + 1e-5)).all()
    assert (written >= 0.7 * gains).mean() > 0.9


def test_a_norm_on_the_output_leaves_the_direction(weights):
    out_scale = np.linspace(1, 3, D)
    gains = mlp_gains(**weights, out_scale=out_scale)
    y = 17.0 * weights["down"]  # of one unit, whatever its size
    np.testing.assert_allclose(gains, np.abs(y) / np.sqrt((y**2).mean(axis=1, keepdims=True)) * out_scale, rtol=1e-5)


def test_ranks_and_the_others():
    matrix = np.array([[1.0, -7.0, 2.0], [5.0, 0.5, -6.0]])
    assert [rank_of(matrix, 0, 1), rank_of(matrix, 1, 2), rank_of(matrix, 1, 1)] == [1, 2, 6]
    rows, columns = largest_others(matrix, 1, 2, 2)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(0, 1), (1, 0)}
    rows, columns = largest_others(matrix, 0, 1, 99)
    assert len(rows) == 5
    assert (0, 1) not in zip(rows.tolist(), columns.tolist(), strict=True)


def signature(**changes):
    found = {
        "positions": np.array([0, 0, 0, 4]),
        "dims": np.array([7, 7, 7, 7]),
        "units": np.array([2, 2, 2, 3]),
        "outputs": np.array([10.0, 20.0, 30.0, 999.0]),
        "hidden": np.array([1.0, 2.0, 3.0, 999.0]),
        "median": np.array([1.0, 1.0, 1.0, 0.0]),
    }
    return find_signature(12, {**found, **changes})


def test_a_signature_is_what_most_windows_agree_on():
    found = signature()
    assert (found.layer, found.position, found.unit, found.dim, found.share) == (12, 0, 2, 7, 0.75)
    assert (found.output, found.hidden, found.ratio) == (20.0, 2.0, 20.0)


def gains(*rows):
    return [Gain(layer=i + 1, gain=gain, unit=unit, dim=dim) for i, (gain, unit, dim) in enumerate(rows)]


def test_the_earlier_of_the_two_largest_is_named():
    others = [(1.0 + i, 1, 1) for i in range(11)]
    told = told_from_weights(gains(*others, (50.0, 2, 7), (2.0, 0, 0), (340.0, 5, 7)), signature())
    assert (told.largest_layer, told.named_layer, told.birth_layer, told.birth_rank) == (14, 12, 12, 2)
    assert told.names_birth
    assert told.names_weight
    told = told_from_weights(gains(*others, (5.0, 3, 7), (400.0, 0, 0)), signature())
    assert (told.named_layer, told.names_birth, told.names_weight) == (13, False, False)


def test_the_largest_gain():
    found = largest_gain(3, np.array([[1.0, 2.0], [9.0, 0.0]]))
    assert found == Gain(layer=3, gain=9.0, unit=1, dim=0)
