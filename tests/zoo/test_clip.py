"""The vision towers of CLIP and SigLIP against torch, alone and inside a full checkpoint, at two resolutions."""

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
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 99}
# Special tokens within that vocabulary.
TEXT |= {"bos_token_id": 0, "eos_token_id": 2}


def reference(model_class, embed, **more):
    layer = "encoder.layers.{l}."
    return Reference(
        model_class,
        {
            "patch_embed": Place("embeddings.patch_embedding", part=lambda pixels: pixels.flatten(2).transpose(1, 2)),
            "embed": Place(embed),
            "attn_norm": Place(layer + "layer_norm1"),
            "query": Place(layer + "self_attn.q_proj"),
            "key": Place(layer + "self_attn.k_proj"),
            "value": Place(layer + "self_attn.v_proj"),
            "attn_probs": Place(layer + "self_attn", item=1),
            "head_out": Place(layer + "self_attn.out_proj", "input"),
            "attn_out": Place(layer + "self_attn"),
            "mid": Place(layer + "layer_norm2", "input"),
            "mlp_norm": Place(layer + "layer_norm2"),
            "mlp_hidden": Place(layer + "mlp.fc2", "input"),
            "mlp_out": Place(layer + "mlp"),
            "block_out": Place("encoder.layers.{l}"),
            **more,
        },
        lambda images: {"interpolate_pos_encoding": True},
    )


CLIP = reference(transformers.CLIPVisionModel, "pre_layrnorm")
SIGLIP = reference(transformers.SiglipVisionModel, "embeddings", final_norm=Place("post_layernorm"))
CASES = {
    "clip": (CLIP, {"layer_norm_eps": 1e-3}, parity.IMAGES),
    "clip, another size": (CLIP, {"hidden_act": "gelu"}, parity.OTHER_SIZE),
    "siglip": (SIGLIP, {"layer_norm_eps": 1e-3}, parity.IMAGES),
    "siglip without its head, another size": (SIGLIP, {"vision_use_head": False}, parity.OTHER_SIZE),
}
FULL = {
    "clip": (transformers.CLIPModel, transformers.CLIPConfig),
    "siglip": (transformers.SiglipModel, transformers.SiglipConfig),
}


def build(directory, reference, **changes):
    config_class = reference.model_class.config_class
    model = hf.random_model(reference, config_class(**SHAPE | changes))
    hf.save(model, directory)
    return model


@parity.each(CASES, quick=1)
def test_parity(tmp_path, case):
    reference, changes, images = CASES[case]
    parity.assert_parity(tmp_path, reference, build(tmp_path, reference, **changes), images)


@pytest.mark.parametrize("family", FULL)
def test_the_tower_of_a_full_checkpoint(tmp_path, family):
    """An image size that the patches do not fill, too: the pixels over are left out, as a convolution does."""
    model_class, config_class = FULL[family]
    config = config_class(vision_config=SHAPE | {"image_size": 30, "num_hidden_layers": 1}, text_config=TEXT)
    model = hf.random_model(Reference(model_class, {}), config)
    hf.save(model, tmp_path)
    images = np.random.default_rng(2).normal(size=(1, 30, 30, 3)).astype("float32")
    theirs = hf.run(Reference(None, {}), model.vision_model, images)
    out = parity.load(tmp_path)(images)
    assert hf.relative_error(out.last_hidden, theirs["last_hidden"]) < parity.TOLERANCE
    assert hf.relative_error(out.pooled, theirs["pooled"]) < parity.TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "tanh"}, "activation 'tanh' is not implemented"),
        (
            {"model_type": "siglip_vision_model", "projection_dim": None, "initializer_factor": None},
            r"not in this model:[^§]*class_embedding",
        ),
        ({"patch_size": 14}, r"patch_embedding\.weight has shape \[32, 3, 7, 7\], expected \[32, 3, 14, 14\]"),
        ({"qkv_bias": True}, "qkv_bias = True"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path, CLIP)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)
