"""ViT and the encoder of ViT-MAE against torch, at two resolutions."""

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


def interpolated(images):
    return {"interpolate_pos_encoding": True}


def unmasked(images):
    """Hugging Face shuffles the patches by this noise even where it masks none."""
    noise = np.arange(images.shape[1] * images.shape[2] // 7**2, dtype=np.float32)
    return interpolated(images) | {"noise": hf.torch.from_numpy(np.tile(noise, (len(images), 1)))}


def reference(model_class, prefix="", options=interpolated):
    layer = prefix + "layers.{l}."
    return Reference(
        model_class,
        {
            "patch_embed": Place(prefix + "embeddings.patch_embeddings"),
            "embed": Place(prefix + "embeddings"),
            "attn_norm": Place(layer + "layernorm_before"),
            "query": Place(layer + "attention.q_proj"),
            "key": Place(layer + "attention.k_proj"),
            "value": Place(layer + "attention.v_proj"),
            "attn_probs": Place(layer + "attention", item=1),
            "head_out": Place(layer + "attention.o_proj", "input"),
            "attn_out": Place(layer + "attention"),
            "mid": Place(layer + "layernorm_after", "input"),
            "mlp_norm": Place(layer + "layernorm_after"),
            "mlp_hidden": Place(layer + "mlp.fc2", "input"),
            "mlp_out": Place(layer + "mlp"),
            "block_out": Place(prefix + "layers.{l}"),
            "final_norm": Place(prefix + "layernorm"),
        },
        options,
    )


POOLED = reference(transformers.ViTModel)
CLASSIFIER = reference(transformers.ViTForImageClassification, "vit.")
MAE = reference(transformers.ViTMAEModel, options=unmasked)
MAE_WITH_DECODER = reference(transformers.ViTMAEForPreTraining, "vit.", unmasked)
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 8,
    "decoder_num_attention_heads": 2,
}
CASES = {
    "with a pooler": (POOLED, {"layer_norm_eps": 1e-3}, parity.IMAGES),
    "with a head, another size": (CLASSIFIER, {"num_labels": 5, "qkv_bias": False}, parity.OTHER_SIZE),
    "mae": (MAE, {"mask_ratio": 0.0}, parity.IMAGES),
    "mae, another size": (MAE, {"mask_ratio": 0.0, "hidden_act": "relu"}, parity.OTHER_SIZE),
}


def build(directory, reference, **changes):
    config_class = reference.model_class.config_class
    model = hf.random_model(reference, config_class(**SHAPE | changes))
    hf.save(model, directory)
    return model


@parity.each(CASES)
def test_parity(tmp_path, case):
    reference, changes, images = CASES[case]
    parity.assert_parity(tmp_path, reference, build(tmp_path, reference, **changes), images)


def test_the_decoder_of_mae_is_left_out(tmp_path):
    model = build(tmp_path, MAE_WITH_DECODER, mask_ratio=0.0, num_hidden_layers=1, **DECODER)
    ours = parity.load(tmp_path)
    alone = Reference(transformers.ViTMAEModel, {}, unmasked)
    theirs = hf.run(alone, model.vit, parity.IMAGES)["last_hidden"]
    assert hf.relative_error(ours(parity.IMAGES).last_hidden, theirs) < parity.TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooler_act": "relu"}, "pooler_act = 'relu' is not implemented"),
        ({"pooler_output_size": 16}, "pooler_output_size = 16 is not implemented"),
        ({"architectures": None}, r"not in this model:[^§]*classifier\.weight \[2, 32\]"),
        ({"model_type": "dinov2"}, r"intermediate_size = 48"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path, CLASSIFIER)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)
