"""The one transformer block. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.attention import Attention, Surroundings
from massive_jax.models.config import BlockConfig
from massive_jax.models.experts import Experts
from massive_jax.models.mlp import MLP
from massive_jax.models.norms import Norm
from massive_jax.models.parameters import Module
from massive_jax.probe import Tap


class Block(Module):
    """Runs attention and MLP around a residual stream; the config says where the norms are and what the MLP reads."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, around: Surroundings, tap: Tap) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; every site of the block goes through `tap`."""
        cfg = self.config
        norm_before = cfg.norm_placement in ("pre", "pre_and_output")
        norm_output = cfg.norm_placement in ("output", "pre_and_output")
        norm_after = cfg.norm_placement == "after_residual"

        def norm(name: str, x: jax.Array, wanted: bool) -> jax.Array:
            return Norm(cfg.norm, name=name)(x) if wanted else x

        normed = norm("attn_norm", x, norm_before)
        mixed = Attention(cfg, name="attn")(tap("attn_norm", normed), around, tap)
        mixed = tap("attn_out", self._scaled("attn_scale", norm("attn_out_norm", mixed, norm_output)))
        mid = tap("mid", norm("attn_norm", self._added(x, mixed), norm_after))

        if cfg.residual != "parallel_shared_norm":
            normed = norm("mlp_norm", mid if cfg.residual == "serial" else x, norm_before)
        normed = tap("mlp_norm", normed)
        mlp = Experts(cfg, name="experts") if cfg.mlp == "experts" else MLP(cfg, name="mlp")
        added = norm("mlp_out_norm", mlp(normed, tap), norm_output)
        added = tap("mlp_out", self._scaled("mlp_scale", added))
        return tap("block_out", norm("mlp_norm", self._added(mid, added), norm_after))

    def _added(self, x: jax.Array, update: jax.Array) -> jax.Array:
        """The stream with an update, clipped where the config says so."""
        limit = self.config.clip_residual
        return x + update if limit is None else jnp.clip(x + update, -limit, limit)

    def _scaled(self, name: str, x: jax.Array) -> jax.Array:
        """`x` times its layer scale [D], where the config has one."""
        if not self.config.layer_scale:
            return x
        return x * self.declare(name, "D", "scale", nn.initializers.ones_init(), x.shape[-1:]).astype(x.dtype)
