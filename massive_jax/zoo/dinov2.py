"""DINOv2 (arXiv 2304.07193), and with registers (arXiv 2309.16588): LayerScale, SwiGLU in the giant."""

from __future__ import annotations

import functools
from typing import Any

from massive_jax.models import NormConfig, VisionConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo import images, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields, *, registers: int = 0) -> VisionConfig:
    """Maps `Dinov2Config`, or `Dinov2WithRegistersConfig` (`registers` by default), to a VisionConfig."""
    blocks = fields.blocks()
    images.backbone_fields(fields)
    fields.ignore("use_mask_token")
    gated, bias = fields.flag("use_swiglu_ffn", False), fields.flag("qkv_bias", True)
    intermediate_size = int(blocks["hidden_size"] * fields.number("mlp_ratio", 4.0, positive=True))
    if gated:
        intermediate_size = (int(intermediate_size * 2 / 3) + 7) // 8 * 8
    classes, activation = images.num_classes(fields), fields.activation("gelu")
    return VisionConfig(
        **images.front_end(fields, patch_size=16 if registers else 14),
        **blocks,
        intermediate_size=intermediate_size,
        norm=NormConfig("layer", fields.number("layer_norm_eps", 1e-6, least=0)),
        qkv_bias=bias,
        out_bias=True,
        mlp="gated" if gated else "plain",
        activation="silu" if gated else activation,
        mlp_bias=True,
        layer_scale=True,
        registers=fields.integer("num_register_tokens", registers, most=images.MOST_REGISTERS) if registers else 0,
        # As Hugging Face does it.
        interpolation="bicubic_antialias" if registers else "bicubic",
        pooling="class_and_patch_mean" if classes else "class",
        num_classes=classes,
        model_type="dinov2_with_registers" if registers else "dinov2",
    )


def fields_of(config: VisionConfig) -> dict[str, Any]:
    """Gives the fields of a `Dinov2Config`, or with registers of a `Dinov2WithRegistersConfig`: `config`'s inverse."""
    prefix, more = "Dinov2", dict[str, Any]()
    if config.registers:
        prefix, more = "Dinov2WithRegisters", {"num_register_tokens": config.registers}
    gated = config.mlp == "gated"
    if not gated:
        more |= inverse.activation(config)
    return {
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "architectures": [prefix + ("ForImageClassification" if config.num_classes else "Model")],
        **inverse.front_end(config),
        **inverse.blocks(config),
        "mlp_ratio": _mlp_ratio(config.hidden_size, config.intermediate_size, gated),
        "use_swiglu_ffn": gated,
        "use_mask_token": False,
        "layer_norm_eps": config.norm.eps,
        "qkv_bias": config.qkv_bias,
        **more,
        **(inverse.labels(config) if config.num_classes else {}),
    }


def _mlp_ratio(hidden_size: int, intermediate_size: int, gated: bool) -> int:
    """The ratio that gives the MLP's width, or what is nearest: transformers takes integers above 0 alone."""
    # A gated MLP has two thirds of the width, rounded up.
    return max(1, intermediate_size * 3 // (2 * hidden_size) if gated else intermediate_size // hidden_size)


def spelling(config: VisionConfig) -> list[str]:
    """Names the giant's MLP, which has other names."""
    prefix = "dinov2_with_registers" if config.registers else "dinov2"
    parts = ("weights_in", "weights_out") if config.mlp == "gated" else ()
    return [f"{prefix}.encoder.layer.0.mlp.{part}.{leaf}" for part in parts for leaf in ("weight", "bias")]


def table(prefix: str) -> WeightTable:
    """Gives the table of checkpoints whose classifiers put `prefix` before everything but the head."""
    layer = prefix + "encoder.layer.{l}."
    return WeightTable(
        rows=(
            Row(prefix + "embeddings.cls_token", "class_token", "11D->D"),
            Row(prefix + "embeddings.register_tokens", "registers", "1ZD->ZD"),
            Row(prefix + "embeddings.position_embeddings", "position_embedding", "1MD->MD"),
            *images.patch_rows(prefix + "embeddings.patch_embeddings.projection"),
            *images.norm_rows({prefix + "layernorm": "norm"}),
            *images.head_rows(),
            *images.norm_rows({layer + "norm1": "layers/attn_norm", layer + "norm2": "layers/mlp_norm"}),
            *images.attention_rows(layer + "attention." + part for part in images.PARTS),
            Row(layer + "layer_scale1.lambda1", "layers/attn_scale"),
            Row(layer + "layer_scale2.lambda1", "layers/mlp_scale"),
            *images.mlp_rows(layer + "mlp.fc1", layer + "mlp.fc2"),
            # The giant's, gate and up in one.
            *images.gated_mlp_rows(layer + "mlp.weights_in", layer + "mlp.weights_out"),
        ),
        ignored=(r"(\w+\.)?embeddings\.mask_token",),
    )


def _shape(hidden_size: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "dinov2", **shape, "image_size": 518, "patch_size": 14, "mlp_ratio": 4, **more}


_SHAPES = {
    "small": _shape(384, 12, 6),
    "base": _shape(768, 12, 12),
    "large": _shape(1024, 24, 16),
    "giant": _shape(1536, 40, 24, use_swiglu_ffn=True),
}
# Without the mask token of training.
_PARAMS = {"small": 22_056_192, "base": 86_579_712, "large": 304_367_616, "giant": 1_136_479_232}
_REGISTERS = 4

FAMILY = Family(
    model_type="dinov2",
    mapping=config,
    fields_of=fields_of,
    spelling=spelling,
    table=table("dinov2."),
    presets={
        f"dinov2_{size}": Preset(f"facebook/dinov2-{size}", _PARAMS[size], "Apache-2.0", shape)
        for size, shape in _SHAPES.items()
    },
)

WITH_REGISTERS = Family(
    model_type="dinov2_with_registers",
    mapping=functools.partial(config, registers=_REGISTERS),
    fields_of=fields_of,
    spelling=spelling,
    unread={"dinov2_with_registers.embeddings.mask_token": "1D"},
    table=table("dinov2_with_registers."),
    presets={
        f"dinov2_reg_{size}": Preset(
            f"facebook/dinov2-with-registers-{size}",
            _PARAMS[size] + _REGISTERS * shape["hidden_size"],
            "Apache-2.0",
            shape | {"model_type": "dinov2_with_registers", "num_register_tokens": _REGISTERS},
        )
        for size, shape in _SHAPES.items()
    },
)
