"""Mistral (arXiv 2310.06825): Llama with a sliding attention window."""

from __future__ import annotations

import dataclasses
from typing import Any

from massive_jax.models.config import TransformerConfig
from massive_jax.zoo import inverse, llama
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `MistralConfig` to a TransformerConfig; its `sliding_window` counts the query itself.

    Defaults are those of the Hugging Face class.
    """
    fields.assume(num_key_value_heads=8, max_position_embeddings=4096 * 32)
    window = fields.optional_integer("sliding_window", 4096)
    return dataclasses.replace(llama.config(fields), window=window, model_type="mistral")


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `MistralConfig`: the inverse of `config`."""
    return {
        "model_type": "mistral",
        **llama.decoder_fields(config, "MistralForCausalLM"),
        **inverse.rope(config),
        "sliding_window": config.window,
    }


def _shape(**more: Any) -> dict[str, Any]:
    fixed = {"model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
    return llama.shape(4096, 14336, 32, 32, 8, **fixed, **more)


_V1 = _shape(vocab_size=32000, rope_theta=10000.0, sliding_window=4096)
_V3 = _shape(vocab_size=32768, rope_theta=1000000.0, sliding_window=None)

PRESETS = {
    "mistral_7b_v0.1": Preset("mistralai/Mistral-7B-v0.1", 7_241_732_096, "Apache-2.0", _V1),
    "mistral_7b_v0.3": Preset("mistralai/Mistral-7B-v0.3", 7_248_023_552, "Apache-2.0", _V3),
}

# No GGUF architecture of its own: llama.cpp writes Mistral as `llama`, without its window, which it does not implement.
FAMILY = Family(
    model_type="mistral",
    mapping=config,
    fields_of=fields_of,
    table=llama.TABLE,
    presets=PRESETS,
)
