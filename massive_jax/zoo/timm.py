"""Checkpoints that timm's `VisionTransformer` wrote: ViT, ViT-MAE, CLIP's tower and DINOv2 under its names.

Their config.json names an architecture, which says the shape, and the model's `pretrained_cfg` the image size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from massive_jax.models import NormConfig, VisionConfig
from massive_jax.weights.table import Row, WeightTable, fused_rows
from massive_jax.zoo import images
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields

# Width, layers, heads; the MLPs are four times as wide.
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# What follows size and patch in an architecture's name -> options.
_CLIP = {"norm": NormConfig("layer", 1e-5), "embed_norm": True, "patch_bias": False}
_KINDS: Mapping[str, dict[str, Any]] = {
    "": {},
    "dinov2": {"layer_scale": True},
    "reg4_dinov2": {"layer_scale": True, "registers": 4, "class_position": False},
    "clip": _CLIP,
    "clip_quickgelu": {**_CLIP, "activation": "gelu_quick"},
}
_NAME = re.compile(
    rf"vit_(?P<size>{'|'.join(_SIZES)})_patch(?P<patch>\d+)_?(?P<kind>{'|'.join(filter(None, _KINDS))}|)(_?\d+)?"
)


def config(fields: Fields) -> VisionConfig:
    """A config.json of timm -> VisionConfig. Its `pretrained_cfg` is about preprocessing, except for the image size."""
    name = fields.require("architecture")
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{fields.location}: timm architecture {name!r} is not supported; supported are vit_SIZE_patchN_… with "
            f"SIZE {', '.join(_SIZES)} and … an image size, {', '.join(filter(None, _KINDS))}."
        )
    hidden_size, num_layers, num_heads = _SIZES[found["size"]]
    pretrained = dict(fields.require("pretrained_cfg"))
    channels, height, width = pretrained.get("input_size", (3, 224, 224))
    # Changes to what the architecture's name says.
    changes = dict(fields.get("model_args", {}))
    side = changes.pop("img_size", None)
    if channels != 3 or changes or side not in (None, height, [height, width]):
        raise ValueError(
            f"{fields.location}: input_size {[channels, height, width]} and model_args {fields.get('model_args')} are "
            "not implemented: only images of 3 channels and the architecture's own arguments."
        )
    fields.only("global_pool", "token")
    fields.ignore("num_features", "label_names", "label_descriptions")
    return VisionConfig(
        image_size=(height, width),
        patch_size=int(found["patch"]),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=4 * hidden_size,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        interpolation="bicubic_antialias",
        num_classes=fields.get("num_classes", 1000),
        model_type="timm",
        **{"norm": NormConfig("layer", 1e-6), **_KINDS[found["kind"]]},
    )


_LAYER = "blocks.{l}."

TABLE = WeightTable(
    rows=(
        Row("cls_token", "class_token", "11D->D"),
        Row("reg_token", "registers", "1ZD->ZD"),
        Row("pos_embed", "position_embedding", "1MD->MD"),
        *images.patch_rows("patch_embed.proj"),
        *images.norm_rows({"norm_pre": "embed_norm", "norm": "norm"}),
        *images.head_rows("head"),
        *images.norm_rows({_LAYER + "norm1": "layers/attn_norm", _LAYER + "norm2": "layers/mlp_norm"}),
        *fused_rows(_LAYER + "attn.qkv", "(QHN)D->DHN", "(QHN)->HN"),
        *images.linear_rows(_LAYER + "attn.proj", "layers/attn/out", "D(HN)->HND"),
        Row(_LAYER + "ls1.gamma", "layers/attn_scale"),
        Row(_LAYER + "ls2.gamma", "layers/mlp_scale"),
        *images.mlp_rows(_LAYER + "mlp.fc1", _LAYER + "mlp.fc2"),
    ),
)


def _preset(architecture: str, tag: str, num_params: int, side: int, classes: int, licence: str) -> Preset:
    shape = {
        "model_type": "timm",
        "architecture": architecture,
        "num_classes": classes,
        "pretrained_cfg": {"input_size": [3, side, side]},
    }
    return Preset(f"timm/{architecture}.{tag}", num_params, licence, shape)


FAMILY = Family(
    model_type="timm",
    config=config,
    table=TABLE,
    presets={
        "timm_vit_base_16": _preset(
            "vit_base_patch16_224", "augreg_in21k_ft_in1k", 86_567_656, 224, 1000, "Apache-2.0"
        ),
        "timm_mae_large_16": _preset("vit_large_patch16_224", "mae", 303_301_632, 224, 0, "CC-BY-NC-4.0"),
        "timm_clip_large_14": _preset(
            "vit_large_patch14_clip_quickgelu_224", "openai", 303_966_976, 224, 768, "Apache-2.0"
        ),
        "timm_dinov2_large": _preset("vit_large_patch14_dinov2", "lvd142m", 304_367_616, 518, 0, "Apache-2.0"),
        "timm_dinov2_reg_large": _preset("vit_large_patch14_reg4_dinov2", "lvd142m", 304_370_688, 518, 0, "Apache-2.0"),
    },
)
