"""DINOv3's vision transformers (arXiv 2508.10104): rotary embedding over rows and columns, no bias in the keys."""

from __future__ import annotations

from typing import Any

from massive_jax.models import NormConfig, RopeConfig, VisionConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo import images, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> VisionConfig:
    """Maps `DINOv3ViTConfig` to a VisionConfig."""
    images.backbone_fields(fields)
    fields.ignore("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
    query_bias = fields.flag("query_bias", True)
    fields.only("value_bias", query_bias)
    return VisionConfig(
        **images.front_end(fields),
        **fields.blocks(),
        intermediate_size=fields.size("intermediate_size"),
        norm=NormConfig("layer", fields.number("layer_norm_eps", 1e-5, least=0)),
        position="rope",
        rope=RopeConfig(theta=fields.number("rope_theta", 100.0, positive=True)),
        qkv_bias=query_bias,
        key_bias=fields.flag("key_bias", False),
        out_bias=fields.flag("proj_bias", True),
        mlp="gated" if fields.flag("use_gated_mlp", False) else "plain",
        activation=fields.activation("gelu"),
        mlp_bias=fields.flag("mlp_bias", True),
        layer_scale=True,
        registers=fields.integer("num_register_tokens", 0, most=images.MOST_REGISTERS),
        model_type="dinov3_vit",
    )


def fields_of(config: VisionConfig) -> dict[str, Any]:
    """Gives the fields of a `DINOv3ViTConfig`: the inverse of `config`."""
    return {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        **inverse.front_end(config),
        **inverse.blocks(config),
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.norm.eps,
        "rope_theta": config.rope.theta,
        "query_bias": config.qkv_bias,
        "key_bias": config.qkv_bias and config.key_bias,
        "value_bias": config.qkv_bias,
        "proj_bias": config.out_bias,
        "use_gated_mlp": config.mlp == "gated",
        **inverse.activation(config),
        "mlp_bias": config.mlp_bias,
        "num_register_tokens": config.registers,
    }


_LAYER = "layer.{l}."

TABLE = WeightTable(
    rows=(
        Row("embeddings.cls_token", "class_token", "11D->D"),
        Row("embeddings.register_tokens", "registers", "1ZD->ZD"),
        *images.patch_rows("embeddings.patch_embeddings"),
        *images.norm_rows({"norm": "norm", _LAYER + "norm1": "layers/attn_norm", _LAYER + "norm2": "layers/mlp_norm"}),
        *images.attention_rows(_LAYER + f"attention.{part}_proj" for part in ("q", "k", "v", "o")),
        Row(_LAYER + "layer_scale1.lambda1", "layers/attn_scale"),
        Row(_LAYER + "layer_scale2.lambda1", "layers/mlp_scale"),
        *images.mlp_rows(_LAYER + "mlp.up_proj", _LAYER + "mlp.down_proj"),
        *images.linear_rows(_LAYER + "mlp.gate_proj", "layers/mlp/gate", "FD->DF"),
    ),
    ignored=(r"embeddings\.mask_token",),
)


def _shape(*sizes: int, **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fixed = {"model_type": "dinov3_vit", "num_register_tokens": 4, "patch_size": 16, "image_size": 224}
    return fixed | dict(zip(names, sizes, strict=True)) | more


_GATED = {"use_gated_mlp": True, "hidden_act": "silu"}

# Parameters are counted without the mask token of training.
FAMILY = Family(
    model_type="dinov3_vit",
    mapping=config,
    fields_of=fields_of,
    unread={"embeddings.mask_token": "11D", "embeddings.register_tokens": "1ZD"},
    table=TABLE,
    presets={
        name: Preset(f"facebook/dinov3-{source}-pretrain-lvd1689m", num_params, "DINOv3 (gated)", shape)
        for name, source, num_params, shape in (
            ("dinov3_small", "vits16", 21_596_160, _shape(384, 1536, 12, 6)),
            ("dinov3_small_plus", "vits16plus", 28_692_480, _shape(384, 1536, 12, 6, **_GATED)),
            ("dinov3_base", "vitb16", 85_659_648, _shape(768, 3072, 12, 12)),
            ("dinov3_large", "vitl16", 303_128_576, _shape(1024, 4096, 24, 16)),
            ("dinov3_huge_plus", "vith16plus", 840_591_360, _shape(1280, 5120, 32, 20, **_GATED)),
            (
                "dinov3_7b",
                "vit7b16",
                6_716_030_976,
                _shape(4096, 8192, 40, 32, **_GATED, query_bias=False, value_bias=False),
            ),
        )
    },
)
