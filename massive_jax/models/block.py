"""The one transformer block. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import flax.linen as nn
import jax

from massive_jax.models.attention import Attention
from massive_jax.models.config import TransformerConfig
from massive_jax.models.mlp import GatedMLP
from massive_jax.models.norms import RMSNorm
from massive_jax.probe import Tap


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], tap: Tap) -> jax.Array:
        """[B, T, D] -> [B, T, D]; every site of the block goes through `tap`."""
        cfg = self.config
        normed = tap("attn_norm", RMSNorm(cfg.norm_eps, name="attn_norm")(x))
        x = tap("mid", x + tap("attn_out", Attention(cfg, name="attn")(normed, rope, tap)))
        normed = tap("mlp_norm", RMSNorm(cfg.norm_eps, name="mlp_norm")(x))
        return tap("block_out", x + tap("mlp_out", GatedMLP(cfg, name="mlp")(normed, tap)))
