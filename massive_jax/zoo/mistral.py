"""Mistral (arXiv 2310.06825): Llama with a sliding attention window."""

from __future__ import annotations

import dataclasses

from massive_jax.models.config import TransformerConfig
from massive_jax.zoo import llama
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """`MistralConfig` -> TransformerConfig; its `sliding_window` counts the query itself."""
    window = fields.nullable("sliding_window", absent=4096)
    return dataclasses.replace(llama.config(fields), window=window, model_type="mistral")


FAMILY = Family(
    model_type="mistral",
    config=config,
    table=llama.TABLE,
    presets={"mistral_7b_v0.1": Preset("mistralai/Mistral-7B-v0.1", 7_241_732_096, "Apache-2.0")},
)
