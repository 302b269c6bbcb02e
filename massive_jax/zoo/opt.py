"""OPT (arXiv 2205.01068): learned positions from row 2 on, ReLU; 350m is post-norm with a narrow embedding."""

from __future__ import annotations

from typing import Any

from massive_jax.models.config import NormConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo import inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `OPTConfig` to a TransformerConfig. The norms' epsilon is torch's default, which no field changes."""
    blocks = fields.blocks()
    embedding_size = fields.size("word_embed_proj_dim", blocks["hidden_size"])
    norm_before, bias = fields.flag("do_layer_norm_before", True), fields.flag("enable_bias", True)
    affine = fields.flag("layer_norm_elementwise_affine", True)
    fields.only("output_projection", True)
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=fields.size("ffn_dim"),
        max_position=fields.integer("max_position_embeddings", 2048, least=1),
        norm=NormConfig("layer", 1e-5, bias=affine, scale=affine),
        norm_placement="pre" if norm_before else "after_residual",
        position="learned",
        position_offset=2,
        qkv_bias=bias,
        out_bias=bias,
        mlp="plain",
        activation=fields.activation("relu", "activation_function"),
        mlp_bias=bias,
        embedding_size=embedding_size if embedding_size != blocks["hidden_size"] else None,
        final_norm=norm_before and not fields.flag("_remove_final_layer_norm", False),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        model_type="opt",
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of an `OPTConfig`: the inverse of `config`."""
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": config.vocab_size,
        **inverse.blocks(config),
        "ffn_dim": config.intermediate_size,
        "max_position_embeddings": config.max_position,
        "word_embed_proj_dim": config.embedding_size or config.hidden_size,
        "do_layer_norm_before": config.norm_placement == "pre",
        "layer_norm_elementwise_affine": config.norm.scale or config.norm.bias,
        "_remove_final_layer_norm": config.norm_placement == "pre" and not config.final_norm,
        "enable_bias": config.qkv_bias or config.out_bias or config.mlp_bias,
        **inverse.activation(config, "activation_function"),
        "tie_word_embeddings": config.tie_embeddings,
    }


_MODEL = "model.decoder."
_LAYER = _MODEL + "layers.{l}."

TABLE = WeightTable(
    rows=(
        Row(_MODEL + "embed_tokens.weight", "embedding"),
        Row(_MODEL + "embed_positions.weight", "position_embedding"),
        Row(_MODEL + "project_in.weight", "project_in/kernel", "DW->WD"),
        Row(_MODEL + "project_out.weight", "project_out/kernel", "WD->DW"),
        Row(_MODEL + "final_layer_norm.weight", "norm/scale"),
        Row(_MODEL + "final_layer_norm.bias", "norm/bias"),
        Row("lm_head.weight", "head"),
        Row(_LAYER + "self_attn_layer_norm.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "self_attn_layer_norm.bias", "layers/attn_norm/bias"),
        Row(_LAYER + "self_attn.q_proj.weight", "layers/attn/query/kernel", "(HN)D->DHN"),
        Row(_LAYER + "self_attn.k_proj.weight", "layers/attn/key/kernel", "(KN)D->DKN"),
        Row(_LAYER + "self_attn.v_proj.weight", "layers/attn/value/kernel", "(KN)D->DKN"),
        Row(_LAYER + "self_attn.out_proj.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_LAYER + "self_attn.q_proj.bias", "layers/attn/query/bias", "(HN)->HN"),
        Row(_LAYER + "self_attn.k_proj.bias", "layers/attn/key/bias", "(KN)->KN"),
        Row(_LAYER + "self_attn.v_proj.bias", "layers/attn/value/bias", "(KN)->KN"),
        Row(_LAYER + "self_attn.out_proj.bias", "layers/attn/out/bias"),
        Row(_LAYER + "final_layer_norm.weight", "layers/mlp_norm/scale"),
        Row(_LAYER + "final_layer_norm.bias", "layers/mlp_norm/bias"),
        Row(_LAYER + "fc1.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_LAYER + "fc1.bias", "layers/mlp/up/bias"),
        Row(_LAYER + "fc2.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_LAYER + "fc2.bias", "layers/mlp/down/bias"),
    ),
    tied={"lm_head.weight": "embedding"},
)


def _preset(size: str, layers: int, width: int, heads: int, num_params: int, **changes: object) -> Preset:
    shape = {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        "max_position_embeddings": 2048,
    }
    return Preset(f"facebook/opt-{size}", num_params, "OPT-175B licence (research only)", shape | changes)


PRESETS = {
    "opt_125m": _preset("125m", 12, 768, 12, 125_239_296),
    "opt_350m": _preset("350m", 24, 1024, 16, 331_196_416, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt_1.3b": _preset("1.3b", 24, 2048, 32, 1_315_758_080),
    "opt_2.7b": _preset("2.7b", 32, 2560, 32, 2_651_596_800),
    "opt_6.7b": _preset("6.7b", 32, 4096, 32, 6_658_473_984),
    "opt_13b": _preset("13b", 40, 5120, 40, 12_853_473_280),
    "opt_30b": _preset("30b", 48, 7168, 56, 29_974_540_288),
    "opt_66b": _preset("66b", 64, 9216, 72, 65_719_701_504),
}

FAMILY = Family(
    model_type="opt",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets=PRESETS,
)
