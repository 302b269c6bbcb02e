"""timm-named checkpoints: the tensors of a Hugging Face model under timm's names are the same model."""

import json

import numpy as np
import pytest
import safetensors.numpy
import transformers

from massive_jax.zoo import timm
from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.hf_reference import Reference

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
# Part of Hugging Face's name of a tensor -> timm's.
DINOV2 = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}
VIT = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "vit.layernorm": "norm",
    "classifier": "head",
}


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    for size, width in (("tiny", 128), ("giant", 88)):
        monkeypatch.setitem(timm._SIZES, size, (32, 2, 4, width))


SIGLIP = {
    "vision_model.embeddings.patch_embedding": "patch_embed.proj",
    "vision_model.encoder.layers.": "blocks.",
    "vision_model.post_layernorm": "norm",
    "vision_model.head.attention.out_proj": "attn_pool.proj",
    "vision_model.head.layernorm": "attn_pool.norm",
    "vision_model.head.mlp": "attn_pool.mlp",
    "vision_model.head.probe": "attn_pool.latent",
    "self_attn.out_proj": "attn.proj",
    "layer_norm": "norm",
    **{f"self_attn.{part[0]}_proj": f"attention.attention.{part}" for part in ("query", "key", "value")},
}


def renamed(tensors, names):
    """The tensors under timm's names, with query, key and value in one."""
    found = {}
    for name, x in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = x
    for layer in range(2):
        for leaf in ("weight", "bias"):
            parts = [
                found.pop(f"blocks.{layer}.attention.attention.{part}.{leaf}") for part in ("query", "key", "value")
            ]
            found[f"blocks.{layer}.attn.qkv.{leaf}"] = np.concatenate(parts)
    return found


def write(directory, tensors, architecture, **more):
    directory.mkdir()
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    fields = {"architecture": architecture, "num_features": 32, "global_pool": "token", **more}
    pretrained = {"input_size": [3, 28, 28], "mean": [0.5, 0.5, 0.5], "crop_pct": 0.9}
    (directory / "config.json").write_text(json.dumps({"pretrained_cfg": pretrained, **fields}))
    return directory


def test_dinov2_with_registers(tmp_path):
    """timm adds the class token's position to the token itself, once and for all."""
    reference = Reference(transformers.Dinov2WithRegistersModel, {})
    model = hf.random_model(reference, transformers.Dinov2WithRegistersConfig(**SHAPE))
    hf.save(model, tmp_path / "hf")
    tensors = renamed(safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors"), DINOV2)
    del tensors["embeddings.mask_token"]
    table = tensors.pop("embeddings.position_embeddings")
    tensors |= {"pos_embed": table[:, 1:], "cls_token": tensors["cls_token"] + table[:, :1]}
    ours = parity.load(write(tmp_path / "timm", tensors, "vit_tiny_patch7_reg4_dinov2", num_classes=0))
    expected = hf.run(reference, model, parity.OTHER_SIZE)["last_hidden"]
    assert hf.relative_error(ours(parity.OTHER_SIZE).last_hidden, expected) < parity.TOLERANCE
    assert ours.preprocess(np.zeros((40, 50, 3), np.uint8)).shape == (1, 28, 28, 3)


def test_dinov2_giant(tmp_path):
    """Gate and up are one tensor, called as the plain MLP's first is elsewhere."""
    reference = Reference(transformers.Dinov2Model, {})
    model = hf.random_model(reference, transformers.Dinov2Config(**SHAPE, use_swiglu_ffn=True))
    hf.save(model, tmp_path / "hf")
    names = {**DINOV2, "embeddings.position_embeddings": "pos_embed", "weights_in": "fc1", "weights_out": "fc2"}
    tensors = renamed(safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors"), names)
    del tensors["embeddings.mask_token"]
    ours = parity.load(write(tmp_path / "timm", tensors, "vit_giant_patch7_dinov2", num_classes=0))
    expected = hf.run(reference, model, parity.IMAGES)["last_hidden"]
    assert hf.relative_error(ours(parity.IMAGES).last_hidden, expected) < parity.TOLERANCE


def test_siglip(tmp_path):
    """A head of attention, whose key and value are one tensor; the exact GELU unless `model_args` say otherwise."""
    shape = {**SHAPE, "intermediate_size": 128, "hidden_act": "gelu"}
    reference = Reference(transformers.SiglipVisionModel, {})
    model = hf.random_model(reference, transformers.SiglipVisionConfig(**shape))
    hf.save(model, tmp_path / "hf")
    tensors = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    tensors = {name if name.startswith("vision_model.") else f"vision_model.{name}": x for name, x in tensors.items()}
    table = tensors.pop("vision_model.embeddings.position_embedding.weight")
    for leaf in ("weight", "bias"):
        fused = tensors.pop(f"vision_model.head.attention.in_proj_{leaf}")
        tensors |= {f"attn_pool.q.{leaf}": fused[:32], f"attn_pool.kv.{leaf}": fused[32:]}
    tensors = {**renamed(tensors, SIGLIP), "pos_embed": table[None]}
    fields = {"num_classes": 0, "global_pool": "map"}
    ours = parity.load(write(tmp_path / "timm", tensors, "vit_tiny_patch7_siglip_28", **fields))
    found = hf.run(reference, model, parity.IMAGES)
    assert hf.relative_error(ours(parity.IMAGES).pooled, found["pooled"]) < parity.TOLERANCE
    named = write(
        tmp_path / "named", tensors, "vit_tiny_patch7_siglip_28", **fields, model_args={"act_layer": "gelu_tanh"}
    )
    assert parity.load(named).config.activation == "gelu_tanh"


def test_vit_with_a_head(tmp_path):
    config = transformers.ViTConfig(**SHAPE, intermediate_size=128, num_labels=5, layer_norm_eps=1e-6)
    reference = Reference(transformers.ViTForImageClassification, {})
    model = hf.random_model(reference, config)
    hf.save(model, tmp_path / "hf")
    tensors = renamed(safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors"), VIT)
    ours = parity.load(write(tmp_path / "timm", tensors, "vit_tiny_patch7_28", num_classes=5))
    expected = hf.run(reference, model, parity.IMAGES)["logits"]
    assert hf.relative_error(ours(parity.IMAGES).logits, expected) < parity.TOLERANCE


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("resnet50", {}, "timm architecture 'resnet50' is not supported; supported are vit_SIZE_patchN_"),
        ("vit_tiny_patch7_siglip_gap_28", {}, "'vit_tiny_patch7_siglip_gap_28' is not supported"),
        ("vit_tiny_patch7_siglip_28", {}, "global_pool = 'token' is not implemented"),
        ("vit_giant_patch7_28", {}, "'vit_giant_patch7_28' is not supported"),
        ("vit_tiny_patch7_28", {"global_pool": "avg"}, "global_pool = 'avg' is not implemented"),
        ("vit_tiny_patch7_28", {"model_args": {"depth": 5}}, r"model_args {'depth': 5} are not implemented"),
        ("vit_tiny_patch7_dinov2", {"num_classes": 0}, r"missing from the checkpoint:[^§]*cls_token -> class_token"),
    ],
)
def test_settings_that_are_refused(tmp_path, architecture, changes, message):
    write(tmp_path / "timm", {"pos_embed": np.zeros((1, 17, 32), np.float32)}, architecture, **changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path / "timm")
