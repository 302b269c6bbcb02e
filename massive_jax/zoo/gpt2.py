"""GPT-2: learned positions, layer norms, biases everywhere; or nowhere, as nanoGPT trains it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import NormConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable, fused_rows
from massive_jax.zoo import gguf, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `GPT2Config` to a TransformerConfig, with one more field: `bias` false is a model without any biases."""
    blocks = fields.blocks("n_embd", "n_layer", "n_head")
    bias = fields.flag("bias", True)
    # `reorder_and_upcast_attn` asks for logits in float32, as they are here in any case.
    fields.ignore("reorder_and_upcast_attn", "n_ctx", "n_special", "predict_special_tokens")
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=fields.size("n_inner", 4 * blocks["hidden_size"]),
        max_position=fields.integer("n_positions", 1024, least=1),
        norm=NormConfig("layer", fields.number("layer_norm_epsilon", 1e-5, least=0), bias=bias),
        position="learned",
        qkv_bias=bias,
        out_bias=bias,
        attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
        attention_scale_by_layer=fields.flag("scale_attn_by_inverse_layer_idx", False),
        mlp="plain",
        activation=fields.activation("gelu_new", "activation_function"),
        mlp_bias=bias,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        model_type="gpt2",
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `GPT2Config`: the inverse of `config`. transformers' class has biases everywhere."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        **inverse.blocks(config, "n_embd", "n_layer", "n_head"),
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position,
        "layer_norm_epsilon": config.norm.eps,
        "scale_attn_weights": config.attention_scale is None,
        "scale_attn_by_inverse_layer_idx": config.attention_scale_by_layer,
        **inverse.activation(config, "activation_function"),
        "tie_word_embeddings": config.tie_embeddings,
    }


_LAYER = "transformer.h.{l}."

# The projections are `Conv1D`, stored [in, out].
TABLE = WeightTable(
    rows=(
        Row("transformer.wte.weight", "embedding"),
        Row("transformer.wpe.weight", "position_embedding"),
        Row("transformer.ln_f.weight", "norm/scale"),
        Row("transformer.ln_f.bias", "norm/bias"),
        Row("lm_head.weight", "head"),
        Row(_LAYER + "ln_1.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "ln_1.bias", "layers/attn_norm/bias"),
        *fused_rows(_LAYER + "attn.c_attn", "D(QHN)->DHN", "(QHN)->HN"),
        Row(_LAYER + "attn.c_proj.weight", "layers/attn/out/kernel", "(HN)D->HND"),
        Row(_LAYER + "attn.c_proj.bias", "layers/attn/out/bias"),
        Row(_LAYER + "ln_2.weight", "layers/mlp_norm/scale"),
        Row(_LAYER + "ln_2.bias", "layers/mlp_norm/bias"),
        Row(_LAYER + "mlp.c_fc.weight", "layers/mlp/up/kernel", "DF->DF"),
        Row(_LAYER + "mlp.c_fc.bias", "layers/mlp/up/bias"),
        Row(_LAYER + "mlp.c_proj.weight", "layers/mlp/down/kernel", "FD->FD"),
        Row(_LAYER + "mlp.c_proj.bias", "layers/mlp/down/bias"),
    ),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    tied={"lm_head.weight": "embedding"},
)


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of architecture "gpt2" to a config in the fields of `GPT2Config`."""
    fields = gguf.Metadata(metadata, names)
    fields.ignore("rope.")
    return {
        "model_type": "gpt2",
        "vocab_size": fields.vocab_size,
        "n_embd": fields.width,
        "n_layer": fields.num_layers,
        "n_head": fields.plain_heads(),
        "n_inner": fields.feed_forward(),
        "n_positions": fields.max_position,
        "layer_norm_epsilon": fields.norm_eps("layer"),
        "bias": "blk.0.attn_qkv.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
    }


def _preset(source: str, n_layer: int, n_embd: int, n_head: int, num_params: int, licence: str = "MIT") -> Preset:
    shape = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "vocab_size": 50257, "n_positions": 1024}
    return Preset(source, num_params, licence, {"model_type": "gpt2", **shape})


PRESETS = {
    "gpt2": _preset("openai-community/gpt2", 12, 768, 12, 124_439_808),
    "gpt2_medium": _preset("openai-community/gpt2-medium", 24, 1024, 16, 354_823_168),
    "gpt2_large": _preset("openai-community/gpt2-large", 36, 1280, 20, 774_030_080),
    "gpt2_xl": _preset("openai-community/gpt2-xl", 48, 1600, 25, 1_557_611_200),
    "distilgpt2": _preset("distilbert/distilgpt2", 6, 768, 12, 81_912_576, "Apache-2.0"),
}

FAMILY = Family(
    model_type="gpt2",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets=PRESETS,
    gguf_architecture="gpt2",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(projections="fused"),
)
