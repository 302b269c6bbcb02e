"""Flax modules: one config, one block, the models built from it."""

from massive_jax.models.block import Block
from massive_jax.models.config import (
    AlibiConfig,
    AttentionBias,
    BlockConfig,
    ExpertsConfig,
    NormConfig,
    RopeConfig,
    TransformerConfig,
)
from massive_jax.models.language_model import Head, LanguageModel, Packing, empty_cache, head_logits, head_of, last_of
from massive_jax.models.norms import FrozenNorm, frozen_norm
from massive_jax.models.parameters import Parameter, declared
from massive_jax.models.stack import Resume
from massive_jax.models.vision import VisionTransformer
from massive_jax.models.vision_config import VisionConfig


def build(config: TransformerConfig | VisionConfig) -> LanguageModel | VisionTransformer:
    """Builds the module of a config."""
    return VisionTransformer(config) if isinstance(config, VisionConfig) else LanguageModel(config)


__all__ = [
    "AlibiConfig",
    "AttentionBias",
    "Block",
    "BlockConfig",
    "ExpertsConfig",
    "FrozenNorm",
    "Head",
    "LanguageModel",
    "NormConfig",
    "Packing",
    "Parameter",
    "Resume",
    "RopeConfig",
    "TransformerConfig",
    "VisionConfig",
    "VisionTransformer",
    "build",
    "declared",
    "empty_cache",
    "frozen_norm",
    "head_logits",
    "head_of",
    "last_of",
]
