"""Flax modules: one config, one block, the models built from it."""

from massive_jax.models.block import Block
from massive_jax.models.config import RopeConfig, TransformerConfig
from massive_jax.models.language_model import LanguageModel, head_logits, head_of

__all__ = ["Block", "LanguageModel", "RopeConfig", "TransformerConfig", "head_logits", "head_of"]
