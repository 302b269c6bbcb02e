"""DINOv3's vision transformers against torch, at two resolutions."""

import pytest
import transformers

from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 7,
    "num_register_tokens": 3,
}
_LAYER = "model.layer.{l}."
REFERENCE = Reference(
    transformers.DINOv3ViTModel,
    {
        "patch_embed": Place("embeddings.patch_embeddings", part=lambda x: x.flatten(2).transpose(1, 2)),
        "embed": Place("embeddings"),
        "attn_norm": Place(_LAYER + "norm1"),
        "query": Place(_LAYER + "attention.q_proj"),
        "key": Place(_LAYER + "attention.k_proj"),
        "value": Place(_LAYER + "attention.v_proj"),
        "attn_probs": Place(_LAYER + "attention", item=1),
        "head_out": Place(_LAYER + "attention.o_proj", "input"),
        "attn_out": Place(_LAYER + "layer_scale1"),
        "mid": Place(_LAYER + "norm2", "input"),
        "mlp_norm": Place(_LAYER + "norm2"),
        "mlp_hidden": Place(_LAYER + "mlp.down_proj", "input"),
        "mlp_out": Place(_LAYER + "layer_scale2"),
        "block_out": Place("model.layer.{l}"),
        "final_norm": Place("norm"),
    },
)
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
CASES = {
    "default": ({}, parity.IMAGES),
    "as the largest, another size": (
        GATED | {"query_bias": False, "value_bias": False, "rope_theta": 30.0, "layer_norm_eps": 1e-3},
        parity.OTHER_SIZE,
    ),
    "biases everywhere, no registers": ({"key_bias": True, "num_register_tokens": 0}, parity.OTHER_SIZE),
}


def build(directory, **changes):
    model = hf.random_model(REFERENCE, transformers.DINOv3ViTConfig(**SHAPE | changes))
    hf.save(model, directory)
    return model


@parity.each(CASES)
def test_parity(tmp_path, case):
    changes, images = CASES[case]
    parity.assert_parity(tmp_path, REFERENCE, build(tmp_path, **changes), images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_bias": False}, "value_bias = False is not implemented"),
        ({"key_bias": True}, r"missing from the checkpoint:[^§]*k_proj\.bias -> "),
        ({"num_attention_heads": 16}, r"turns whole heads of 4·n dims"),
        ({"use_gated_mlp": True}, r"missing from the checkpoint:[^§]*gate_proj\.weight -> "),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)
