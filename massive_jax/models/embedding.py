"""Looking up rows of an embedding. Axis letters: see `massive_jax.probe.sites`; W embedding width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from massive_jax.parallel import batch_axes, current_mesh, spec_of


def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Gives the rows of a table [V, W] of tokens [B, T]: [B, T, W].

    On a mesh over whose "fsdp" both the batch and W are split, each device looks up its columns for all sequences of
    its group, and they exchange them: neither the table nor the rows of the whole batch are gathered.
    """
    mesh = current_mesh()
    axes = None if mesh is None else batch_axes(len(tokens), mesh)
    rows = PartitionSpec(None, None) if mesh is None else spec_of("VW", table.shape, mesh)
    if axes is None or "fsdp" not in axes or rows[1] != "fsdp":
        return jnp.take(table, tokens, axis=0)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        if rows[0] is None:
            found = jnp.take(table, tokens, axis=0)
        else:
            own = tokens - lax.axis_index(rows[0]) * len(table)
            here = (own >= 0) & (own < len(table))
            found = jnp.where(here[..., None], jnp.take(table, own, axis=0, mode="clip"), 0)
            found = lax.psum(found, rows[0])
        return lax.all_to_all(found, "fsdp", split_axis=0, concat_axis=2, tiled=True)

    groups = PartitionSpec(tuple(axis for axis in axes if axis != "fsdp") or None)
    found: jax.Array = jax.shard_map(local, in_specs=(rows, groups), out_specs=PartitionSpec(axes), check_vma=False)(
        table, tokens
    )
    return found
