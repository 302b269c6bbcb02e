"""DINOv2 and DINOv2 with registers against torch, at two resolutions."""

import numpy as np
import pytest
import transformers

from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 28,
    "patch_size": 7,
}


def reference(model_class, prefix="", down="fc2"):
    layer = prefix + "encoder.layer.{l}."
    return Reference(
        model_class,
        {
            "patch_embed": Place(prefix + "embeddings.patch_embeddings"),
            "embed": Place(prefix + "embeddings"),
            "attn_norm": Place(layer + "norm1"),
            "query": Place(layer + "attention.q_proj"),
            "key": Place(layer + "attention.k_proj"),
            "value": Place(layer + "attention.v_proj"),
            "attn_probs": Place(layer + "attention", item=1),
            "head_out": Place(layer + "attention.o_proj", "input"),
            "attn_out": Place(layer + "layer_scale1"),
            "mid": Place(layer + "norm2", "input"),
            "mlp_norm": Place(layer + "norm2"),
            "mlp_hidden": Place(layer + "mlp." + down, "input"),
            "mlp_out": Place(layer + "layer_scale2"),
            "block_out": Place(prefix + "encoder.layer.{l}"),
            "final_norm": Place(prefix + "layernorm"),
        },
    )


PLAIN = reference(transformers.Dinov2Model)
GATED = reference(transformers.Dinov2Model, down="down_proj")
REGISTERS = reference(transformers.Dinov2WithRegistersModel)
CLASSIFIER = reference(transformers.Dinov2WithRegistersForImageClassification, "dinov2_with_registers.")
CASES = {
    "another size": (PLAIN, {}, parity.OTHER_SIZE),
    "as the giant": (GATED, {"use_swiglu_ffn": True, "qkv_bias": False}, parity.IMAGES),
    "registers": (REGISTERS, {}, parity.IMAGES),
    "registers, a head, another size": (
        CLASSIFIER,
        {"num_labels": 5, "num_register_tokens": 3, "layer_norm_eps": 1e-3},
        parity.OTHER_SIZE,
    ),
}


def build(directory, reference=PLAIN, **changes):
    config_class = reference.model_class.config_class
    model = hf.random_model(reference, config_class(**SHAPE | changes))
    hf.save(model, directory)
    return model


@parity.each(CASES, quick=1)
def test_parity(tmp_path, case):
    reference, changes, images = CASES[case]
    parity.assert_parity(tmp_path, reference, build(tmp_path, reference, **changes), images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"use_swiglu_ffn": True},
            r"weights_in\.weight -> layers/mlp/gate/kernel[^§]*fc1\.weight has shape \[64, 32\], expected \[48",
        ),
        ({"num_channels": 4}, "num_channels = 4 is not implemented"),
        ({"image_size": 35}, r"position_embeddings has shape \[1, 17, 32\], expected \[1, 26, 32\]"),
        ({"patch_size": [7, 14]}, r"patches of \(7, 14\) pixels are not square"),
        ({"image_size": 6}, "at least one patch of 7"),
        ({"model_type": "dinov2_with_registers"}, r"missing from the checkpoint:[^§]*register_tokens -> registers"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


@pytest.mark.slow
def test_a_size_that_keeps_the_number_of_patches(tmp_path):
    """8 × 2 patches are as many as the native 4 × 4, and not at the same places."""
    images = np.random.default_rng(1).normal(size=(1, 56, 14, 3)).astype(np.float32)
    model = build(tmp_path, num_hidden_layers=1)
    parity.assert_parity(tmp_path, PLAIN, model, images)
