"""Arrays written out in the order of their axes, into memory that is used again."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from massive_jax.weights import layout

DTYPES = st.sampled_from([np.float32, ml_dtypes.bfloat16, np.float64, np.float16])


@given(st.data())
def test_permuted_arrays_are_written_out_in_blocks(data):
    """Whatever the axes, their order, the blocks and the width of a number, stored and wanted."""
    shape = tuple(data.draw(st.lists(st.integers(1, 9), max_size=4), label="shape"))
    order = data.draw(st.permutations(range(len(shape))), label="order")
    x = np.asarray(np.arange(math.prod(shape)) / 7).astype(data.draw(DTYPES, label="stored")).reshape(shape)
    if shape:
        x = x[data.draw(st.sampled_from([np.s_[:], np.s_[1:], np.s_[::2]]))]
    x = x.transpose(order)
    got = np.full(x.shape, -1, data.draw(DTYPES, label="wanted"))
    with pytest.MonkeyPatch.context() as patched:
        block = (data.draw(st.integers(1, 12)), layout._PADDING + data.draw(st.integers(1, 5)))
        patched.setattr(layout, "_BLOCK", block)
        layout.write(x, got)
    np.testing.assert_array_equal(got, x.astype(got.dtype))


@given(st.data())
def test_memory_holds_one_group_of_arrays_after_another(data):
    memory = layout.Memory()
    for _ in range(3):
        found = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4))
        shapes = {str(i): tuple(shape) for i, shape in enumerate(found)}
        dtype = data.draw(DTYPES)
        arrays = memory.arrays(shapes, dtype)
        assert {name: x.shape for name, x in arrays.items()} == shapes
        for i, x in enumerate(arrays.values()):
            assert x.dtype == dtype
            assert x.flags.c_contiguous
            assert x.ctypes.data % layout._ALIGNMENT == 0 or not x.size
            x[...] = i
        assert all((x == i).all() for i, x in enumerate(arrays.values()))  # none lies on another


def test_memory_is_used_again():
    memory = layout.Memory()
    first = memory.arrays({"a": (300,), "b": (20, 5)}, np.float32)
    then = memory.arrays({"c": (10, 10)}, np.float32)
    assert np.shares_memory(first["a"], then["c"])
