"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373), whose training checkpoints are revisions.

`mj.load("pythia_70m", revision="step1000")`; there are step0, step1, 2, 4 … 512, step1000, 2000 … step143000.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import NormConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable, fused_rows
from massive_jax.zoo import gguf, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `GPTNeoXConfig` to a TransformerConfig; knows `rotary_pct` and `rotary_emb_base`, of transformers 4."""
    blocks = fields.blocks()
    max_position = fields.integer("max_position_embeddings", 2048, least=1)
    rope = fields.rope(
        max_position,
        head_dim=blocks["head_dim"],
        theta_field="rotary_emb_base",
        partial=0.25,
        partial_field="rotary_pct",
    )
    bias = fields.flag("attention_bias", True)
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=fields.size("intermediate_size"),
        max_position=max_position,
        norm=NormConfig("layer", fields.number("layer_norm_eps", 1e-5, least=0)),
        residual="parallel" if fields.flag("use_parallel_residual", True) else "serial",
        rope=rope,
        qkv_bias=bias,
        out_bias=bias,
        mlp="plain",
        activation=fields.activation("gelu"),
        mlp_bias=True,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        model_type="gpt_neox",
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `GPTNeoXConfig`: the inverse of `config`."""
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": config.vocab_size,
        **inverse.blocks(config),
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position,
        "layer_norm_eps": config.norm.eps,
        "use_parallel_residual": config.residual == "parallel",
        **inverse.rope(config, theta_field="rotary_emb_base", partial_field="rotary_pct"),
        "attention_bias": config.qkv_bias or config.out_bias,
        **inverse.activation(config),
        "tie_word_embeddings": config.tie_embeddings,
    }


_LAYER = "gpt_neox.layers.{l}."

# The fused rows are query, key and value of the first head, then of the second …
TABLE = WeightTable(
    rows=(
        Row("gpt_neox.embed_in.weight", "embedding"),
        Row("gpt_neox.final_layer_norm.weight", "norm/scale"),
        Row("gpt_neox.final_layer_norm.bias", "norm/bias"),
        Row("embed_out.weight", "head"),
        Row("lm_head.weight", "head"),
        Row(_LAYER + "input_layernorm.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "input_layernorm.bias", "layers/attn_norm/bias"),
        *fused_rows(_LAYER + "attention.query_key_value", "(HQN)D->DHN", "(HQN)->HN"),
        Row(_LAYER + "attention.dense.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_LAYER + "attention.dense.bias", "layers/attn/out/bias"),
        Row(_LAYER + "post_attention_layernorm.weight", "layers/mlp_norm/scale"),
        Row(_LAYER + "post_attention_layernorm.bias", "layers/mlp_norm/bias"),
        Row(_LAYER + "mlp.dense_h_to_4h.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_LAYER + "mlp.dense_h_to_4h.bias", "layers/mlp/up/bias"),
        Row(_LAYER + "mlp.dense_4h_to_h.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_LAYER + "mlp.dense_4h_to_h.bias", "layers/mlp/down/bias"),
    ),
    ignored=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    tied={"embed_out.weight": "embedding", "lm_head.weight": "embedding"},
)


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of architecture "gptneox" to a config in the fields of `GPTNeoXConfig`."""
    fields = gguf.Metadata(metadata, names)
    return {
        "model_type": "gpt_neox",
        "vocab_size": fields.vocab_size,
        "hidden_size": fields.width,
        "num_hidden_layers": fields.num_layers,
        "num_attention_heads": fields.plain_heads(),
        "intermediate_size": fields.feed_forward(),
        "max_position_embeddings": fields.max_position,
        "layer_norm_eps": fields.norm_eps("layer"),
        "rope_parameters": fields.rope(fields.head_dim(given=False, partial=True), partial=True),
        "use_parallel_residual": fields.flag("use_parallel_residual"),
        "attention_bias": "blk.0.attn_qkv.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
    }


def _config(layers: int, width: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
    }


_PYTHIA = {
    "14m": (_config(6, 128, 4, 50304), 14_067_712),
    "31m": (_config(6, 256, 8, 50304), 30_494_720),
    "70m": (_config(6, 512, 8, 50304), 70_426_624),
    "160m": (_config(12, 768, 12, 50304), 162_322_944),
    "410m": (_config(24, 1024, 16, 50304), 405_334_016),
    "1b": (_config(16, 2048, 8, 50304), 1_011_781_632),
    "1.4b": (_config(24, 2048, 16, 50304), 1_414_647_808),
    "2.8b": (_config(32, 2560, 32, 50304), 2_775_208_960),
    "6.9b": (_config(32, 4096, 32, 50432), 6_857_302_016),
    "12b": (_config(36, 5120, 40, 50688), 11_846_072_320),
}

PRESETS = {
    f"pythia_{size}{suffix}".replace("-", "_"): Preset(f"EleutherAI/pythia-{size}{suffix}", count, "Apache-2.0", shape)
    for size, (shape, count) in _PYTHIA.items()
    for suffix in (("",) if size in ("14m", "31m") else ("", "-deduped"))
} | {
    "gpt_neox_20b": Preset(
        "EleutherAI/gpt-neox-20b",
        20_554_567_680,
        "Apache-2.0",
        _config(44, 6144, 64, 50432) | {"hidden_act": "gelu_fast"},
    )
}

FAMILY = Family(
    model_type="gpt_neox",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets=PRESETS,
    gguf_architecture="gptneox",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(projections="fused"),
)
