"""Checkpoints that timm's `VisionTransformer` wrote: ViT, ViT-MAE, towers of CLIP and SigLIP, DINOv2, by its names.

Their config.json names an architecture, which says the shape, and the model's `pretrained_cfg` the image size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from massive_jax.files import shown
from massive_jax.models import NormConfig, VisionConfig
from massive_jax.weights.table import Row, WeightTable, fused_rows
from massive_jax.zoo import images
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields

# Width, layers, heads, width of the MLPs.
_SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "huge": (1280, 32, 16, 5120),
    "giant": (1536, 40, 24, 4096),
}
_GATED = "giant"  # DINOv2's giant; another one, of ViT alone, is not known here
# What follows size and patch in an architecture's name -> options.
_CLIP = {"norm": NormConfig("layer", 1e-5), "embed_norm": True, "patch_bias": False}
_KINDS: Mapping[str, dict[str, Any]] = {
    "": {},
    "dinov2": {"layer_scale": True},
    "reg4_dinov2": {"layer_scale": True, "registers": 4, "class_position": False},
    "clip": _CLIP,
    "clip_quickgelu": {**_CLIP, "activation": "gelu_quick"},
    "siglip": {"class_token": False, "pooling": "attention"},
}
# SigLIP's exact GELU but in these: as timm has them, whatever the weights were trained with.
_TANH = ("vit_base_patch32_siglip", "vit_large_patch16_siglip_512", "vit_so400m_patch16_siglip")
_ACTIVATIONS = ("gelu", "gelu_tanh")  # that `model_args` may name
_NAME = re.compile(
    rf"vit_(?P<size>{'|'.join(_SIZES)})_patch(?P<patch>\d+)_?(?P<kind>{'|'.join(filter(None, _KINDS))}|)(_?\d+)?"
)


def config(fields: Fields) -> VisionConfig:
    """Maps a config.json of timm to a VisionConfig. Its `pretrained_cfg` is about preprocessing, and image size."""
    name = fields.text("architecture")
    found = _NAME.fullmatch(name)
    if found is None or (found["size"] == _GATED and "dinov2" not in found["kind"]):
        raise ValueError(
            f"timm architecture {shown(name)} is not supported; supported are vit_SIZE_patchN_… with "
            f"SIZE {', '.join(_SIZES)} and … an image size, {', '.join(filter(None, _KINDS))}."
        )
    hidden_size, num_layers, num_heads, intermediate_size = _SIZES[found["size"]]
    pretrained = fields.part("pretrained_cfg")
    pretrained.ignore_rest()
    channels, *sides = pretrained.sizes("input_size", (3, 224, 224), most=images.MOST_PIXELS)
    height, width = sides
    # Changes to what the architecture's name says.
    changes = dict(fields.mapping("model_args") or {})
    side, activation = changes.pop("img_size", None), changes.pop("act_layer", None)
    activation = activation or ("gelu_tanh" if name.startswith(_TANH) else "gelu")
    if channels != 3 or changes or activation not in _ACTIVATIONS or side not in (None, height, [height, width]):
        fields.problem(
            f"input_size {[channels, height, width]} and model_args {shown(fields.get('model_args'))} are not "
            "implemented: only images of 3 channels and the architecture's own arguments"
        )
        fields.check()
    options = {"norm": NormConfig("layer", 1e-6), "activation": activation, **_KINDS[found["kind"]]}
    if found["size"] == _GATED:
        options |= {"mlp": "gated", "activation": "silu"}
    fields.only("global_pool", "map" if options.get("pooling") == "attention" else "token")
    fields.ignore("num_features", "label_names", "label_descriptions")
    return VisionConfig(
        image_size=(height, width),
        patch_size=int(found["patch"]),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=intermediate_size,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        interpolation="bicubic_antialias",
        num_classes=fields.integer("num_classes", 1000),
        model_type=model_type(name),
        **options,
    )


def fields_of(config: VisionConfig) -> dict[str, Any]:
    """Gives a config.json of timm, without what its `pretrained_cfg` says of preprocessing: the inverse of `config`.

    A shape that no architecture has gets a name that is none.
    """
    shape = (config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size)
    size = next((name for name, known in _SIZES.items() if known == shape), "custom")
    if config.layer_scale or config.registers:
        kind = "reg4_dinov2" if config.registers else "dinov2"
    elif not config.class_token:
        kind = "siglip"
    else:
        kind = ("clip_quickgelu" if config.activation == "gelu_quick" else "clip") if config.embed_norm else ""
    name = "_".join(filter(None, ["vit", size, f"patch{config.patch_size}", kind or str(config.image_size[0])]))
    changes = {}
    if config.activation in _ACTIVATIONS and config.activation != ("gelu_tanh" if name.startswith(_TANH) else "gelu"):
        changes["act_layer"] = config.activation
    return {
        "architecture": name,
        "num_classes": config.num_classes,
        "num_features": config.hidden_size,
        "global_pool": "map" if config.pooling == "attention" else "token",
        "pretrained_cfg": {"input_size": [3, *config.image_size]},
        **({"model_args": changes} if changes else {}),
    }


def model_type(architecture: str) -> str:
    """Gives the family, as this project calls it, of an architecture of timm: the giant's MLP is stored another way."""
    return "timm_gated" if f"_{_GATED}_" in architecture else "timm"


