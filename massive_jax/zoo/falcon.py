"""Falcon (arXiv 2311.16867): 7B (multi-query, one norm), 40B and later (grouped heads), RW (ALiBi, serial)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import AlibiConfig, NormConfig, Residual, TransformerConfig
from massive_jax.weights.table import Row, WeightTable, fused_rows
from massive_jax.zoo import gguf, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `FalconConfig` to a TransformerConfig. Defaults are those of the Hugging Face class."""
    grouped = fields.flag("new_decoder_architecture", False)
    blocks = fields.blocks(kv_heads="num_kv_heads" if grouped else None)
    if not grouped:
        fields.size("num_kv_heads", 1)  # what the file says of them is not used: one for all, or one each
        blocks["num_kv_heads"] = 1 if fields.flag("multi_query", True) else blocks["num_heads"]
    fields.ignore("multi_query")
    bias = fields.flag("bias", False)
    num_norms = fields.integer("num_ln_in_parallel_attn", 2 if grouped else 1, least=1, most=2)
    if grouped:
        fields.only("parallel_attn", True)
    elif num_norms != 1:
        fields.problem(f"num_ln_in_parallel_attn = {num_norms} without new_decoder_architecture is not implemented")
    parallel: Residual = "parallel" if num_norms == 2 else "parallel_shared_norm"
    fields.only("apply_residual_connection_post_layernorm", False)
    alibi = fields.flag("alibi", False)
    max_position = fields.integer("max_position_embeddings", 2048, least=1)
    intermediate_size = fields.size("ffn_hidden_size", fields.size("ff_factor", 4) * blocks["hidden_size"])
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=intermediate_size,
        max_position=max_position,
        norm=NormConfig("layer", fields.number("layer_norm_epsilon", 1e-5, least=0)),
        residual=parallel if grouped or fields.flag("parallel_attn", True) else "serial",
        position="alibi" if alibi else "rope",
        rope=fields.rope(max_position),
        alibi=AlibiConfig(round_up=False, from_last=False, before_scale=True, bfloat16=True) if alibi else None,
        qkv_bias=bias,
        out_bias=bias,
        mlp="plain",
        activation=fields.activation("gelu", "activation"),
        mlp_bias=bias,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        model_type="falcon",
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `FalconConfig`: the inverse of `config`, in 7B's layout where that can say it."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    grouped = config.residual == "parallel" or (config.residual == "parallel_shared_norm" and 1 < kv_heads < heads)
    layout: dict[str, Any] = {"new_decoder_architecture": grouped, "num_kv_heads": kv_heads}
    if grouped:
        layout["num_ln_in_parallel_attn"] = 2 if config.residual == "parallel" else 1
    else:
        layout |= {"multi_query": kv_heads == 1, "parallel_attn": config.residual != "serial"}
    return {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        "vocab_size": config.vocab_size,
        **inverse.blocks(config),
        **layout,
        "bias": config.qkv_bias or config.out_bias or config.mlp_bias,
        "alibi": config.position == "alibi",
        "max_position_embeddings": config.max_position,
        "ffn_hidden_size": config.intermediate_size,
        "layer_norm_epsilon": config.norm.eps,
        **inverse.rope(config),
        **inverse.activation(config, "activation"),
        "tie_word_embeddings": config.tie_embeddings,
    }


def spelling(config: TransformerConfig) -> list[str]:
    """Names the norms of a model that has two beside each other."""
    norms = ("ln_attn", "ln_mlp") if config.residual == "parallel" else ()
    return [f"transformer.h.0.{norm}.{leaf}" for norm in norms for leaf in ("weight", "bias")]


_LAYER = "transformer.h.{l}."

