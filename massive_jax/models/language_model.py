"""A decoder-only language model as a pure function of `params` and `edits`, sowing `intermediates`.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.dtypes import product_precision, wide
from massive_jax.models.attention import Surroundings, causal_mask
from massive_jax.models.attention_bias import SlotPlaces
from massive_jax.models.config import RopeConfig, TransformerConfig
from massive_jax.models.embedding import look_up
from massive_jax.models.linear import Projection
from massive_jax.models.norms import Norm
from massive_jax.models.parameters import Module, Role
from massive_jax.models.positions import alibi_bias, rope_tables
from massive_jax.models.stack import LayerKinds, Pass, Resume, outer_tap, run_blocks, sow, taken_up
from massive_jax.parallel import gathered, split
from massive_jax.probe import UNPADDED, CapturePlan, Coordinates


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packing:
    """Says how several sequences share a row, and what they begin with alike.

    Attributes:
      places: int [B, T], of each token in its own sequence; any for padding.
      seen: bool [B, T, T], which tokens of its row a token sees: itself, and those before it in its own sequence, which
        are in columns before.
    """

    places: Any
    seen: Any


class LanguageModel(Module):
    """Runs token embedding, L blocks under `nn.scan`, final norm, output head.

    `module.apply({"params": P, "edits": E}, tokens, capture=plan, mutable=["intermediates"])`, where E comes from
    `massive_jax.probe.compile_edits` and plan from `massive_jax.probe.compile_captures`. Sown under
    `intermediates`: site name -> tensor or `Stats`, per-layer sites with a leading axis of the layers asked for.

    Attributes:
      config: the options.
      remat: what of a block is computed again in the backward pass instead of kept (`massive_jax.models.stack.REMAT`).
      unroll: blocks in the body of the loop over them: more is faster to train on CPU, and slower to compile.
    """

    config: TransformerConfig
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        slots: jax.Array | None = None,
        capture: CapturePlan | None = None,
        logits: bool = True,
        last_only: bool = False,
        resume: Resume | None = None,
        packing: Packing | None = None,
    ) -> tuple[jax.Array | None, jax.Array]:
        """Runs the model.

        Args:
          tokens: int [B, T].
          positions: int [B, T]: the place of each token in its sequence, ascending; -1 for padding, which may be
            anywhere. None for 0 to T - 1.
          slots: int [B, T]: where in the cache each token goes, out of range for nowhere. The cache is the collection
            `cache`, which must be mutable; `massive_jax.models.empty_cache` makes one.
          capture: what to sow, when `intermediates` is mutable; None for nothing.
          logits: whether to compute the logits (static).
          last_only: computes the logits of each sequence's last token only (static); a capture or edit of them needs
            all.
          resume: where to take up a pass over these tokens that was made before; with `positions`, without `slots`.
          packing: where a row is several sequences; with `positions`, by which edits and captures count the tokens of a
            row, without `slots`. Not for a rotary embedding that is scaled by the length of a sequence.

        Returns:
          logits [B, T, V] float32 (None unless asked for) and the output of the final norm [B, T, D]; zeros at padding.
        """
        with product_precision(self.config.dtype):
            return self._run(tokens, positions, slots, capture, logits, last_only, resume, packing)

    def _run(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        slots: jax.Array | None,
        plan: CapturePlan | None,
        want_logits: bool,
        last_only: bool,
        resume: Resume | None,
        packing: Packing | None,
    ) -> tuple[jax.Array | None, jax.Array]:
        cfg = self.config
        B, T = tokens.shape
        places = self._places(B, T, positions, slots, packing)
        tap = outer_tap(self, cfg, plan, places.coordinates(cfg.num_slots))

        embedding, x = self._embed(tokens, places.queries)
        x = tap("embed", x) if resume is None else taken_up(tap, resume)
        sequence = Pass(x, self._surroundings(places), places.keys.shape[1])
        sink, remat, unroll = self._sink_tokens(), self.remat, self.unroll
        x, results = run_blocks(cfg, tap, sequence, sink, remat=remat, unroll=unroll, resume=resume)

        x = tap("final_norm", Norm(cfg.norm, name="norm")(x) if cfg.final_norm else x)
        if cfg.embedding_size is not None:
            x = Projection((cfg.hidden_size, cfg.embedding_size), "BTD,DW->BTW", name="project_out")(x)
        head = self._head(embedding)
        out = None
        if want_logits or tap.wants("logits"):
            if last_only and not tap.wants("logits"):
                out = head_logits(cfg, last_of(x, positions), head)
            else:
                out = tap("logits", head_logits(cfg, x, head))
        sow(self, tap, results)
        return out, x

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The token embedding [V, W] and the input of the first block [B, T, D]; W = D for most models."""
        cfg = self.config
        init, width = nn.initializers.normal(0.02), cfg.embedding_size or cfg.hidden_size
        role: Role = "head" if cfg.tie_embeddings else "table"
        embedding = self.declare("embedding", "VW", role, init, (cfg.vocab_size, width), jnp.float32)
        x = look_up(embedding, tokens).astype(cfg.jnp_dtype)
        if cfg.embedding_scale is not None:
            x = x * jnp.asarray(cfg.embedding_scale, x.dtype)
        if cfg.embedding_size is not None:
            x = Projection((width, cfg.hidden_size), "BTW,WD->BTD", name="project_in")(x)
        if cfg.position == "learned":
            rows = cfg.max_position + cfg.position_offset
            table = self.declare("position_embedding", "MD", "table", init, (rows, cfg.hidden_size), jnp.float32)
            x = x + jnp.take(table, positions + cfg.position_offset, axis=0).astype(x.dtype)
        return embedding, x

    def _places(
        self, B: int, T: int, positions: jax.Array | None, slots: jax.Array | None, packing: Packing | None
    ) -> _Places:
        """Where the tokens of this call and those of the cache stand in their sequences."""
        first = self.config.prefix_length
        if positions is None:
            here = jnp.broadcast_to(jnp.arange(T) + first, (B, T))
            return _Places(here, here)
        if packing is not None:
            here = packing.places + first
            return _Places(here, here, positions, positions, seen=packing.seen)
        if slots is None:
            here = jnp.maximum(positions, 0) + first
            return _Places(here, here, positions, positions)
        stored = self.variable("cache", "positions", lambda: jnp.full((B, T), -1, jnp.int32))
        rows = jnp.arange(B)[:, None]
        stored.value = stored.value.at[rows, slots].set(positions, mode="drop")
        taken = stored.value >= 0
        # A token's position is its place among the tokens that are still in the cache; it is the one it came with until
        # something is evicted.
        order = jnp.argsort(jnp.where(taken, stored.value, jnp.iinfo(jnp.int32).max), axis=1, stable=True)
        keys = jnp.argsort(order, axis=1) + first
        queries = jnp.take_along_axis(keys, slots, axis=1, mode="clip")
        return _Places(queries, jnp.where(taken, keys, 0), positions, stored.value, slots)

    def _surroundings(self, places: _Places, with_slots: bool = True) -> LayerKinds:
        """What attention sees in a layer, and in a windowed one where only some are (None where all are alike)."""
        cfg = self.config
        n, S = cfg.num_slots, places.keys.shape[1]
        before = jnp.arange(cfg.prefix_length)[None]  # positions of the slots, where they have any
        bias = slots_bias = None
        if cfg.alibi is not None:
            everywhere = jnp.concatenate(
                [jnp.broadcast_to(before, (len(places.keys), before.size)), places.keys], axis=1
            )
            bias = alibi_bias(cfg.alibi, cfg.num_heads, everywhere) * (cfg.scale if cfg.alibi.before_scale else 1.0)
            slots_bias, bias = bias[..., : before.size], bias[..., before.size :]

        def around(rope: RopeConfig, mask: jax.Array | None, window: int | None) -> Surroundings:
            tables = key_tables = slot_tables = None
            if cfg.position == "rope":
                length = S + before.size
                lengths = None if places.own_keys is None else places.num_keys + before.size
                tables = key_tables = rope_tables(rope, cfg.head_dim, places.queries, length, lengths)
                if places.slots is not None:
                    key_tables = rope_tables(rope, cfg.head_dim, places.keys, length, lengths)
                slot_tables = rope_tables(rope, cfg.head_dim, before, length, lengths)
            slot_places = None
            if n and with_slots:
                slot_places = SlotPlaces()
                if before.size:
                    # Only a window can hide a prefix: all of it comes before every token. (Where only some layers have
                    # one, the others need a mask of the same shape.)
                    near = None
                    if window or cfg.window_layers is not None:
                        far = window or places.queries.shape[1] + S + n
                        near = places.queries[..., None] - before < far
                    slot_places = SlotPlaces(slot_tables, slots_bias, near)
            return Surroundings(tables, key_tables, bias, mask, places.slots, slot_places)

        local_rope = cfg.local_rope or cfg.rope
        if cfg.window_layers is None:
            mask = None if places.own_keys is None else places.mask(cfg.window)
            return around(cfg.rope if cfg.window is None else local_rope, mask, cfg.window), None
        return around(cfg.rope, places.mask(None), None), around(local_rope, places.mask(cfg.window), cfg.window)

    def _sink_tokens(self) -> Pass | None:
        """The learned sink tokens [1, n, D] on their way, each seeing those before it; None without any."""
        cfg, n = self.config, self.config.num_slots
        if cfg.attention_bias is None or not cfg.attention_bias.traits.tokens:
            return None
        init = nn.initializers.normal(0.02)
        sink = self.declare("sink_token", "nD", "table", init, (n, cfg.hidden_size), jnp.float32)
        x = sink.astype(cfg.jnp_dtype)[None]
        places = _Places(jnp.arange(n)[None], jnp.arange(n)[None])
        return Pass(x, self._surroundings(places, with_slots=False), n)

    def _head(self, embedding: jax.Array) -> Head:
        cfg = self.config
        kernel = embedding
        if not cfg.tie_embeddings:
            init = nn.initializers.normal(0.02)
            kernel = self.declare("head", "VW", "head", init, embedding.shape, jnp.float32)
        bias = None
        if cfg.head_bias:
            zeros = nn.initializers.zeros_init()
            bias = self.declare("head_bias", "V", "bias", zeros, (cfg.vocab_size,), jnp.float32)
        return Head(kernel, bias)


