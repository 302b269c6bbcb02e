"""Published linear heads: the same numbers from every format, and nothing run from a pickle."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch

from massive_jax.weights.linear_head import read_linear_head
from massive_jax.weights.torch_zip import read_torch_zip


@pytest.fixture(scope="module")
def head():
    return torch.nn.Linear(6, 3)


def test_same_head_from_every_format(tmp_path, head):
    weight, bias = (x.detach().numpy() for x in (head.weight, head.bias))
    torch.save(head.state_dict(), tmp_path / "head.pth")
    np.savez(tmp_path / "head.npz", weight=weight, bias=bias)
    safetensors.numpy.save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    for name in ("head.pth", "head.npz", "head.safetensors"):
        found = read_linear_head(tmp_path / name)
        np.testing.assert_array_equal(found.weight, weight)
        np.testing.assert_array_equal(found.bias, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_torch_tensors_of_all_layouts(tmp_path, dtype):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    tensors = {
        "plain": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "row": base[3],
        "none": base[:0],
        "one": base[2, 3],
    }
    torch.save(tensors | {"parameter": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pth")
    found = read_torch_zip(tmp_path / "x.pth")
    assert found.keys() == {*tensors, "parameter"}
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        np.testing.assert_array_equal(found[name].astype(np.float64), tensor.double().numpy())


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/massive_jax_was_here",)


def rewritten(source, target, change):
    """A copy of a zip archive with its members passed through `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_what_is_no_tensor_is_refused(tmp_path, head):
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="refused: its pickle names posix.system"):
        read_linear_head(tmp_path / "evil.pth")
    assert not os.path.exists("/tmp/massive_jax_was_here")
    torch.save(head, tmp_path / "module.pth")
    with pytest.raises(ValueError, match="refused: its pickle names torch.nn.modules"):
        read_linear_head(tmp_path / "module.pth")
    for value, message in [({"weight": 1.0}, "not hold a dict of tensors"), ([torch.ones(2)], "not hold a dict")]:
        torch.save(value, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            read_linear_head(tmp_path / "x.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(ValueError, match="bare pickles"):
        read_linear_head(tmp_path / "bare.pth")
    torch.save(head.state_dict(), tmp_path / "good.pth")
    rewritten(tmp_path / "good.pth", tmp_path / "cut.pth", lambda name, b: b[:-4] if name.endswith("data/0") else b)
    with pytest.raises(ValueError, match="storage 0 has 68 bytes for 18 numbers"):
        read_linear_head(tmp_path / "cut.pth")
    rewritten(tmp_path / "good.pth", tmp_path / "cut.pth", lambda name, b: b[:40] if name.endswith(".pkl") else b)
    with pytest.raises(ValueError, match="cut.pth"):
        read_linear_head(tmp_path / "cut.pth")
    huge = torch.zeros(1).as_strided((1 << 20, 1 << 20), (0, 0))
    torch.save({"weight": huge}, tmp_path / "huge.pth")
    with pytest.raises(ValueError, match="does not fit its storage of 1 numbers"):
        read_linear_head(tmp_path / "huge.pth")


def test_other_files(tmp_path):
    np.savez(tmp_path / "x.npz", weight=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"expected tensors weight .* found weight \[2, 3\]"):
        read_linear_head(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", weight=np.ones((2, 3)), bias=np.ones(3))
    with pytest.raises(ValueError, match=r"bias \[3\]"):
        read_linear_head(tmp_path / "x.npz")
    for name in ("x.safetensors", "y.npz"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(ValueError, match="no whole safetensors file|no .npz file"):
            read_linear_head(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be opened"):
        read_linear_head(tmp_path / "missing.pth")
