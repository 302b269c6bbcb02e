"""Register means: the file they are released in, and what is massive in them."""

import numpy as np
import pytest

from massive_jax.analysis import RegisterMeans, find_massive
from massive_jax.files import write_arrays


@pytest.fixture
def giant():
    """Shaped as the means of DINOv2-reg giant, with its values (PAPER.md) at layer 20 on noise."""
    values = np.random.default_rng(0).normal(size=(40, 4, 1536)).astype(np.float32) * 0.4
    values[20, 2, 179], values[20, 2, 999] = -849.4, 671.1
    return values


def test_massive_dims_and_edits(giant):
    means = RegisterMeans(giant)
    found = find_massive(means.locations(20))
    assert [(f.position, f.dim) for f in found] == [(3, 179), (3, 999)]
    np.testing.assert_allclose([f.value for f in found], [-849.4, 671.1], rtol=1e-6)
    assert not find_massive(means.locations(19))
    edits = means.edits(first=1)
    assert len(edits) == 160
    assert (edits[2].site, edits[2].layer, edits[2].position) == ("embed", None, 3)
    edit = edits[20 * 4 + 2]
    assert (edit.site, edit.layer, edit.position, edit.op) == ("block_out", 20, 3, "set")
    np.testing.assert_array_equal(edit.value, giant[20, 2])


def test_file_holds_the_array_of_the_right_model(tmp_path, giant):
    small = np.ones((12, 4, 384), np.float32)
    path = tmp_path / "means.npz"
    write_arrays(path, small=small, giant=giant)
    np.testing.assert_array_equal(RegisterMeans.read(path, (40, 4, 1536)).values, giant)
    with pytest.raises(ValueError, match=r"\[12, 4, 768\]; the file has small \[12, 4, 384\], giant .*another model"):
        RegisterMeans.read(path, (12, 4, 768))
    write_arrays(path, one=small, two=small)
    with pytest.raises(ValueError, match="which one is not clear"):
        RegisterMeans.read(path, small.shape)
    write_arrays(path, means=np.where(small == 1, np.nan, small))
    with pytest.raises(ValueError, match="not finite"):
        RegisterMeans.read(path, small.shape)
    write_arrays(path, means=np.full(small.shape, "a"))
    with pytest.raises(ValueError, match="means is <U1"):
        RegisterMeans.read(path, small.shape)
    np.savez(path, means=np.array([None]))
    with pytest.raises(ValueError, match="no .npz file"):
        RegisterMeans.read(path, small.shape)
    path.write_text("text")
    with pytest.raises(ValueError, match="no .npz file"):
        RegisterMeans.read(path, small.shape)
    np.save(tmp_path / "means.npy", small)
    with pytest.raises(ValueError, match="no .npz file"):
        RegisterMeans.read(tmp_path / "means.npy", small.shape)
