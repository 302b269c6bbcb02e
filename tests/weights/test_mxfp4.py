"""MXFP4 against transformers' and gguf's own unpacking."""

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from massive_jax.weights import mxfp4
from massive_jax.weights.source import TensorInfo


def test_every_byte_and_scale():
    """All 256 bytes, at scales from bfloat16's smallest normal number up."""
    scales = np.arange(2, 252, dtype=np.uint8).reshape(5, 50, 1).repeat(16, axis=2)
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (5, 50, 16, 16))
    ours = mxfp4.dequantise(blocks, scales)
    assert ours.dtype == ml_dtypes.bfloat16
    theirs = convert_moe_packed_tensors(torch.from_numpy(blocks.copy()), torch.from_numpy(scales))
    assert theirs.shape == ours.shape == (5, 512, 50)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs.float().numpy())


def test_agrees_with_gguf():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.MXFP4
    packed = gguf.quants.quantize(x, kind).reshape(3, 2, 17)
    # There a block's first half is the lower four bits of its bytes, its second half the upper ones.
    halves = np.concatenate([packed[..., 1:] & 15, packed[..., 1:] >> 4], axis=-1)
    blocks = halves[..., ::2] | (halves[..., 1::2] << 4)
    ours = mxfp4.dequantise(blocks, packed[..., 0])
    np.testing.assert_array_equal(ours.T.astype(np.float32), gguf.quants.dequantize(packed.reshape(3, 34), kind))


def test_pairs_become_one_tensor():
    tensors = {
        "a_blocks": TensorInfo((4, 6, 2, 16), "uint8"),
        "a_scales": TensorInfo((4, 6, 2), "uint8"),
        "b_blocks": TensorInfo((4, 6, 2, 16), "uint8"),  # alone
        "c_scales": TensorInfo((3,), "float32"),
    }
    assert mxfp4.unpacked(tensors) == {
        "a": TensorInfo((4, 64, 6), "bfloat16"),
        "b_blocks": tensors["b_blocks"],
        "c_scales": tensors["c_scales"],
    }


@pytest.mark.parametrize(
    "change",
    [
        {"a_blocks": TensorInfo((4, 6, 2, 8), "uint8")},
        {"a_scales": TensorInfo((4, 6, 1), "uint8")},
        {"a": TensorInfo((4, 64, 6), "bfloat16")},
    ],
)
def test_pairs_that_do_not_fit(change):
    tensors = {"a_blocks": TensorInfo((4, 6, 2, 16), "uint8"), "a_scales": TensorInfo((4, 6, 2), "uint8")}
    with pytest.raises(ValueError, match="a_blocks .* and a_scales .* are not a tensor in MXFP4"):
        mxfp4.unpacked(tensors | change)
