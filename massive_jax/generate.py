"""Generating text, with every capture and edit at every step. Axis letters: `massive_jax.probe.sites`; n new tokens.

The prompt is one forward pass that fills a cache of keys and values (padding never enters it); the new tokens are one
compiled loop over steps of one token. Prompt and steps together give, at every site, what a full forward pass gives.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from massive_jax.arguments import number, seed_number, shown, whole_number, yes_or_no
from massive_jax.model import Model, Output
from massive_jax.models import LanguageModel, empty_cache
from massive_jax.probe import Capture, CapturePlan, Edit, EditCollection, compile_edits

_MOST = (1 << 31) - 1  # tokens of a sequence: its positions are int32


@dataclasses.dataclass(frozen=True)
class Streaming:
    """A cache of bounded size that keeps the first tokens (StreamingLLM, arXiv 2309.17453).

    The first tokens are attention sinks: massive activations sit on them. A token's position is its place among the
    tokens that are still there, so a text may grow longer than the model's context.

    Attributes:
      sinks: how many of the first tokens are never evicted.
      window: how many of the latest are kept besides.
    """

    sinks: int = 4
    window: int = 1020

    def __post_init__(self) -> None:
        whole_number("sinks", self.sinks), whole_number("window", self.window)
        if self.sinks < 0 or self.window < 1:
            raise ValueError(f"a cache of {self.sinks} sinks and {self.window} more: expected 0 and 1 at least.")

    @property
    def size(self) -> int:
        """Tokens the cache holds."""
        return self.sinks + self.window

    def slots(self, positions: jax.Array) -> jax.Array:
        """Where tokens go: int positions -> slots; padding (-1) goes nowhere."""
        rolling = self.sinks + (positions - self.sinks) % self.window
        return jnp.where(positions < 0, self.size, jnp.where(positions < self.sinks, positions, rolling))


@dataclasses.dataclass(frozen=True)
class Generation:
    """Generated text.

    Attributes:
      tokens: int32 [B, T + n]: the prompts as given, and what follows; after a stop token, that token again.
      prompt: the forward pass over the prompts (logits only of the last token, [B, 1, V]).
      steps: site -> what was captured at each step that fed a token back, leading axis n - 1; see `Output`.
      logits: float32 [n, B, V], what each new token was drawn from; None unless asked for.
    """

    tokens: np.ndarray
    prompt: Output
    steps: dict[str, Any]
    logits: jax.Array | None


def generate(
    model: Model,
    tokens: Any,
    *,
    max_new_tokens: int,
    mask: Any = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
    cache: Streaming | None = None,
    capture: Capture | Sequence[Capture] | CapturePlan | None = None,
    edits: Edit | Sequence[Edit] | None = None,
    keep_logits: bool = False,
) -> Generation:
    """Continues prompts.

    Args:
      model: the model.
      tokens: int [B, T].
      max_new_tokens: n; all sequences run for as many steps.
      mask: bool [B, T], False for padding in front of a prompt (`left_pad` makes one); None for none.
      temperature: 0 for the most likely token; otherwise logits are divided by it and a token is drawn.
      top_p: draws only from the most likely tokens whose probabilities add up to this.
      seed: of the draws.
      stop: a token id that ends a sequence; the tokenizer's `eos_id`, say.
      cache: None keeps every token; see `Streaming`.
      capture: what to keep of the prompt and of every step. A step's tensors have one position.
      edits: interventions. Positions count a sequence's own tokens, without padding, from 0 on into the new ones;
        None means every token of the prompt and every new one. A key is a place in the cache.
      keep_logits: keeps the logits of every step.

    Raises:
      ValueError: as `Model.__call__`; a mask that is not padding in front; more tokens than the context or the cache
        takes; an option of another type or out of range: a negative temperature, top_p outside (0, 1], a stop token
        that the vocabulary does not have, a seed of more than 32 bits.
    """
    tokens = model.check_tokens(tokens)
    B, T = tokens.shape
    positions = _positions(tokens, mask)
    config = model.require_language()
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 1, _MOST - T)
    temperature = number("temperature", temperature, most=float(np.finfo(np.float32).max))
    top_p = number("top_p", top_p)
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} and top_p {top_p}: expected at least 0, and above 0 up to 1.")
    seed, keep_logits = seed_number(seed), yes_or_no("keep_logits", keep_logits)
    if stop is not None:
        stop = whole_number("stop", stop, 0, config.vocab_size - 1)
    if not isinstance(cache, Streaming | None):
        raise ValueError(f"cache is {shown(cache)}; give Streaming(…), or None to keep every token.")
    total, context = T + max_new_tokens, config.context_length
    if cache is None and total > context:
        raise ValueError(
            f"{T} + {max_new_tokens} tokens are more than the model's context of {context}; generate fewer, or bound "
            "the cache with cache=Streaming(…)."
        )
    policy = cache or Streaming(0, total)
    if cache is not None and (cache.size > context or cache.size < T):
        raise ValueError(
            f"a cache of {cache.size} tokens must hold the prompt of {T} and be within the context of {context}."
        )
    sizes, plan = config.sizes(B, total, policy.size), model.compile_captures(capture)
    compiled = compile_edits(edits, sizes, tokens, model.rules(), config.absent_sites, config.jnp_dtype)
    first, prompt_sown, state = _prefill(model.module, policy, model.params, compiled, plan, tokens, positions)
    sampling = Sampling(
        jnp.float32(temperature), jnp.float32(top_p), jax.random.key(seed), jnp.int32(-1 if stop is None else stop)
    )
    made, steps, logits = _decode(
        model.module,
        policy,
        max_new_tokens,
        keep_logits,
        model.params,
        compiled,
        plan,
        sampling,
        first.logits[:, -1],
        state,
        jnp.asarray(positions[:, -1] + 1),
    )
    everything = np.concatenate([tokens, np.asarray(made)], axis=1)
    return Generation(everything, Output(first.logits, first.last_hidden, prompt_sown), steps, logits)


def left_pad(sequences: Sequence[Sequence[int]], pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of different lengths as one batch: int32 [B, T] padded in front, and the bool [B, T] mask."""
    T = max(map(len, sequences), default=0)
    tokens, mask = np.full((len(sequences), T), pad, np.int32), np.zeros((len(sequences), T), bool)
    for row, ids in enumerate(sequences):
        if len(ids) == 0:
            raise ValueError(f"sequence {row} is empty.")
        tokens[row, T - len(ids) :], mask[row, T - len(ids) :] = ids, True
    return tokens, mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen: float32 temperature and top_p, a random key, the stop token (-1 for none)."""

    temperature: jax.Array
    top_p: jax.Array
    key: jax.Array
    stop: jax.Array

    def choose(self, logits: jax.Array, step: jax.Array) -> jax.Array:
        """float32 [B, V] -> int32 [B]."""
        greedy = jnp.argmax(logits, axis=-1)

        def draw() -> jax.Array:
            # Less the largest: a tiny temperature divides to minus infinity, not to infinity less infinity.
            scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / self.temperature
            order = jnp.argsort(-scaled, axis=-1)
            ranked = jnp.take_along_axis(scaled, order, axis=-1)
            before = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) - jax.nn.softmax(ranked, axis=-1)
            # The first token is always in; rounding must not empty the set.
            kept = (before < self.top_p).at[:, 0].set(True)
            drawn = jax.random.categorical(jax.random.fold_in(self.key, step), jnp.where(kept, ranked, -jnp.inf))
            return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]

        return lax.cond(self.temperature > 0, draw, lambda: greedy).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("module", "policy"))
def _prefill(
    module: LanguageModel,
    policy: Streaming,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    tokens: jax.Array,
    positions: jax.Array,
) -> tuple[Output, dict[str, Any], Any]:
    cache = empty_cache(module.config, len(tokens), policy.size)
    (logits, hidden), state = module.apply(
        {"params": params, "edits": edits, "cache": cache},
        tokens,
        positions=positions,
        slots=policy.slots(positions),
        capture=plan,
        last_only=True,
        mutable=["cache", "intermediates"],
    )
    return Output(logits, hidden, {}), dict(state.get("intermediates", {})), state["cache"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _decode(
    module: LanguageModel,
    policy: Streaming,
    num_steps: int,
    keep_logits: bool,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    sampling: Sampling,
    logits: jax.Array,
    cache: Any,
    position: jax.Array,
) -> tuple[jax.Array, dict[str, Any], jax.Array | None]:
    def choose(logits: jax.Array, done: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        token = jnp.where(done, sampling.stop, sampling.choose(logits, step))
        return token, done | (token == sampling.stop)

    def step(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        token, done, cache, position = carry
        (logits, _), state = module.apply(
            {"params": params, "edits": edits, "cache": cache},
            token[:, None],
            positions=position[:, None],
            slots=policy.slots(position[:, None]),
            capture=plan,
            mutable=["cache", "intermediates"],
        )
        token, done = choose(logits[:, 0], done, number)
        kept = (token, dict(state.get("intermediates", {})), logits[:, 0] if keep_logits else None)
        return (token, done, state["cache"], position + 1), kept

    first, done = choose(logits, jnp.zeros(len(logits), bool), jnp.int32(0))
    _, (tokens, sown, later) = lax.scan(step, (first, done, cache, position), jnp.arange(1, num_steps))
    made = jnp.concatenate([first[None], tokens]).T
    return made, sown, jnp.concatenate([logits[None], later]) if keep_logits else None


def _positions(tokens: np.ndarray, mask: Any) -> np.ndarray:
    """Places of the tokens in their sequences, -1 for padding: int32 [B, T]."""
    if mask is None:
        mask = np.ones(tokens.shape, bool)
    mask = np.asarray(mask)
    if mask.shape != tokens.shape or mask.dtype != bool:
        raise ValueError(f"mask is {mask.dtype}{list(mask.shape)}; give bool{list(tokens.shape)}, as the tokens.")
    if not mask[:, -1].all() or (mask[:, :-1] > mask[:, 1:]).any():
        raise ValueError("mask must be False for padding in front of a prompt, and True from there to its last token.")
    return (np.cumsum(mask, axis=1) - 1).astype(np.int32)