@dataclasses.dataclass(frozen=True)
class _Places:
    """Where tokens stand in their sequences.

    Attributes:
      queries: int [B, T], positions of the tokens of this call for the model: counted from the end of a prefix, and
        among the tokens that are still there; any for padding.
      keys: int [B, S], of the tokens that are attended to: those of the cache, or of this call.
      own_queries: int [B, T], positions of this call's tokens in their own sequences (of a row that is several, in the
        row), -1 for padding; None without padding or a cache.
      own_keys: int [B, S], of those that are attended to, -1 also for a place in the cache that is empty; likewise.
      slots: int [B, T], see `LanguageModel.__call__`; None without a cache.
      seen: bool [B, T, S], see `Packing`; None where a row is one sequence.
    """

    queries: jax.Array
    keys: jax.Array
    own_queries: jax.Array | None = None
    own_keys: jax.Array | None = None
    slots: jax.Array | None = None
    seen: jax.Array | None = None

    @property
    def num_keys(self) -> jax.Array:
        """How many tokens of each sequence are attended to: int [B]."""
        assert self.own_keys is not None
        return jnp.sum(self.own_keys >= 0, axis=1)

    def coordinates(self, num_slots: int) -> Coordinates:
        """For the tap: the slots of an attention bias come after a sequence's own tokens."""
        if self.own_queries is None or self.own_keys is None:
            return UNPADDED
        behind = jnp.max(self.own_keys, axis=1, keepdims=True) + 1 + jnp.arange(num_slots)
        positions = {"T": self.own_queries, "S": jnp.concatenate([self.own_keys, behind], axis=1)}
        return Coordinates(positions, growing=self.slots is not None)

    def mask(self, window: int | None) -> jax.Array:
        """Bool [B or 1, T, S]: which query sees which key."""
        if self.own_keys is None:
            return causal_mask(self.queries.shape[1], window)[None]
        distance = self.queries[:, :, None] - self.keys[:, None, :]
        seen = (distance >= 0) & (self.own_keys >= 0)[:, None, :]
        if self.seen is not None:
            seen &= self.seen
        return seen if window is None else seen & (distance < window)


