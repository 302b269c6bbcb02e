"""What a caller's numbers must be."""

import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax.arguments import number, seed_number, several, shown, whole_number, yes_or_no

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), jnp.int32(3), np.array(3)])
def test_whole_numbers(value):
    found = whole_number("n", value, 3, 3)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [2, 4, 3.0, "3", None, True, np.float32(3), np.array([3]), [3], b"3", 10**400])
def test_no_whole_numbers(value):
    with pytest.raises(ValueError, match=r"^n is .*; give a whole number from 3 to 3\.$") as caught:
        whole_number("n", value, 3, 3)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int8(2), jnp.bfloat16(2), jnp.float32(2)])
def test_numbers(value):
    found = number("x", value, 1, 2)
    assert (found, type(found)) == (2.0, float)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 2.1, 0.9, "2", None, True, [2.0], 2j, np.array([1, 2]), 10**400])
def test_no_numbers(value):
    with pytest.raises(ValueError, match=r"^x is .*; give a finite number from 1 to 2\.$"):
        number("x", value, 1, 2)


def test_seeds_have_32_bits():
    assert [seed_number(s) for s in (0, 7, (1 << 32) - 1, -1)] == [0, 7, (1 << 32) - 1, (1 << 32) - 1]
    for bad in (1 << 32, -(1 << 31) - 1, 0.0, None, "0", False):
        with pytest.raises(ValueError, match="seed is"):
            seed_number(bad)


def test_yes_or_no():
    assert [yes_or_no("b", value) for value in (True, np.False_)] == [True, False]
    for bad in (1, 0, "True", None, np.array([True])):
        with pytest.raises(ValueError, match="b is .*; give True or False"):
            yes_or_no("b", bad)


def test_several():
    assert several(range(2)) == several(np.arange(2)) == several(iter([0, 1])) == (0, 1)
    assert [several(x) for x in ("ab", b"ab", {"a": 1}, 5, None, np.array(5))] == [None] * 6


def test_shown_is_one_short_line():
    assert shown("a\nb") == r"'a\nb'"
    assert shown(np.arange(3)) == "[0, 1, 2]"
    assert "\n" not in shown(np.zeros((50, 50)))
    assert len(shown("x" * 1000)) == 80
