"""A decoder-only language model as a pure function of `params` and `edits`, sowing `intermediates`.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.attention import Surroundings, causal_mask
from massive_jax.models.block import Block
from massive_jax.models.config import RopeConfig, TransformerConfig
from massive_jax.models.linear import Projection
from massive_jax.models.norms import Norm
from massive_jax.models.positions import alibi_bias, rope_tables
from massive_jax.probe import ALL_SITES, Capture, CapturePlan, Tap, compile_captures, empty_results, present

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
            site: self.get_variable("edits", site) for site in ALL_SITES if self.has_variable("edits", site)
        }
        tap = Tap(edits, plan)

        embedding, x = self._embed(tokens)
        x = tap("embed", x)
        around, local = self._surroundings(B, T)
        layers = (jnp.arange(1, cfg.num_layers + 1), jnp.asarray(self._windowed()), dict(plan.slots))
        carry = (x, empty_results(plan, cfg.sizes(B, T), cfg.jnp_dtype))

        def step(block: Block, carry: Any, layer: Any, around: Any, local: Any, edits: Any) -> tuple[Any, None]:
            x, results = carry
            number, windowed, slots = layer
            if local is not None:
                around = jax.tree.map(lambda here, there: jnp.where(windowed, there, here), around, local)
            tap = Tap(edits, plan, number, slots, results)
            x = block(x, around, tap)
            return (x, tap.results), None

        scan = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
        )
        (x, results), _ = scan(Block(cfg, name="layers"), carry, layers, around, local, edits)

        x = tap("final_norm", Norm(cfg.norm, name="norm")(x) if cfg.final_norm else x)
        if cfg.embedding_size is not None:
            x = Projection((cfg.hidden_size, cfg.embedding_size), "BTD,DW->BTW", name="project_out")(x)
        head = self._head(embedding)
        out = None
        if want_logits or tap.wants("logits"):
            out = tap("logits", head_logits(cfg, x, head))
        for site, value in present(plan, results | tap.results).items():
            self.sow("intermediates", site, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return out, x

    def _embed(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The token embedding [V, W] and the input of the first block [B, T, D]; W = D for most models."""
        cfg = self.config
        init, width = nn.initializers.normal(0.02), cfg.embedding_size or cfg.hidden_size
        embedding = self.param("embedding", init, (cfg.vocab_size, width), jnp.float32)
        x = jnp.take(embedding, tokens, axis=0).astype(cfg.jnp_dtype)
        if cfg.embedding_scale is not None:
            x = x * jnp.asarray(cfg.embedding_scale, x.dtype)
        if cfg.embedding_size is not None:
            x = Projection((width, cfg.hidden_size), "BTW,WD->BTD", name="project_in")(x)
        if cfg.position == "learned":
            rows = cfg.max_position + cfg.position_offset
            table = self.param("position_embedding", init, (rows, cfg.hidden_size), jnp.float32)
            x = x + table[cfg.position_offset :][: tokens.shape[1]].astype(x.dtype)
        return embedding, x

    def _windowed(self) -> tuple[bool, ...]:
        cfg = self.config
        return cfg.window_layers or (cfg.window is not None,) * cfg.num_layers

    def _surroundings(self, B: int, T: int) -> tuple[Surroundings, Surroundings | None]:
        """What attention sees in a layer, and in a windowed one where only some are (None where all are alike)."""
        cfg = self.config
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))

        def tables(rope: RopeConfig) -> tuple[jax.Array, jax.Array] | None:
            return rope_tables(rope, cfg.head_dim, positions, T) if cfg.position == "rope" else None

        bias = None
        if cfg.alibi is not None:
            bias = alibi_bias(cfg.alibi, cfg.num_heads, T) * (cfg.scale if cfg.alibi.before_scale else 1.0)
        if cfg.window_layers is None:
            return Surroundings(tables(cfg.rope), bias, None), None
        everywhere = Surroundings(tables(cfg.rope), bias, causal_mask(T))
        return everywhere, Surroundings(tables(cfg.local_rope or cfg.rope), bias, causal_mask(T, cfg.window))

    def _head(self, embedding: jax.Array) -> Head:
        cfg = self.config
        kernel = embedding
        if not cfg.tie_embeddings:
            kernel = self.param("head", nn.initializers.normal(0.02), embedding.shape, jnp.float32)
        bias = None
        if cfg.head_bias:
            bias = self.param("head_bias", nn.initializers.zeros_init(), (cfg.vocab_size,), jnp.float32)
        return Head(kernel, bias)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """The output head: kernel [V, W] and bias [V] or None."""

    kernel: jax.Array
    bias: jax.Array | None = None


def head_logits(config: TransformerConfig, x: jax.Array, head: Head) -> jax.Array:
    """Next-token logits [..., V] in float32 from the model's last hidden state [..., W]."""
    logits = jnp.einsum("...W,VW->...V", x, head.kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    if head.bias is not None:
        logits = logits + head.bias.astype(jnp.float32)
    if config.logit_scale is not None:
        logits = logits * config.logit_scale
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits


def head_of(config: TransformerConfig, params: Any) -> Head:
    """The output head of a language model's parameters: its own, or the embedding it is tied to."""
    return Head(params["embedding" if config.tie_embeddings else "head"], params.get("head_bias"))
