"""Gemma (arXiv 2403.08295): unit-offset norms, an embedding scaled by √D, wide heads, a tied head.

The embedding's scale is rounded to the dtype of the activations, as in Hugging Face: √3072 = 55.43 is 55.5 in bfloat16.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import RopeConfig, TransformerConfig
from massive_jax.zoo import gguf, inverse, llama
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields

LICENCE = "Gemma (gated)"
TERMS = "https://ai.google.dev/gemma/terms"


def base_config(fields: Fields, rope: RopeConfig | None = None) -> TransformerConfig:
    """Says what all Gemmas share. `norm_unit_offset` is this project's own: GGUF files have the one added already."""
    fields.assume(head_dim=256, rms_norm_eps=1e-6, tie_word_embeddings=True)
    base = llama.config(fields, rope)
    return dataclasses.replace(
        base,
        norm=dataclasses.replace(base.norm, unit_offset=fields.flag("norm_unit_offset", True)),
        embedding_scale=math.sqrt(base.hidden_size),
    )


def fields_of_base(config: TransformerConfig, architecture: str, *, act: str) -> dict[str, Any]:
    """Gives the fields that all Gemmas share, but for rotary settings; see `massive_jax.zoo.llama.decoder_fields`."""
    return llama.decoder_fields(config, architecture, act=act) | llama.biases(config)


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `GemmaConfig`: the inverse of `config`."""
    return {
        "model_type": "gemma",
        **fields_of_base(config, "GemmaForCausalLM", act="hidden_act"),
        **inverse.activation(config, "hidden_activation"),
        **inverse.rope(config),
    }


def config(fields: Fields) -> TransformerConfig:
    """Maps `GemmaConfig` to a TransformerConfig. "gelu" means the tanh form: so the first releases wrote it."""
    fields.assume(
        **{"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28},
        **{"num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 8192},
    )
    given = fields.get("hidden_act", "gelu_pytorch_tanh")
    activation = "gelu_tanh" if given == "gelu" else fields.activation("gelu_pytorch_tanh")
    # Some releases of transformers read this field, some the other.
    fields.only("hidden_activation", *(["gelu_pytorch_tanh", "gelu"] if activation == "gelu_tanh" else [given]))
    return dataclasses.replace(base_config(fields), activation=activation, model_type="gemma")


def gguf_base(values: gguf.Metadata, model_type: str) -> dict[str, Any]:
    """Says what the GGUF files of all Gemmas share: llama.cpp's converter added one to the scale of every norm."""
    return values.decoder(model_type) | {"norm_unit_offset": False}


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `gemma` GGUF file to the fields of a `GemmaConfig`."""
    return gguf_base(gguf.Metadata(metadata, names), "gemma")


def _shape(*sizes: int) -> dict[str, Any]:
    fixed = {"vocab_size": 256000, "head_dim": 256, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192}
    return llama.shape(*sizes, model_type="gemma", hidden_act="gelu", **fixed)


_2B, _7B = _shape(2048, 16384, 18, 8, 1), _shape(3072, 24576, 28, 16, 16)

PRESETS = {
    "gemma_2b": Preset("google/gemma-2b", 2_506_172_416, LICENCE, _2B),
    "gemma_7b": Preset("google/gemma-7b", 8_537_680_896, LICENCE, _7B),
}

FAMILY = Family(
    model_type="gemma",
    mapping=config,
    fields_of=fields_of,
    table=llama.TABLE,
    presets=PRESETS,
    gguf_architecture="gemma",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(),
)
