"""The vision towers of CLIP (arXiv 2103.00020) and SigLIP (2303.15343), alone or inside a full checkpoint."""

from __future__ import annotations

from typing import Any

from massive_jax.files import shown
from massive_jax.models import NormConfig, VisionConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo import images, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> VisionConfig:
    """Maps `CLIPVisionConfig` to a VisionConfig. The last hidden state has no norm: only the class token has one."""
    fields.ignore("projection_dim", "initializer_factor")
    return _tower(
        fields,
        **images.front_end(fields, patch_size=32),
        norm=NormConfig("layer", fields.number("layer_norm_eps", 1e-5, least=0)),
        activation=fields.activation("quick_gelu"),
        patch_bias=False,
        embed_norm=True,
        final_norm=False,
        pooled_norm=True,
        model_type="clip_vision_model",
    )


def siglip_config(fields: Fields) -> VisionConfig:
    """Maps `SiglipVisionConfig` to a VisionConfig: no class token; a head of attention pools, where there is one."""
    return _tower(
        fields,
        **images.front_end(fields),
        norm=NormConfig("layer", fields.number("layer_norm_eps", 1e-6, least=0)),
        activation=fields.activation("gelu_pytorch_tanh"),
        class_token=False,
        pooling="attention" if fields.flag("vision_use_head", True) else "patch_mean",
        model_type="siglip_vision_model",
    )


def fields_of(config: VisionConfig) -> dict[str, Any]:
    """Gives the fields of a `CLIPVisionConfig`: the inverse of `config`."""
    return _fields_of_tower(config, "clip_vision_model", "CLIPVisionModel")


def siglip_fields_of(config: VisionConfig) -> dict[str, Any]:
    """Gives the fields of a `SiglipVisionConfig`: the inverse of `siglip_config`."""
    fields = _fields_of_tower(config, "siglip_vision_model", "SiglipVisionModel")
    return fields | {"vision_use_head": config.pooling == "attention"}


def _fields_of_tower(config: VisionConfig, model_type: str, architecture: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        **inverse.front_end(config),
        **inverse.blocks(config),
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.norm.eps,
        **inverse.activation(config),
    }


def inside(tower: Any, defaults: dict[str, Any]) -> Any:
    """Gives the config mapping of a full checkpoint: `tower` of its `vision_config`, completed by `defaults`."""

    def config(fields: Fields) -> VisionConfig:
        # The text tower, and what compares the two.
        fields.ignore("text_config", "projection_dim", "initializer_factor", "logit_scale_init_value")
        fields.ignore("text_config_dict", "tie_word_embeddings")
        part = fields.part("vision_config")
        # Older files say the tower's settings twice; transformers lets the second ones count.
        for name, value in (fields.mapping("vision_config_dict") or {}).items():
            if part.get(name, value) != value:
                part.problem(f"{name} = {shown(part.get(name))}, and {shown(value)} in vision_config_dict: remove one")
            part.assume(**{name: value})
        part.assume(**defaults)
        return tower(part)

    return config


def _tower(fields: Fields, **more: Any) -> VisionConfig:
    return VisionConfig(
        **fields.blocks(),
        intermediate_size=fields.size("intermediate_size"),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        **more,
    )


_PREFIX = "vision_model."
_LAYER = _PREFIX + "encoder.layers.{l}."
_HEAD = _PREFIX + "head."

TABLE = WeightTable(
    rows=(
        Row(_PREFIX + "embeddings.class_embedding", "class_token"),
        Row(_PREFIX + "embeddings.position_embedding.weight", "position_embedding"),
        *images.patch_rows(_PREFIX + "embeddings.patch_embedding"),
        *images.norm_rows({_PREFIX + "pre_layrnorm": "embed_norm", _PREFIX + "post_layernorm": "pooled_norm"}),
        *images.norm_rows({_LAYER + "layer_norm1": "layers/attn_norm", _LAYER + "layer_norm2": "layers/mlp_norm"}),
        *images.attention_rows(_LAYER + f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        *images.mlp_rows(_LAYER + "mlp.fc1", _LAYER + "mlp.fc2"),
    ),
    # The text tower of a full checkpoint, and the maps into the space where the two are compared.
    ignored=(
        *(r"text_model\..*", r"(text|visual)_projection\.weight", "logit_scale", "logit_bias"),
        r"vision_model\.embeddings\.position_ids",
    ),
)

SIGLIP_TABLE = WeightTable(
    rows=(
        *(row for row in TABLE.rows if "pooled_norm" not in row.path),
        *images.norm_rows({_PREFIX + "post_layernorm": "norm"}),
        Row(_HEAD + "probe", "pool/probe", "11D->D"),
        *(
            Row(_HEAD + f"attention.in_proj_{leaf}", f"pool/{part}/{to}", axes, take=("Q", str(index)))
            for index, part in enumerate(("query", "key", "value"))
            for leaf, to, axes in (("weight", "kernel", "(QHN)D->DHN"), ("bias", "bias", "(QHN)->HN"))
        ),
        *images.linear_rows(_HEAD + "attention.out_proj", "pool/out", "D(HN)->HND"),
        *images.norm_rows({_HEAD + "layernorm": "pool/norm"}),
        *images.mlp_rows(_HEAD + "mlp.fc1", _HEAD + "mlp.fc2", "pool/mlp"),
    ),
    ignored=TABLE.ignored,
)


def _shape(model_type: str, *sizes: int, **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    return {"model_type": model_type, "vision_config": dict(zip(names, sizes, strict=True)) | more}


_CLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_LICENCE = "MIT"

# The hub has full checkpoints; parameters are counted of the vision tower.
CLIP = Family(
    model_type="clip",
    mapping=inside(config, _CLIP_DEFAULTS),
    table=TABLE,
    presets={
        name: Preset(f"openai/clip-{source}", num_params, _LICENCE, _shape("clip", *sizes))
        for name, source, num_params, sizes in (
            ("clip_vit_base_32", "vit-base-patch32", 87_456_000, (768, 3072, 12, 12, 32, 224)),
            ("clip_vit_base_16", "vit-base-patch16", 85_799_424, (768, 3072, 12, 12, 16, 224)),
            ("clip_vit_large_14", "vit-large-patch14", 303_179_776, (1024, 4096, 24, 16, 14, 224)),
            ("clip_vit_large_14_336", "vit-large-patch14-336", 303_507_456, (1024, 4096, 24, 16, 14, 336)),
        )
    },
)
CLIP_VISION = Family(model_type="clip_vision_model", mapping=config, fields_of=fields_of, table=TABLE)

SIGLIP = Family(
    model_type="siglip",
    mapping=inside(siglip_config, _CLIP_DEFAULTS),
    table=SIGLIP_TABLE,
    presets={
        name: Preset(f"google/{source}", num_params, "Apache-2.0", _shape("siglip", *sizes))
        for name, source, num_params, sizes in (
            ("siglip_base_16", "siglip-base-patch16-224", 92_884_224, (768, 3072, 12, 12, 16, 224)),
            ("siglip_large_16_256", "siglip-large-patch16-256", 315_956_224, (1024, 4096, 24, 16, 16, 256)),
            ("siglip_so400m_14_384", "siglip-so400m-patch14-384", 428_225_600, (1152, 4304, 27, 16, 14, 384)),
        )
    },
)
SIGLIP_VISION = Family(
    model_type="siglip_vision_model",
    mapping=siglip_config,
    fields_of=siglip_fields_of,
    table=SIGLIP_TABLE,
)
