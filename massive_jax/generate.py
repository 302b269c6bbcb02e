"""Generating text, with every capture and edit at every step. Axis letters: `massive_jax.probe.sites`; n new tokens.

The prompt is one forward pass that fills a cache of keys and values (padding never enters it); the new tokens are one
compiled loop over steps of one token. Prompt and steps together give, at every site, what a full forward pass gives.
Prompts of many lengths share their programs: they are padded to 8, 16, 32, 48 or a multiple of 64 tokens; where
something is captured they are not, unless you do it (`Model.tokenize_batch`).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from massive_jax.arguments import number, seed_number, shown, whole_number, yes_or_no
from massive_jax.cards import Card
from massive_jax.forward import Output, own_positions
from massive_jax.forward import left_pad as left_pad
from massive_jax.models import LanguageModel, empty_cache, last_of
from massive_jax.parallel import mesh_of_params, mesh_set, put_batch
from massive_jax.probe import CapturePlan, Captures, Edit, EditCollection, compile_edits

if TYPE_CHECKING:
    from massive_jax.model import Model
    from massive_jax.models import TransformerConfig

_STRETCH = 8  # steps after which who asks for it is shown what there is
_MOST = (1 << 31) - 1  # tokens of a sequence: its positions are int32


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Bounds a cache's size and keeps the first tokens (StreamingLLM, arXiv 2309.17453).

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
        """Counts the tokens that the cache holds."""
        return self.sinks + self.window

    def slots(self, positions: jax.Array) -> jax.Array:
        """Says where tokens go: int positions -> slots; padding (-1) goes nowhere."""
        rolling = self.sinks + (positions - self.sinks) % self.window
        return jnp.where(positions < 0, self.size, jnp.where(positions < self.sinks, positions, rolling))


@dataclasses.dataclass(frozen=True, repr=False)
class Generation(Card):
    """Holds generated text.

    Attributes:
      tokens: int32 [B, T + n]: the prompts as given, and what follows; after a stop token, that token again.
      prompt: the forward pass over the prompts (logits only of the last token, [B, 1, V], unless they are captured or
        edited). Positions in what is captured of it and of the steps are those of a sequence: a step's is that of the
        token that was fed back.
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
    capture: Captures | CapturePlan | None = None,
    edits: Edit | Sequence[Edit] | None = None,
    until: Callable[[np.ndarray], bool] | None = None,
    keep_logits: bool = False,
) -> Generation:
    r"""Continues prompts.

    Args:
      model: the model.
      tokens: int [B, T].
      max_new_tokens: n; all sequences run for as many steps.
      mask: bool [B, T], False for padding, which may be anywhere (`Model.tokenize_batch` makes one); None for none.
      temperature: 0 for the most likely token; otherwise logits are divided by it and a token is drawn.
      top_p: draws only from the most likely tokens whose probabilities add up to this.
      seed: of the draws.
      stop: a token id that ends a sequence; the tokenizer's `eos_id`, say.
      cache: None keeps every token; see `Streaming`.
      capture: what to keep of the prompt and of every step. A step's tensors have one position.
      edits: interventions. Positions and keys count a sequence's own tokens from 0 on into the new ones, rules are of
        the prompt; None means every token of the prompt and every new one. Prompt and steps are what a full pass over
        them is, so shuffle, quantize and move, for which all of the sequence must be there, are refused.
      until: is given the new tokens so far, int32 [B, k], after every 8; where it says True, or every sequence has come
        to `stop`, no more are made. None for all n.
      keep_logits: keeps the logits of every step.

    Raises:
      ValueError: as `Model.__call__`; more tokens than the context or the cache takes; an option of another type or out
        of range: a negative temperature, top_p outside (0, 1], a stop token that the vocabulary does not have, a seed
        of more than 32 bits; an edit by shuffle, quantize or move.

    Examples:
      >>> tokens = model.tokenize("The capital of France is")
      >>> made = model.generate(tokens, max_new_tokens=5).tokens
      >>> model.tokenizer.decode(made[0])
      'The capital of France is Paris.\n\nThe'
    """
    if not hasattr(type(model), "with_params"):  # its class is in a room above
        raise ValueError(f"model is {shown(model)}; give a Model, such as massive_jax.load returns.")
    if isinstance(tokens, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        raise ValueError(
            "generate is compiled itself and cannot run under a jax transform; give tokens that are there."
        )
    given, tokens = tokens, model.check_tokens(tokens, mask)
    B, T = tokens.shape
    mask = np.ones((B, T), bool) if mask is None else np.asarray(mask)
    longest, config = int(mask.sum(axis=1).max()), cast("TransformerConfig", model.config)
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
    total, context = longest + max_new_tokens, config.context_length
    if cache is None and total > context:
        raise ValueError(
            f"{longest} + {max_new_tokens} tokens are more than the model's context of {context}; generate fewer, or "
            "bound the cache with cache=Streaming(…)."
        )
    if cache is not None and (cache.size > context or cache.size < longest):
        raise ValueError(
            f"a cache of {cache.size} tokens must hold the prompt of {longest} and be within the context of {context}."
        )
    sizes, plan = config.sizes(B, total), model.compile_captures(capture)
    tokens = np.asarray(tokens)
    compiled = compile_edits(
        edits, sizes, tokens, model.rules(), config.absent_sites, config.jnp_dtype, mask, max_new_tokens
    )
    # Padding, so that prompts of many lengths share their programs; what is captured has the prompt's own axes, and so
    # has what is given back and what a position rule is asked for.
    more = 0 if plan.specs or plan.measures else _bucket(T) - T
    tokens, mask = (np.pad(x, ((0, 0), (more, 0))) for x in (tokens, mask))
    positions = own_positions(mask)
    sampling = Sampling(
        jnp.float32(temperature), jnp.float32(top_p), jax.random.key(seed), jnp.int32(-1 if stop is None else stop)
    )
    left = max_new_tokens - 1  # steps after the first token; all at once, or some at a time, and the last ones too many
    steps = left if until is None else _STRETCH
    room = -(-left // max(steps, 1)) * steps
    policy = cache or Streaming(0, T + more + 1 + room)
    renew = cache is None and config.scaled_at(total)  # so that what came before is scaled anew
    text = np.pad(tokens, ((0, 0), (0, 1 + room))) if renew else None
    mesh = mesh_of_params(model.params)
    tokens, positions, text = jax.tree.map(jnp.asarray, put_batch((tokens, positions, text), mesh))
    with mesh_set(mesh):
        first, last, carry = _prefill(
            model.module, policy, model.params, compiled, plan, sampling, tokens, positions, text
        )
        made, captured, logits = [np.asarray(carry[0])[:, None]], [], [last[None]] if keep_logits else []
        for start in range(1, max(left, 1) + 1, max(steps, 1)):
            new, kept, later, carry = _decode(
                model.module,
                policy,
                steps,
                keep_logits,
                model.params,
                compiled,
                plan,
                sampling,
                carry,
                jnp.int32(start),
                positions,
            )
            made.append(np.asarray(new))
            captured.append(kept)
            logits.append(later)
            if until is not None:
                enough = until(np.concatenate(made, axis=1)[:, :max_new_tokens])
                if enough or np.asarray(carry[1]).all():
                    break
    if more:
        # Logits that are edited are those of all tokens.
        logits_from = more if first.logits.shape[1] > 1 else 0
        first = dataclasses.replace(
            first, logits=first.logits[:, logits_from:], last_hidden=first.last_hidden[:, more:]
        )
    everything = np.concatenate([np.asarray(given).astype(np.int32), *made], axis=1)[:, : T + max_new_tokens]
    if len(captured) > 1 or steps > left:
        captured = [jax.tree.map(lambda *pieces: jnp.concatenate(pieces)[:left], *captured)]
    return Generation(everything, first, captured[0], jnp.concatenate(logits)[:max_new_tokens] if keep_logits else None)


def _bucket(length: int) -> int:
    """The length that prompts of about this one are padded to: 8, 16, 32, 48, or a multiple of 64."""
    return next((size for size in (8, 16, 32, 48) if length <= size), -(-length // 64) * 64)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Says how a token is chosen: float32 temperature and top_p, a random key, the stop token (-1 for none)."""

    temperature: jax.Array
    top_p: jax.Array
    key: jax.Array
    stop: jax.Array

    def choose(self, logits: jax.Array, step: jax.Array) -> jax.Array:
        """Chooses a token of each sequence: float32 [B, V] -> int32 [B]."""
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

    def next(self, logits: jax.Array, done: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Chooses the next token, the stop token for sequences that are `done`, bool [B], and says which are now."""
        token = jnp.where(done, self.stop, self.choose(logits, step))
        return token, done | (token == self.stop)


@functools.partial(jax.jit, static_argnames=("module", "policy"))
def _prefill(
    module: LanguageModel,
    policy: Streaming,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    sampling: Sampling,
    tokens: jax.Array,
    positions: jax.Array,
    text: jax.Array | None,
) -> tuple[Output, jax.Array, Any]:
    """The pass over the prompts, the logits of their last tokens, and what `_decode` goes on from.

    That is the first new token, which sequences have ended, the cache, and all text so far with room for the rest (None
    but where the cache is renewed).
    """
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
    assert logits is not None
    last = (logits if logits.shape[1] == 1 else last_of(logits, positions))[:, 0]
    first, done = sampling.next(last, jnp.zeros(len(tokens), bool), jnp.int32(0))
    return Output(logits, hidden, dict(state.get("intermediates", {}))), last, (first, done, state["cache"], text)


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
    carry: Any,
    start: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, dict[str, Any], jax.Array | None, Any]:
    """Steps from that of number `start` on: new tokens [B, n], what was captured, logits, and what it goes on from."""

    def renewed(text: jax.Array, number: jax.Array) -> Any:
        """The cache after a pass over all that there is so far."""
        new = jnp.arange(text.shape[1] - T)
        behind = jnp.where(new < number, next_position[:, None] + new, -1)
        places = jnp.concatenate([positions, behind], axis=1)
        _, state = module.apply(
            {"params": params, "edits": edits, "cache": empty_cache(module.config, len(text), policy.size)},
            text,
            positions=places,
            slots=policy.slots(places),
            logits=False,
            mutable=["cache"],
        )
        return state["cache"]

    def step(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        token, done, cache, text = carry
        position = (next_position + number - 1)[:, None]
        if text is not None:
            text = text.at[:, T + number - 1].set(token)
            cache = renewed(text, number)
        (logits, _), state = module.apply(
            {"params": params, "edits": edits, "cache": cache},
            token[:, None],
            positions=position,
            slots=policy.slots(position),
            capture=plan,
            mutable=["cache", "intermediates"],
        )
        token, done = sampling.next(logits[:, 0], done, number)
        kept = (token, dict(state.get("intermediates", {})), logits[:, 0] if keep_logits else None)
        return (token, done, state["cache"], text), kept

    T, next_position = positions.shape[1], jnp.max(positions, axis=1) + 1
    carry, (tokens, sown, later) = lax.scan(step, carry, start + jnp.arange(num_steps))
    return tokens.T, sown, later, carry


class _Generate(types.ModuleType):
    """This module, which is a verb too: `massive_jax.generate(model, tokens, …)` is `generate` above."""

    __call__ = staticmethod(generate)


sys.modules[__name__].__class__ = _Generate
