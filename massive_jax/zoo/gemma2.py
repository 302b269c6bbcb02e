"""Gemma 2 (arXiv 2408.00118): norms on both sides of attention and MLP, softcaps, a window in every other layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import TransformerConfig
from massive_jax.zoo import gemma, gguf, inverse, llama
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `Gemma2Config` to a TransformerConfig."""
    fields.assume(
        **{"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 8192},
    )
    base = gemma.base_config(fields)
    window = fields.optional_integer("sliding_window", 4096)
    return dataclasses.replace(
        base,
        norm_placement="pre_and_output",
        activation=fields.activation("gelu_pytorch_tanh", "hidden_activation"),
        attention_scale=fields.number("query_pre_attn_scalar", 256.0, positive=True) ** -0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping", 50.0, positive=True),
        logit_softcap=fields.optional_number("final_logit_softcapping", 30.0, positive=True),
        model_type="gemma2",
        **fields.windows(base.num_layers, window, [i % 2 == 0 for i in range(base.num_layers)]),
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `Gemma2Config`: the inverse of `config`."""
    return {
        "model_type": "gemma2",
        **gemma.fields_of_base(config, "Gemma2ForCausalLM", act="hidden_activation"),
        **inverse.rope(config),
        **inverse.windows(config),
        "query_pre_attn_scalar": query_scalar_of(config),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def query_scalar_of(config: TransformerConfig) -> int:
    """Gives `query_pre_attn_scalar` of a config, or what is nearest: transformers takes integers above 0 alone."""
    return max(1, round(config.scale**-2)) if config.scale else 1


def query_scalar(fields: Mapping[str, Any], layers_of_27b: int) -> float:
    """Gives `query_pre_attn_scalar`: GGUF files do not hold it, and llama.cpp knows it by the number of layers."""
    by_width = fields["num_hidden_layers"] == layers_of_27b
    return fields["hidden_size"] // fields["num_attention_heads"] if by_width else fields["head_dim"]


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `gemma2` GGUF file to the fields of a `Gemma2Config`."""
    values = gguf.Metadata(metadata, names)
    fields = gemma.gguf_base(values, "gemma2")
    values.only("rope.freq_base_swa", fields["rope_parameters"]["rope_theta"])
    return (
        fields
        | values.windows(period=2, window=4096)
        | {
            "query_pre_attn_scalar": query_scalar(fields, layers_of_27b=46),
            "attn_logit_softcapping": values.number("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": values.number("final_logit_softcapping", 30.0),
        }
    )


def _shape(*sizes: int, head_dim: int = 256, scalar: int = 256) -> dict[str, Any]:
    fixed = {"vocab_size": 256000, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "sliding_window": 4096}
    return llama.shape(
        *sizes,
        model_type="gemma2",
        head_dim=head_dim,
        query_pre_attn_scalar=scalar,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        hidden_activation="gelu_pytorch_tanh",
        **fixed,
    )


_2B, _9B = _shape(2304, 9216, 26, 8, 4), _shape(3584, 14336, 42, 16, 8)
_27B = _shape(4608, 36864, 46, 32, 16, head_dim=128, scalar=144)

PRESETS = {
    "gemma2_2b": Preset("google/gemma-2-2b", 2_614_341_888, gemma.LICENCE, _2B),
    "gemma2_9b": Preset("google/gemma-2-9b", 9_241_705_984, gemma.LICENCE, _9B),
    "gemma2_27b": Preset("google/gemma-2-27b", 27_227_128_320, gemma.LICENCE, _27B),
}

FAMILY = Family(
    model_type="gemma2",
    mapping=config,
    fields_of=fields_of,
    table=llama.decoder_table(output_norms=True),
    presets=PRESETS,
    gguf_architecture="gemma2",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(),
)
