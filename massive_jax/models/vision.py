"""A vision transformer as a pure function of `params` and `edits`, sowing `intermediates`.

Axis letters: see `massive_jax.probe.sites`; C channels, R and Q rows and columns of patches, I and J of pixels in one.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.dtypes import product_precision, wide
from massive_jax.models.attention import Surroundings
from massive_jax.models.attention_bias import SlotPlaces
from massive_jax.models.linear import Projection
from massive_jax.models.mlp import MLP
from massive_jax.models.norms import Norm
from massive_jax.models.parameters import Module
from massive_jax.models.positions import axial_rope_tables, resize_table
from massive_jax.models.stack import Pass, outer_tap, run_blocks, sow
from massive_jax.models.vision_config import CHANNELS, VisionConfig
from massive_jax.probe import CapturePlan, Tap


class VisionTransformer(Module):
    """Runs patch embedding, L blocks under `nn.scan`, final norm, pooling, linear head.

    `module.apply({"params": P, "edits": E}, images, capture=plan, mutable=["intermediates"])`, as `LanguageModel`.

    Attributes:
      config: the options.
      remat: what of a block is computed again in the backward pass instead of kept (`massive_jax.models.stack.REMAT`).
      unroll: blocks in the body of the loop over them: more is faster to train on CPU, and slower to compile.
    """

    config: VisionConfig
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(
        self, images: jax.Array, *, capture: CapturePlan | None = None, logits: bool = True
    ) -> tuple[jax.Array | None, jax.Array, jax.Array]:
        """Runs the model.

        Args:
          images: [B, height, width, 3], normalised as the checkpoint wants it.
          capture: what to sow, when `intermediates` is mutable; None for nothing.
          logits: whether to compute the logits, where there is a head (static).

        Returns:
          logits [B, V] float32 (None unless asked for), the last hidden state [B, T, D] and the pooled feature [B, W].
        """
        with product_precision(self.config.dtype):
            return self._run(images, capture, logits)

    def _run(
        self, images: jax.Array, plan: CapturePlan | None, want_logits: bool
    ) -> tuple[jax.Array | None, jax.Array, jax.Array]:
        cfg = self.config
        tap = outer_tap(self, cfg, plan)
        grid = cfg.grid(*images.shape[1:3])
        x = tap("embed", self._embed(images, grid, tap))
        rope = None
        if cfg.position == "rope":
            rope = axial_rope_tables(cfg.rope, cfg.head_dim, grid, cfg.prefix)
        slots = SlotPlaces() if cfg.num_slots else None
        around = Surroundings(rope, rope, None, None, slot_places=slots)
        sequence = Pass(x, (around, None), x.shape[1])
        x, results = run_blocks(cfg, tap, sequence, remat=self.remat, unroll=self.unroll)
        hidden = tap("final_norm", Norm(cfg.norm, name="norm")(x) if cfg.final_norm else x)
        pooled = self._pool(hidden)
        out = None
        if cfg.num_classes:
            init, width = nn.initializers.normal(0.02), pooled.shape[-1]
            kernel = self.declare("head", "VW", "head", init, (cfg.num_classes, width), jnp.float32)
            zeros = nn.initializers.zeros_init()
            bias = self.declare("head_bias", "V", "bias", zeros, (cfg.num_classes,), jnp.float32)
            if want_logits:
                out = jnp.einsum(
                    "BW,VW->BV", pooled, kernel.astype(pooled.dtype), preferred_element_type=wide(pooled.dtype)
                ) + bias.astype(wide(pooled.dtype))
        sow(self, tap, results)
        return out, hidden, pooled

    def _embed(self, images: jax.Array, grid: tuple[int, int], tap: Tap) -> jax.Array:
        """The input of the first block [B, T, D]: class token, registers, patches."""
        cfg = self.config
        (rows, columns), side, D = grid, cfg.patch_size, cfg.hidden_size
        B = images.shape[0]
        init = nn.initializers.normal(0.02)
        x = images[:, : rows * side, : columns * side].astype(cfg.jnp_dtype)
        x = x.reshape(B, rows, side, columns, side, CHANNELS)
        x = Projection((side, side, CHANNELS, D), "BRIQJC,IJCD->BRQD", cfg.patch_bias, name="patch")(x)
        x = tap("patch_embed", x.reshape(B, rows * columns, D))
        prefix = []
        if cfg.class_token:
            prefix.append(self.declare("class_token", "D", "table", init, (D,), jnp.float32).astype(x.dtype)[None])
        if cfg.position == "learned":
            native = cfg.native_grid
            shape = (cfg.table_prefix + native[0] * native[1], D)
            table = self.declare("position_embedding", "MD", "table", init, shape, jnp.float32)
            own, patches = table[: cfg.table_prefix], table[cfg.table_prefix :]
            if grid != native:
                patches = resize_table(patches, native, grid, antialias=cfg.interpolation == "bicubic_antialias")
            x = x + patches.astype(x.dtype)
            if cfg.table_prefix:
                prefix[0] = prefix[0] + own.astype(x.dtype)
        if cfg.registers:
            shape = (cfg.registers, D)
            prefix.append(self.declare("registers", "ZD", "table", init, shape, jnp.float32).astype(x.dtype))
        x = jnp.concatenate([*(jnp.broadcast_to(token, (B, *token.shape)) for token in prefix), x], axis=1)
        return Norm(cfg.norm, name="embed_norm")(x) if cfg.embed_norm else x

    def _pool(self, hidden: jax.Array) -> jax.Array:
        """The image's one feature [B, W] from the last hidden state [B, T, D]."""
        cfg = self.config
        if cfg.pooling == "attention":
            pooled = AttentionPool(cfg, name="pool")(hidden)
        else:
            parts = {
                "class": lambda: [hidden[:, 0]],
                "patch_mean": lambda: [jnp.mean(hidden[:, cfg.prefix :], axis=1)],
                "all_mean": lambda: [jnp.mean(hidden, axis=1)],
                "class_and_patch_mean": lambda: [hidden[:, 0], jnp.mean(hidden[:, cfg.prefix :], axis=1)],
            }
            pooled = jnp.concatenate(parts[cfg.pooling](), axis=-1)
        if cfg.pooled_norm:
            pooled = Norm(cfg.norm, "W", name="pooled_norm")(pooled)
        if cfg.pooled_dense:
            width = pooled.shape[-1]
            pooled = jnp.tanh(Projection((width, width), "BW,WD->BD", True, name="pooled_dense")(pooled))
        return pooled


class AttentionPool(Module):
    """Attends with a learned query to all tokens, then norm, MLP, residual ("MAP head", arXiv 2205.01580)."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, D]."""
        cfg = self.config
        D, H, N = cfg.hidden_size, cfg.num_heads, cfg.head_dim
        probe = self.declare("probe", "D", "table", nn.initializers.normal(0.02), (D,), jnp.float32).astype(x.dtype)
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, D))
        query = Projection((D, H, N), "BTD,DHN->BTHN", True, name="query")(probe)
        key = Projection((D, H, N), "BTD,DHN->BTHN", True, name="key")(x)
        value = Projection((D, H, N), "BTD,DHN->BTHN", True, name="value")(x)
        mixed = jax.nn.dot_product_attention(query, key, value, scale=cfg.scale)
        mixed = Projection((H, N, D), "BTHN,HND->BTD", True, name="out")(mixed)
        normed = Norm(cfg.norm, name="norm")(mixed)
        return (mixed + MLP(dataclasses.replace(cfg, mlp_bias=True), name="mlp")(normed, Tap({}, CapturePlan())))[:, 0]