_LAYER = "blocks.{l}."

_MLP = (_LAYER + "mlp.fc1", _LAYER + "mlp.fc2")
_POOL = "attn_pool."


def _table(*mlp: Row) -> WeightTable:
    return WeightTable(
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
            *mlp,
            # SigLIP's head.
            Row(_POOL + "latent", "pool/probe", "11D->D"),
            *images.linear_rows(_POOL + "q", "pool/query", "(HN)D->DHN", "(HN)->HN"),
            *(
                Row(f"{_POOL}kv.{leaf}", f"pool/{part}/{to}", axes, take=("U", str(index)))
                for index, part in enumerate(("key", "value"))
                for leaf, to, axes in (("weight", "kernel", "(UHN)D->DHN"), ("bias", "bias", "(UHN)->HN"))
            ),
            *images.linear_rows(_POOL + "proj", "pool/out", "D(HN)->HND"),
            *images.norm_rows({_POOL + "norm": "pool/norm"}),
            *images.mlp_rows(_POOL + "mlp.fc1", _POOL + "mlp.fc2", "pool/mlp"),
        ),
    )


def _preset(architecture: str, tag: str, num_params: int, side: int, classes: int, licence: str, **more: str) -> Preset:
    shape = {
        "model_type": model_type(architecture),
        "architecture": architecture,
        "num_classes": classes,
        "pretrained_cfg": {"input_size": [3, side, side]},
        **more,
    }
    return Preset(f"timm/{architecture}.{tag}", num_params, licence, shape)


FAMILY = Family(
    model_type="timm",
    mapping=config,
    fields_of=fields_of,
    table=_table(*images.mlp_rows(*_MLP)),
    presets={
        "timm_vit_base_16": _preset(
            "vit_base_patch16_224", "augreg_in21k_ft_in1k", 86_567_656, 224, 1000, "Apache-2.0"
        ),
        "timm_mae_large_16": _preset("vit_large_patch16_224", "mae", 303_301_632, 224, 0, "CC-BY-NC-4.0"),
        "timm_clip_large_14": _preset(
            "vit_large_patch14_clip_quickgelu_224", "openai", 303_966_976, 224, 768, "Apache-2.0"
        ),
        "timm_dinov2_large": _preset("vit_large_patch14_dinov2", "lvd142m", 304_367_616, 518, 0, "Apache-2.0"),
        "timm_siglip_base_16": _preset(
            "vit_base_patch16_siglip_224", "webli", 92_884_224, 224, 0, "Apache-2.0", global_pool="map"
        ),
        "timm_siglip_so400m_14": _preset(
            "vit_so400m_patch14_siglip_384", "webli", 428_225_600, 384, 0, "Apache-2.0", global_pool="map"
        ),
        "timm_dinov2_reg_large": _preset("vit_large_patch14_reg4_dinov2", "lvd142m", 304_370_688, 518, 0, "Apache-2.0"),
    },
)

GATED = Family(
    model_type="timm_gated",
    mapping=config,
    fields_of=fields_of,
    table=_table(*images.gated_mlp_rows(*_MLP)),
    presets={
        "timm_dinov2_giant": _preset("vit_giant_patch14_dinov2", "lvd142m", 1_136_479_232, 518, 0, "Apache-2.0"),
        "timm_dinov2_reg_giant": _preset(
            "vit_giant_patch14_reg4_dinov2", "lvd142m", 1_136_483_840, 518, 0, "Apache-2.0"
        ),
    },
)
