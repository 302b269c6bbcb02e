"""GPT-2: learned positions, layer norms, biases everywhere; or nowhere, as nanoGPT trains it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import NormConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable, fused_rows
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields
from massive_jax.zoo.gguf_metadata import Metadata


def config(fields: Fields) -> TransformerConfig:
    """Maps `GPT2Config` to a TransformerConfig, with one more field: `bias` false is a model without any biases."""
    hidden_size, num_heads = fields.size("n_embd"), fields.size("n_head")
    bias = fields.flag("bias", True)
    # `reorder_and_upcast_attn` asks for logits in float32, as they are here in any case.
    fields.ignore("reorder_and_upcast_attn", "n_ctx", "n_special", "predict_special_tokens")
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.layers("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=fields.head_dim(hidden_size, num_heads, "n_embd", "n_head"),
        intermediate_size=fields.size("n_inner", 4 * hidden_size),
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
    fields = Metadata(metadata, names)
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


_BLOCK = "blk.{l}."

GGUF_TABLE = WeightTable(
    rows=(
        Row("token_embd.weight", "embedding"),
        Row("position_embd.weight", "position_embedding"),
        Row("output_norm.weight", "norm/scale"),
        Row("output_norm.bias", "norm/bias"),
        Row("output.weight", "head"),
        Row(_BLOCK + "attn_norm.weight", "layers/attn_norm/scale"),
        Row(_BLOCK + "attn_norm.bias", "layers/attn_norm/bias"),
        *fused_rows(_BLOCK + "attn_qkv", "(QHN)D->DHN", "(QHN)->HN"),
        Row(_BLOCK + "attn_output.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_BLOCK + "attn_output.bias", "layers/attn/out/bias"),
        Row(_BLOCK + "ffn_norm.weight", "layers/mlp_norm/scale"),
        Row(_BLOCK + "ffn_norm.bias", "layers/mlp_norm/bias"),
        Row(_BLOCK + "ffn_up.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_BLOCK + "ffn_up.bias", "layers/mlp/up/bias"),
        Row(_BLOCK + "ffn_down.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_BLOCK + "ffn_down.bias", "layers/mlp/down/bias"),
    ),
)


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
    table=TABLE,
    presets=PRESETS,
    gguf_architecture="gpt2",
    gguf_config=gguf_config,
    gguf_table=GGUF_TABLE,
)
