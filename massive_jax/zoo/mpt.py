"""MPT (MosaicML, 2023): ALiBi, norms and projections without biases, one fused projection.

transformers' own `MptModel` reads few of the fields of the published configs: it takes alibi, no biases, an expansion
of four and `alibi_bias_max` 8 for granted. Here a field means what it means in the code the models were trained with
(mosaicml/llm-foundry), so StoryWriter's `alibi_bias_max` of 16 is 16.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import AlibiConfig, NormConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable, fused_rows
from massive_jax.zoo import gguf, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields
from massive_jax.zoo.gguf_metadata import quotient

# How the weights were initialised, how the attention is computed, who made the file: not what is computed.
_NO_EFFECT = (
    *("init_config", "init_config_defaults", "init_device", "param_init_fn", "embedding_fraction", "emb_pdrop"),
    *("resid_pdrop", "tokenizer_name", "verbose", "fc_type", "attn_impl", "attn_pdrop"),
)


def config(fields: Fields) -> TransformerConfig:
    """Maps `MptConfig`, or llm-foundry's `MPTConfig`, to a TransformerConfig."""
    attention = fields.inside("attn_config", fields.mapping("attn_config") or {})
    for part in (fields, attention):
        part.ignore(*_NO_EFFECT)
    fields.assume(d_model=2048, n_layers=24, n_heads=16)
    blocks = fields.blocks("d_model", "n_layers", "n_heads")
    hidden_size, num_heads = blocks["hidden_size"], blocks["num_heads"]
    max_position = fields.integer("max_seq_len", 2048, least=1)
    heads = {
        "multihead_attention": num_heads,
        "multiquery_attention": 1,
        "grouped_query_attention": attention.size("kv_n_heads", num_heads),
    }
    blocks["num_kv_heads"] = heads[attention.text("attn_type", "multihead_attention", known=heads)]
    fields.multiple("n_heads", "kv_n_heads", num_heads, blocks["num_kv_heads"])
    alibi, learned = attention.flag("alibi", True), fields.flag("learned_pos_emb", True)
    if not alibi and not learned:
        fields.problem("a model with neither alibi nor learned_pos_emb is not implemented")
    max_exponent = attention.number("alibi_bias_max", 8.0, positive=True) if alibi else 8.0
    attention.ignore("alibi_bias_max")
    fields.only("norm_type", "low_precision_layernorm", "layernorm")
    ffn = fields.inside("ffn_config", fields.mapping("ffn_config") or {})
    ffn.only("ffn_type", "mptmlp")
    ffn.ignore("fc_type")
    attention.only("prefix_lm", False)
    attention.ignore("attn_uses_sequence_id")  # it takes effect where sequence ids are given only
    if isinstance(fields.get("logit_scale"), str):
        fields.text("logit_scale", "inv_sqrt_d_model", known=("inv_sqrt_d_model", "a number"))
        logit_scale: float | None = 1 / math.sqrt(hidden_size)
    else:
        logit_scale = fields.optional_number("logit_scale")
    bias = not fields.flag("no_bias", True)
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=int(fields.number("expansion_ratio", 4.0, positive=True) * hidden_size),
        max_position=max_position,
        norm=NormConfig("layer", fields.number("layer_norm_epsilon", 1e-5, least=0), bias=bias),
        position="alibi" if alibi else "learned",
        alibi=AlibiConfig(max_exponent=max_exponent) if alibi else None,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="full" if attention.flag("qk_ln", False) else None,
        clip_qkv=attention.number("clip_qkv", 0.0, least=0) or None,
        attention_scale=attention.optional_number("softmax_scale", positive=True),
        mlp="plain",
        activation="gelu",
        mlp_bias=bias,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        logit_scale=logit_scale,
        model_type="mpt",
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of an `MptConfig` that transformers' own class reads, and what it takes for granted."""
    attention = {"alibi": True, "clip_qkv": config.clip_qkv, "softmax_scale": config.attention_scale}
    return {
        "model_type": "mpt",
        "architectures": ["MptForCausalLM"],
        "vocab_size": config.vocab_size,
        **inverse.blocks(config, "d_model", "n_layers", "n_heads"),
        "max_seq_len": config.max_position,
        "layer_norm_epsilon": config.norm.eps,
        "no_bias": True,
        "attn_config": attention,
        "tie_word_embeddings": config.tie_embeddings,
    }


