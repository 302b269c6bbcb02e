"""The programs that experiments run, as functions of a model's config: what is planned is what is run.

Axis letters: see `massive_jax.probe.sites`; A micro-batches, n new tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from massive_jax.evaluate.perplexity import _nll
from massive_jax.forward import _forward
from massive_jax.generate import Sampling, Streaming, _decode, _prefill
from massive_jax.models import LanguageModel, VisionConfig, build, empty_cache
from massive_jax.parallel import activation_spec
from massive_jax.plan.place import Config, abstract_batch, abstract_params
from massive_jax.probe import Captures, Edit, compile_captures, compile_edits
from massive_jax.train import TrainConfig, Trainer
from massive_jax.train.step import _step


@dataclasses.dataclass(frozen=True)
class Call:
    """Holds a jitted function and abstract arguments for it.

    Attributes:
      function: what is compiled.
      arguments: arrays' shapes, dtypes and shardings, and static ones.
      parts: of the memory -> those of the arguments that are of it.
      captured: the part of its results that stays,
      kept_as: and the part of the memory that this is of.
    """

    function: Any
    arguments: tuple[Any, ...]
    parts: Mapping[str, Any]
    captured: Callable[[Any], Any] = lambda results: ()
    kept_as: str = "captured"


@dataclasses.dataclass(frozen=True)
class Program:
    """Describes a program of an experiment.

    Attributes:
      name: what it does, in words.
      batch: B, sequences of a run.
      length: T, tokens of each.
      runs: how often it runs.
      make: the call, of a model's config, for so many sequences, on a mesh (None for one device).
      trains: whether it computes gradients: passes go back, too.
      passes: over the parameters in a run.
      tokens: of each sequence in a pass; None for T.
    """

    name: str
    batch: int
    length: int
    runs: int
    make: Callable[[Config, int, Any], Call]
    trains: bool = False
    passes: int = 1
    tokens: int | None = None


def forward(
    name: str, captures: Captures | Callable[[Config, int], Captures], batch: int, length: int, runs: int
) -> Program:
    """Describes a forward pass that keeps what is asked for: captures, or a function of config and B for them."""

    def make(config: Config, B: int, mesh: Any) -> Call:
        asked = captures(config, B) if callable(captures) else captures
        plan = compile_captures(asked, config.num_layers, config.absent_sites)
        params, inputs = abstract_params(config, mesh), _inputs(config, B, length, mesh)
        return Call(
            _forward,
            (build(config), params, {}, plan, inputs, None, False),
            {"parameters": params},
            lambda out: out.intermediates,
        )

    return Program(name, batch, length, runs, make)


def likelihood(name: str, places: int, batch: int, length: int, runs: int) -> Program:
    """Describes the negative log-likelihood of windows, with edits at some places of one block's output."""

    def make(config: Config, B: int, mesh: Any) -> Call:
        edits = [Edit("block_out", layer=1, position=0, dim=dim, op="set", value=0.0) for dim in range(places)]
        compiled = compile_edits(edits, config.sizes(B, length), absent=config.absent_sites, dtype=config.jnp_dtype)
        params, inputs = abstract_params(config, mesh), _inputs(config, B, length, mesh)
        return Call(_nll, (build(config), params, compiled, inputs, None), {"parameters": params})

    return Program(name, batch, length, runs, make)


def generation(batch: int, length: int, new_tokens: int) -> tuple[Program, Program]:
    """Describes what generates text: the pass over the prompts, and the loop over n new tokens."""
    policy = Streaming(0, length + new_tokens)

    def cache_of(config: Config, B: int, mesh: Any) -> Any:
        shapes = jax.eval_shape(lambda: empty_cache(cast(Any, config), B, policy.size))
        return jax.tree.map(lambda x: _placed_cache(x, mesh), shapes)

    def prefill(config: Config, B: int, mesh: Any) -> Call:
        params, tokens = abstract_params(config, mesh), abstract_batch((B, length), jnp.int32, mesh)
        arguments: tuple[Any, ...] = (
            build(config),
            policy,
            params,
            {},
            compile_captures(None, config.num_layers),
            tokens,
            tokens,
        )
        return Call(_prefill, arguments, {"parameters": params}, lambda results: results[2], "cache")

    def decode(config: Config, B: int, mesh: Any) -> Call:
        params, tokens = abstract_params(config, mesh), abstract_batch((B, length), jnp.int32, mesh)
        cache, logits = cache_of(config, B, mesh), abstract_batch((B, cast(Any, config).vocab_size), jnp.float32, mesh)
        sampling = Sampling(jnp.float32(0), jnp.float32(1), jax.random.key(0), jnp.int32(-1))
        arguments: tuple[Any, ...] = (
            *(build(config), policy, new_tokens, False, False, params, {}),
            *(compile_captures(None, config.num_layers), sampling, logits, cache, tokens, tokens),
        )
        return Call(_decode, arguments, {"parameters": params, "cache": cache})

    return (
        Program("prompt", batch, length, 1, prefill),
        Program(f"{new_tokens} new tokens", batch, length, 1, decode, passes=new_tokens - 1, tokens=1),
    )


def training(config: TrainConfig) -> Program:
    """Describes the steps of a training of a language model."""

    def make(model: Config, B: int, mesh: Any) -> Call:
        module = LanguageModel(cast(Any, model), config.remat, config.unroll)
        trainer = Trainer(module, config.optimizer, config.accumulate, mesh, ema=config.ema)
        state = trainer.abstract()
        batch = abstract_batch((config.accumulate, B, config.context + 1), jnp.int32, mesh, axis=1)
        parts = {"parameters": (state.params, state.average), "optimiser": state.opt_state}
        return Call(_step, (trainer, state, batch), parts)

    batch = config.batch // config.accumulate
    return Program("step", batch, config.context, config.steps, make, trains=True, passes=config.accumulate)


def _inputs(config: Config, B: int, T: int, mesh: Any) -> jax.ShapeDtypeStruct:
    if isinstance(config, VisionConfig):
        return abstract_batch((B, *config.example.shape[1:]), jnp.float32, mesh)
    return abstract_batch((B, T), jnp.int32, mesh)


def _placed_cache(x: jax.ShapeDtypeStruct, mesh: Any) -> jax.ShapeDtypeStruct:
    """A cache's positions or its keys or values, as the program that makes it leaves them."""
    if mesh is None:
        return x
    spec = activation_spec("BS" if x.ndim == 2 else "LBSKN", x.shape, mesh)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
