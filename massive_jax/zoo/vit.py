"""ViT (arXiv 2010.11929), as trained with labels; and the encoder of a masked autoencoder (arXiv 2111.06377)."""

from __future__ import annotations

from typing import Any

from massive_jax.models import NormConfig, VisionConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo import images, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> VisionConfig:
    """Maps `ViTConfig` to a VisionConfig. A `ViTModel` has a dense pooler, a classifier has none."""
    hidden_size = fields.size("hidden_size")
    fields.only("pooler_act", "tanh")
    fields.only("pooler_output_size", hidden_size)
    fields.ignore("encoder_stride")
    return encoder(
        fields,
        model_type="vit",
        num_classes=images.num_classes(fields),
        pooled_dense="ViTModel" in (fields.texts("architectures") or ()),
    )


def mae_config(fields: Fields) -> VisionConfig:
    """Maps `ViTMAEConfig` to a VisionConfig: the encoder, of whole images. The decoder and the masking are left out."""
    fields.ignore("decoder_hidden_size", "decoder_intermediate_size", "decoder_num_attention_heads", "mask_ratio")
    fields.ignore("decoder_num_hidden_layers", "norm_pix_loss")
    return encoder(fields, model_type="vit_mae", num_classes=images.num_classes(fields))


def fields_of(config: VisionConfig) -> dict[str, Any]:
    """Gives the fields of a `ViTConfig`: the inverse of `config`. Without a pooler, a classifier without classes."""
    model = "ViTModel" if config.pooled_dense else "ViTForImageClassification"
    return _fields_of_encoder(config, "vit", model) | ({} if config.pooled_dense else inverse.labels(config))


def mae_fields_of(config: VisionConfig) -> dict[str, Any]:
    """Gives the fields of a `ViTMAEConfig` that masks nothing: the inverse of `mae_config`.

    transformers' class shuffles the patches even so, by the argument `noise` of its forward pass.
    """
    return _fields_of_encoder(config, "vit_mae", "ViTMAEModel") | {"mask_ratio": 0.0}


def _fields_of_encoder(config: VisionConfig, model_type: str, architecture: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        **inverse.front_end(config),
        **inverse.blocks(config),
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.norm.eps,
        "qkv_bias": config.qkv_bias,
        **inverse.activation(config),
    }


def encoder(fields: Fields, **more: Any) -> VisionConfig:
    """Gives the fields that ViT and ViT-MAE have in common, and `more` of a VisionConfig."""
    return VisionConfig(
        **images.front_end(fields),
        **fields.blocks(),
        intermediate_size=fields.size("intermediate_size"),
        norm=NormConfig("layer", fields.number("layer_norm_eps", 1e-12, least=0)),
        qkv_bias=fields.flag("qkv_bias", True),
        out_bias=True,
        activation=fields.activation("gelu"),
        mlp_bias=True,
        **more,
    )


_PREFIX = "vit."
_LAYER = _PREFIX + "encoder.layer.{l}."

TABLE = WeightTable(
    rows=(
        Row(_PREFIX + "embeddings.cls_token", "class_token", "11D->D"),
        Row(_PREFIX + "embeddings.position_embeddings", "position_embedding", "1MD->MD"),
        *images.patch_rows(_PREFIX + "embeddings.patch_embeddings.projection"),
        *images.norm_rows({_PREFIX + "layernorm": "norm"}),
        *images.linear_rows(_PREFIX + "pooler.dense", "pooled_dense", "DW->WD"),
        *images.head_rows(),
        *images.norm_rows(
            {_LAYER + "layernorm_before": "layers/attn_norm", _LAYER + "layernorm_after": "layers/mlp_norm"}
        ),
        *images.attention_rows(_LAYER + "attention." + part for part in images.PARTS),
        *images.mlp_rows(_LAYER + "intermediate.dense", _LAYER + "output.dense"),
    ),
    # The decoder of masked image modelling.
    ignored=(r"decoder\..*", r"vit\.embeddings\.mask_token"),
)


def _preset(source: str, num_params: int, licence: str, *sizes: int, **more: Any) -> Preset:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    return Preset(source, num_params, licence, dict(zip(names, sizes, strict=True)) | {"image_size": 224, **more})


_APACHE = "Apache-2.0"
_BASE, _LARGE, _HUGE = (768, 3072, 12, 12, 16), (1024, 4096, 24, 16, 16), (1280, 5120, 32, 16, 14)
_VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "num_labels": 1000,
}
_MODEL = {"model_type": "vit", "architectures": ["ViTModel"]}
_MAE = {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"]}

FAMILY = Family(
    model_type="vit",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets={
        "vit_base": _preset("google/vit-base-patch16-224", 86_567_656, _APACHE, *_BASE, **_VIT),
        "vit_large": _preset("google/vit-large-patch16-224", 304_326_632, _APACHE, *_LARGE, **_VIT),
        "vit_base_in21k": _preset("google/vit-base-patch16-224-in21k", 86_389_248, _APACHE, *_BASE, **_MODEL),
    },
)

MAE = Family(
    model_type="vit_mae",
    mapping=mae_config,
    fields_of=mae_fields_of,
    table=TABLE,
    presets={
        "mae_base": _preset("facebook/vit-mae-base", 85_798_656, _APACHE, *_BASE, **_MAE),
        "mae_large": _preset("facebook/vit-mae-large", 303_301_632, _APACHE, *_LARGE, **_MAE),
        "mae_huge": _preset("facebook/vit-mae-huge", 630_764_800, _APACHE, *_HUGE, **_MAE),
    },
)