_LAYER = "transformer.blocks.{l}."

TABLE = WeightTable(
    rows=(
        Row("transformer.wte.weight", "embedding"),
        Row("transformer.wpe.weight", "position_embedding"),
        Row("transformer.norm_f.weight", "norm/scale"),
        Row("transformer.norm_f.bias", "norm/bias"),
        Row("lm_head.weight", "head"),
        Row(_LAYER + "norm_1.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "norm_1.bias", "layers/attn_norm/bias"),
        *fused_rows(_LAYER + "attn.Wqkv", "(YN)D->DYN", "(YN)->YN"),
        Row(_LAYER + "attn.q_ln.weight", "layers/attn/query_norm/scale", "(HN)->HN"),
        Row(_LAYER + "attn.q_ln.bias", "layers/attn/query_norm/bias", "(HN)->HN"),
        Row(_LAYER + "attn.k_ln.weight", "layers/attn/key_norm/scale", "(KN)->KN"),
        Row(_LAYER + "attn.k_ln.bias", "layers/attn/key_norm/bias", "(KN)->KN"),
        Row(_LAYER + "attn.out_proj.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_LAYER + "attn.out_proj.bias", "layers/attn/out/bias"),
        Row(_LAYER + "norm_2.weight", "layers/mlp_norm/scale"),
        Row(_LAYER + "norm_2.bias", "layers/mlp_norm/bias"),
        Row(_LAYER + "ffn.up_proj.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_LAYER + "ffn.down_proj.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_LAYER + "ffn.up_proj.bias", "layers/mlp/up/bias"),
        Row(_LAYER + "ffn.down_proj.bias", "layers/mlp/down/bias"),
    ),
    tied={"lm_head.weight": "embedding"},
)


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of an `mpt` GGUF file to the fields of an `MptConfig`."""
    fields = gguf.Metadata(metadata, names)
    fields.ignore("rope.")
    num_heads, num_kv_heads = fields.heads
    fields.head_dim(given=False, partial=True)  # there is no rotary embedding
    max_exponent = fields.number("attention.max_alibi_bias", zero=True)
    if not max_exponent and "position_embd.weight" not in names:
        raise fields.refused("attention.max_alibi_bias", "one above 0 where there is no position_embd.weight")
    width = fields.width
    return {
        "model_type": "mpt",
        "vocab_size": fields.vocab_size,
        "d_model": width,
        "n_heads": num_heads,
        "n_layers": fields.num_layers,
        "expansion_ratio": quotient(fields.feed_forward(), width),
        "max_seq_len": fields.max_position,
        "layer_norm_epsilon": fields.norm_eps("layer"),
        "no_bias": "output_norm.bias" not in names,
        "learned_pos_emb": "position_embd.weight" in names,
        "attn_config": {
            "attn_type": "grouped_query_attention",
            "kv_n_heads": num_kv_heads,
            "alibi": max_exponent > 0,
            "alibi_bias_max": max_exponent,
            "clip_qkv": fields.number("attention.clamp_kqv", 0, zero=True),
            "qk_ln": "blk.0.attn_q_norm.weight" in names,
        },
    }


_7B = {
    "model_type": "mpt",
    "vocab_size": 50432,
    "d_model": 4096,
    "n_heads": 32,
    "n_layers": 32,
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention", "clip_qkv": None},
}
_STORYWRITER = _7B | {
    "max_seq_len": 65536,
    "attn_config": {"alibi": True, "alibi_bias_max": 16, "attn_type": "multihead_attention", "clip_qkv": 6},
}
_30B = _7B | {"d_model": 7168, "n_heads": 64, "n_layers": 48, "max_seq_len": 8192}

FAMILY = Family(
    model_type="mpt",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets={
        "mpt_7b": Preset("mosaicml/mpt-7b", 6_649_286_656, "Apache-2.0", _7B),
        "mpt_7b_storywriter": Preset("mosaicml/mpt-7b-storywriter", 6_649_286_656, "Apache-2.0", _STORYWRITER),
        "mpt_30b": Preset("mosaicml/mpt-30b", 29_957_200_896, "Apache-2.0", _30B),
    },
    gguf_architecture="mpt",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(projections="fused", full_qk_norm=True),
)