def last_of(x: jax.Array, positions: jax.Array | None) -> jax.Array:
    """Gives the row of each sequence's last token, by int positions [B, T] (-1 for padding): [B, T, …] -> [B, 1, …]."""
    if positions is None:
        return x[:, -1:]
    last = jnp.argmax(positions, axis=1)
    return jnp.take_along_axis(x, last.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)


def empty_cache(config: TransformerConfig, batch: int, size: int) -> dict[str, Any]:
    """Makes a `cache` collection of every layer's keys and values: `batch` sequences of at most `size` tokens."""
    shape = (config.num_layers, batch, size, config.num_kv_heads, config.head_dim)
    return {
        "positions": jnp.full((batch, size), -1, jnp.int32),
        "layers": {
            "attn": {
                name: split(jnp.zeros(shape, config.jnp_dtype), "LBSKN") for name in ("cached_key", "cached_value")
            },
        },
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """Holds the output head: kernel [V, W] and bias [V] or None."""

    kernel: jax.Array
    bias: jax.Array | None = None


def head_logits(config: TransformerConfig, x: jax.Array, head: Head) -> jax.Array:
    """Computes next-token logits [..., V] in float32 (float64) from the model's last hidden state [..., W]."""
    return logits_of(config, head_product(x, head), head.bias)


def head_product(x: jax.Array, head: Head, dtype: Any = None) -> jax.Array:
    """Gives the product with the head's kernel: [..., W] -> [..., V] in `dtype`, or else float32 (float64)."""
    kernel = gathered(head.kernel.astype(x.dtype), "VW")
    return jnp.einsum("...W,VW->...V", x, kernel, preferred_element_type=dtype or wide(x.dtype))


def logits_of(config: TransformerConfig, product: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Gives the logits from `head_product`: bias [V], scale and softcap."""
    logits = product if bias is None else product + bias.astype(product.dtype)
    if config.logit_scale is not None:
        logits = logits * config.logit_scale
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits


def head_of(config: TransformerConfig, params: Any) -> Head:
    """Gives the output head of a language model's parameters: its own, or the embedding it is tied to."""
    return Head(params["embedding" if config.tie_embeddings else "head"], params.get("head_bias"))
