"""Flax modules: one config, one block, the models built from it."""

from massive_jax.models.block import Block
from massive_jax.models.config import (
    AlibiConfig,
    AttentionBias,
    ExpertsConfig,
    NormConfig,
    RopeConfig,
    TransformerConfig,
)
from massive_jax.models.language_model import Head, LanguageModel, empty_cache, head_logits, head_of

__all__ = [
    "AlibiConfig",
    "AttentionBias",
    "Block",
    "ExpertsConfig",
    "Head",
    "LanguageModel",
    "NormConfig",
    "RopeConfig",
    "TransformerConfig",
    "empty_cache",
    "head_logits",
    "head_of",
]