# One layout for all: every key/value head's G queries, then its key, then its value. With one key/value head that is
# the multi-query layout, with as many as there are queries the per-head one. Two norms are ln_attn and ln_mlp.
TABLE = WeightTable(
    rows=(
        Row("transformer.word_embeddings.weight", "embedding"),
        Row("transformer.ln_f.weight", "norm/scale"),
        Row("transformer.ln_f.bias", "norm/bias"),
        Row("lm_head.weight", "head"),
        Row(_LAYER + "input_layernorm.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "input_layernorm.bias", "layers/attn_norm/bias"),
        Row(_LAYER + "post_attention_layernorm.weight", "layers/mlp_norm/scale"),
        Row(_LAYER + "post_attention_layernorm.bias", "layers/mlp_norm/bias"),
        Row(_LAYER + "ln_attn.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "ln_attn.bias", "layers/attn_norm/bias"),
        Row(_LAYER + "ln_mlp.weight", "layers/mlp_norm/scale"),
        Row(_LAYER + "ln_mlp.bias", "layers/mlp_norm/bias"),
        *fused_rows(_LAYER + "self_attention.query_key_value", "(KXN)D->D(KX)N", "(KXN)->(KX)N"),
        Row(_LAYER + "self_attention.dense.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_LAYER + "self_attention.dense.bias", "layers/attn/out/bias"),
        Row(_LAYER + "mlp.dense_h_to_4h.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_LAYER + "mlp.dense_4h_to_h.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_LAYER + "mlp.dense_h_to_4h.bias", "layers/mlp/up/bias"),
        Row(_LAYER + "mlp.dense_4h_to_h.bias", "layers/mlp/down/bias"),
    ),
    ignored=(r"transformer\.h\.\d+\.self_attention\.(maybe_)?rotary(_emb)?\.inv_freq",),
    tied={"lm_head.weight": "embedding"},
)


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `falcon` GGUF file to the fields of a `FalconConfig`: 7B's layout or 40B's.

    The tensors say which: two norms are 40B's. The rotary base is not stored: it is 10,000.
    """
    fields = gguf.Metadata(metadata, names)
    num_heads, num_kv_heads = fields.heads
    return {
        "model_type": "falcon",
        "vocab_size": fields.vocab_size,
        "hidden_size": fields.width,
        "num_hidden_layers": fields.num_layers,
        "num_attention_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in names else 1,
        "ffn_hidden_size": fields.feed_forward(),
        "max_position_embeddings": fields.max_position,
        "layer_norm_epsilon": fields.norm_eps("layer"),
        "rope_parameters": fields.rope(fields.head_dim(given=False)),
        "tie_word_embeddings": "output.weight" not in names,
    }


# With two norms attn_norm is the MLP's.
_GGUF_NORMS = (
    Row(gguf.BLOCK + "attn_norm_2.weight", "layers/attn_norm/scale"),
    Row(gguf.BLOCK + "attn_norm_2.bias", "layers/attn_norm/bias"),
    Row(gguf.BLOCK + "attn_norm.weight", "layers/mlp_norm/scale"),
    Row(gguf.BLOCK + "attn_norm.bias", "layers/mlp_norm/bias"),
)

_7B = {
    "model_type": "falcon",
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_kv_heads": 71,
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "bias": False,
    "alibi": False,
    "layer_norm_epsilon": 1e-5,
}
_40B = _7B | {
    "hidden_size": 8192,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "num_kv_heads": 8,
    "new_decoder_architecture": True,
}
_180B = _40B | {"hidden_size": 14848, "num_hidden_layers": 80, "num_attention_heads": 232}
_11B = _40B | {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_ln_in_parallel_attn": 1,
    "ffn_hidden_size": 16384,
    "max_position_embeddings": 8192,
    "rope_theta": 500042.0,
    "tie_word_embeddings": False,
}
_RW_1B = _7B | {
    "vocab_size": 50304,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_kv_heads": 32,
    "multi_query": False,
    "parallel_attn": False,
    "bias": True,
    "alibi": True,
}

# The counts are without the output head where it is the embedding; the files hold it all the same.
FAMILY = Family(
    model_type="falcon",
    mapping=config,
    fields_of=fields_of,
    spelling=spelling,
    table=TABLE,
    presets={
        "falcon_7b": Preset("tiiuae/falcon-7b", 6_921_720_704, "Apache-2.0", _7B),
        "falcon_7b_instruct": Preset("tiiuae/falcon-7b-instruct", 6_921_720_704, "Apache-2.0", _7B),
        "falcon_40b": Preset("tiiuae/falcon-40b", 41_303_293_952, "Apache-2.0", _40B),
        "falcon_180b": Preset("tiiuae/falcon-180B", 178_557_088_768, "Falcon-180B TII (gated)", _180B),
        "falcon2_11b": Preset("tiiuae/falcon-11B", 11_102_822_400, "Falcon 2.0 TII", _11B),
        "falcon_rw_1b": Preset("tiiuae/falcon-rw-1b", 1_311_625_216, "Apache-2.0", _RW_1B),
    },
    gguf_architecture="falcon",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(*_GGUF_NORMS, projections="fused"),
)
