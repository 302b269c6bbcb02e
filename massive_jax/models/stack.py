"""The stack of blocks, and what every model does around it to be read and edited.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.models.attention import Surroundings
from massive_jax.models.block import Block
from massive_jax.models.config import BlockConfig
from massive_jax.models.parameters import LAYERS
from massive_jax.probe import (
    ALL_SITES,
    UNPADDED,
    Capture,
    CapturePlan,
    Coordinates,
    Tap,
    compile_captures,
    empty_results,
    present,
)

# What attention sees in a layer, and in a windowed one where only some layers are; None where all are alike.
LayerKinds: TypeAlias = tuple[Surroundings, Surroundings | None]

# Kernels that attention may be: cuDNN's, alone or wrapped for `vmap` (`massive_jax.models.kernels`), and Pallas's.
_KERNELS = ("dot_product_attention_fwd", "dot_product_attention_fwd_wrapper", "custom_vmap_call", "pallas_call")


def _dear(primitive: Any, *args: Any, **options: Any) -> bool:
    """A policy of `jax.checkpoint`: what takes time is kept, and norms and activation functions are not."""
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive.name in _KERNELS or bool(dots(primitive, *args, **options))


# What the backward pass finds of a block: all of it; the products with weights and what an attention kernel gives; the
# products only; or its input only. Without the first, a loop over blocks writes down every step of a norm.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "cheap": _dear,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# What is kept of the blocks' pass over sink tokens.
_KEYS_AND_VALUES = compile_captures(Capture(("key", "value"), layers=1), 1)
_FIRST_SLOT = {"key": 0, "value": 0}


def outer_tap(
    module: nn.Module, config: BlockConfig, plan: CapturePlan | None, coordinates: Coordinates = UNPADDED
) -> Tap:
    """Gives the tap for the sites around the blocks, with the module's collection `edits`.

    Args:
      module: the model, in its `__call__`.
      config: of the model.
      plan: what to sow; None for nothing, as where `intermediates` is not mutable.
      coordinates: see `Tap`.
    """
    if plan is None or not module.is_mutable_collection("intermediates") or module.is_initializing():
        plan = CapturePlan()
    edits: dict[str, Any] = {
        site: module.get_variable("edits", site) for site in ALL_SITES if module.has_variable("edits", site)
    }
    return Tap(edits, plan, coordinates=dataclasses.replace(coordinates, slots=config.num_slots))


@dataclasses.dataclass(frozen=True)
class Pass:
    """Tokens on their way through the blocks.

    Attributes:
      x: [B, T, D], the input of block 1.
      around: what their attention sees.
      num_keys: S, how many tokens they may see: themselves, or what a cache has room for.
    """

    x: jax.Array
    around: LayerKinds
    num_keys: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resume:
    """Says where a pass over tokens that was made before, without edits, is taken up again.

    Edits of later blocks and columns change nothing before: that is not computed. What is left out of the stream stays
    what it was given as. Nothing is captured.

    Attributes:
      layer: int32 [], the blocks that are left out: those up to this number (1-based; 0 for none).
      stream: [B, T, D], the output of that block, or the embedding; `block_out` is edited there, too.
      first: int32 [], the first chunk of columns that is run.
      keys: [L, B, T, K, N], what the site `key` held in every block; None where T is one chunk.
      values: likewise.
      chunk: how many columns are run at a time; T is a multiple of it.
    """

    layer: jax.Array
    stream: jax.Array
    first: jax.Array
    keys: jax.Array | None
    values: jax.Array | None
    chunk: int = dataclasses.field(metadata={"static": True})


def run_blocks(
    config: BlockConfig,
    tap: Tap,
    sequence: Pass,
    sink: Pass | None = None,
    *,
    remat: str = "none",
    unroll: int = 1,
    resume: Resume | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Runs the L blocks under `nn.scan`; their parameters are the submodule "layers" of the module that calls.

    Args:
      config: of the model.
      tap: see `outer_tap`.
      sequence: the tokens.
      sink: sink tokens, B = 1, which run beside the sequence and are slots of its attention; None for none.
      remat: what of a block is computed again in the backward pass instead of kept: a name in `REMAT`.
      unroll: blocks in the body of the loop.
      resume: where to begin; None for the first block.

    Returns:
      The output of block L [B, T, D], and what was captured in the blocks, for `sow`.
    """
    edits, plan, coordinates = tap.all_edits, tap.plan, tap.coordinates
    numbers = jnp.arange(1, config.num_layers + 1)
    nothing_kept = empty_results(_KEYS_AND_VALUES, config.sizes(1, config.num_slots), config.jnp_dtype)
    cache = None if resume is None else (resume.keys, resume.values)
    B, T, _ = sequence.x.shape
    layers = (numbers, jnp.asarray(config.windowed_layers), dict(plan.slots), cache)
    sizes = config.sizes(B, T, sequence.num_keys)
    carry = (sequence.x, None if sink is None else sink.x, empty_results(plan, sizes, config.jnp_dtype, coordinates))

    def step(block: Block, carry: Any, layer: Any, around: Any, alone: Any, edits: Any) -> tuple[Any, None]:
        x, sink, results = carry
        number, windowed, slots, cache = layer
        around = _of_layer(config, around, number, windowed)
        if sink is not None:
            kept = Tap({}, _KEYS_AND_VALUES, slots=_FIRST_SLOT, results=nothing_kept)
            sink = block(sink, _of_layer(config, alone, number, windowed), kept)
            tokens = (kept.results["key"].tensor[0], kept.results["value"].tensor[0])
            around = dataclasses.replace(around, slot_places=dataclasses.replace(around.slot_places, tokens=tokens))
        tap = Tap(edits, plan, number, slots, results, coordinates)
        x = block(x, around, tap) if resume is None else _resumed(block, x, around, tap, number, resume, cache)
        return (x, sink, tap.results), None

    scan = nn.scan(
        step if remat == "none" else nn.remat(step, prevent_cse=False, policy=REMAT[remat]),
        variable_axes={"params": 0, "cache": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=config.num_layers,
        unroll=unroll,
        metadata_params={nn.PARTITION_NAME: LAYERS},
    )
    alone = None if sink is None else sink.around
    (x, _, results), _ = scan(Block(config, name="layers"), carry, layers, sequence.around, alone, edits)
    return x, results


def taken_up(tap: Tap, resume: Resume) -> jax.Array:
    """Gives the stream that a pass is taken up with, [B, T, D], after the edits of it."""
    edits, coordinates = tap.all_edits, tap.coordinates

    def after(x: jax.Array) -> jax.Array:
        return Tap(edits, CapturePlan(), resume.layer, coordinates=coordinates)("block_out", x)

    return jax.lax.cond(resume.layer > 0, after, lambda x: tap("embed", x), resume.stream)


def _resumed(
    block: Block, x: jax.Array, around: Surroundings, tap: Tap, number: jax.Array, resume: Resume, cache: Any
) -> jax.Array:
    """What the block of this number makes of the chunks of a stream that are run; nothing where it is left out."""
    alone = Block(block.config, parent=None)
    params, size = {"params": block.variables["params"]}, resume.chunk
    keys, values = cache
    if keys is not None:
        around = dataclasses.replace(around, cache_slots=jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]))

    def run(chunk: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        x, cache = carry
        if cache is None:
            return jnp.asarray(alone.apply(params, x, around, tap)), None
        start = chunk * size
        its = Tap(tap.all_edits, CapturePlan(), number, coordinates=tap.coordinates.rows(start, size))
        new, state = alone.apply(
            {**params, "cache": cache},
            jax.lax.dynamic_slice_in_dim(x, start, size, axis=1),
            around.rows(start, size),
            its,
            mutable=["cache"],
        )
        return jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=1), state["cache"]

    chunks = x.shape[1] // size
    kept = None if keys is None else {"attn": {"cached_key": keys, "cached_value": values}}
    first = jnp.where(number > resume.layer, resume.first, chunks)
    return jax.lax.fori_loop(first, chunks, run, (x, kept))[0]


def _of_layer(config: BlockConfig, around: LayerKinds, number: jax.Array, windowed: jax.Array) -> Surroundings:
    """What the attention of the layer of this 1-based number sees."""
    here, local = around
    if local is not None:
        here = jax.tree.map(lambda a, b: jnp.where(windowed, b, a), here, local)
    return dataclasses.replace(here, query_scale=1.0 / number) if config.attention_scale_by_layer else here


def sow(module: nn.Module, tap: Tap, results: Mapping[str, Any]) -> None:
    """Sows what `tap` recorded around the blocks and `results` in them under `intermediates`, by site."""
    for site, value in present(tap.plan, {**results, **tap.results}).items():
        module.sow("intermediates", site, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)
