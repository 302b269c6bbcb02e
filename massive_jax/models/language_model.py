"""A decoder-only language model as a pure function of `params` and `edits`, sowing `intermediates`.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.block import Block
from massive_jax.models.config import TransformerConfig
from massive_jax.models.norms import RMSNorm
from massive_jax.models.positions import rope_tables
from massive_jax.probe import SITES, Capture, CapturePlan, Tap, compile_captures, empty_results, present

# What is sown when `intermediates` is mutable and nothing in particular is asked for.
DEFAULT_CAPTURE = Capture("block_out", top_k=3, median=True)


class LanguageModel(nn.Module):
    """Token embedding, L blocks under `nn.scan`, final norm, output head.

    `module.apply({"params": P, "edits": E}, tokens, capture=plan, mutable=["intermediates"])`, where E comes from
    `massive_jax.probe.compile_edits` and plan from `massive_jax.probe.compile_captures`. Sown under
    `intermediates`: site name -> tensor or `Stats`, per-layer sites with a leading axis of the layers asked for.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, capture: CapturePlan | None = None, logits: bool = True
    ) -> tuple[jax.Array | None, jax.Array]:
        """Runs the model.

        Args:
          tokens: int [B, T].
          capture: what to sow, when `intermediates` is mutable; None for top-3 and median of every `block_out`.
          logits: whether to compute the logits (static).

        Returns:
          logits [B, T, V] float32 (None unless asked for) and the output of the final norm [B, T, D].
        """
        # Float32 means float32 on every device: GPUs and TPUs would otherwise multiply in TF32 or bfloat16.
        with jax.default_matmul_precision("highest" if self.config.dtype == "float32" else "default"):
            return self._run(tokens, capture, logits)

    def _run(
        self, tokens: jax.Array, plan: CapturePlan | None, want_logits: bool
    ) -> tuple[jax.Array | None, jax.Array]:
        cfg = self.config
        B, T = tokens.shape
        if not self.is_mutable_collection("intermediates") or self.is_initializing():
            plan = CapturePlan()
        elif plan is None:
            plan = compile_captures(DEFAULT_CAPTURE, cfg.num_layers)
        edits: dict[str, Any] = {
            site: self.get_variable("edits", site) for site in SITES if self.has_variable("edits", site)
        }
        tap = Tap(edits, plan)

        embedding = self.param(
            "embedding", nn.initializers.normal(0.02), (cfg.vocab_size, cfg.hidden_size), jnp.float32
        )
        x = tap("embed", jnp.take(embedding, tokens, axis=0).astype(cfg.jnp_dtype))

        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        rope = rope_tables(cfg.rope, cfg.head_dim, positions, T)
        layers = (jnp.arange(1, cfg.num_layers + 1), dict(plan.slots))
        carry = (x, empty_results(plan, cfg.sizes(B, T), cfg.jnp_dtype))

        def step(block: Block, carry: Any, layer: Any, rope: Any, edits: Any) -> tuple[Any, None]:
            x, results = carry
            number, slots = layer
            tap = Tap(edits, plan, number, slots, results)
            x = block(x, rope, tap)
            return (x, tap.results), None

        scan = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
        )
        (x, results), _ = scan(Block(cfg, name="layers"), carry, layers, rope, edits)

        x = tap("final_norm", RMSNorm(cfg.norm_eps, name="norm")(x))
        out = None
        if want_logits or tap.wants("logits") or self.is_initializing():
            out = tap("logits", head_logits(x, self._head(embedding)))
        for site, value in present(plan, results | tap.results).items():
            self.sow("intermediates", site, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return out, x

    def _head(self, embedding: jax.Array) -> jax.Array:
        cfg = self.config
        if cfg.tie_embeddings:
            return embedding
        return self.param("head", nn.initializers.normal(0.02), (cfg.vocab_size, cfg.hidden_size), jnp.float32)


def head_logits(x: jax.Array, head: jax.Array) -> jax.Array:
    """Next-token logits [..., V] in float32 from the final norm's output [..., D] and the head [V, D]."""
    return jnp.einsum("...D,VD->...V", x, head.astype(x.dtype), preferred_element_type=jnp.float32)


def head_of(config: TransformerConfig, params: Any) -> jax.Array:
    """The output head [V, D] of a language model's parameters: its own, or the embedding it is tied to."""
    return params["embedding" if config.tie_embeddings else "head"]
