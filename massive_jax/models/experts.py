"""Mixture of experts. Axis letters: see `massive_jax.probe.sites`; X experts a token, M = B·T·X rows, C rows a tile."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.dtypes import wide
from massive_jax.models.config import BlockConfig
from massive_jax.models.linear import Projection
from massive_jax.models.mlp import ACTIVATION_FUNCTIONS
from massive_jax.models.parameters import Module, Role
from massive_jax.probe import Tap

_SMALLEST_TILE, _LARGEST_TILE = 8, 128


class Experts(Module):
    """Sends every token to a few of E gated MLPs, and sums their outputs by the router's weights.

    The work is that of the chosen experts only (see `apply_experts`). An edit of `router_probs` changes which experts
    are chosen, and their weights; an edit of `expert_weights` changes the sum and may name any expert: where that site
    is edited all experts are run, so that the weight of one that was not chosen counts too.
    """

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, tap: Tap) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        cfg, experts = self.config, self.config.experts
        assert experts is not None
        B, T, D = x.shape
        E, F, X = experts.num_experts, cfg.intermediate_size, experts.num_chosen

        router = Projection((D, E), "BTD,DE->BTE", use_bias=experts.clamped, name="router")(x).astype(wide(x.dtype))
        probs = tap("router_probs", jax.nn.softmax(router, axis=-1))
        chosen_probs, chosen = jax.lax.top_k(probs, X)
        # Softmax over the chosen logits and renormalising the chosen probabilities are the same thing.
        weights = chosen_probs / jnp.sum(chosen_probs, axis=-1, keepdims=True)
        dense = jnp.sum(jax.nn.one_hot(chosen, E, dtype=router.dtype) * weights[..., None], axis=-2)
        dense = tap("expert_weights", dense)
        if tap.edits("expert_weights"):
            X, chosen = E, jnp.broadcast_to(jnp.arange(E), (B, T, E))
        weights = jnp.take_along_axis(dense, chosen, axis=-1)

        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=0)
        sizes = {"E": E, "D": D, "F": F}
        kernels: dict[str, tuple[str, Role]] = {
            "gate": ("EDF", "kernel"),
            "up": ("EDF", "kernel"),
            "down": ("EFD", "residual"),
        }
        params = {
            name: self.declare(name, axes, role, init, tuple(sizes[axis] for axis in axes))
            for name, (axes, role) in kernels.items()
        }
        if experts.clamped:
            zeros = nn.initializers.zeros_init()
            for name, (axes, _) in kernels.items():
                added = axes[-1]
                params[f"{name}_bias"] = self.declare(f"{name}_bias", f"E{added}", "bias", zeros, (E, sizes[added]))

        def one_expert(expert: jax.Array, rows: jax.Array) -> jax.Array:
            def product(name: str, rows: jax.Array) -> jax.Array:
                y = rows @ params[name][expert].astype(rows.dtype)
                return y + params[f"{name}_bias"][expert].astype(rows.dtype) if experts.clamped else y

            gate, up = product("gate", rows), product("up", rows)
            if not experts.clamped:
                return product("down", ACTIVATION_FUNCTIONS[cfg.activation](gate) * up)
            gate = jnp.minimum(gate, experts.swiglu_limit)
            up = jnp.clip(up, -experts.swiglu_limit, experts.swiglu_limit)
            return product("down", (up + 1) * gate * jax.nn.sigmoid(experts.swiglu_alpha * gate))

        out = apply_experts(one_expert, x.reshape(B * T, D), chosen.reshape(B * T, X), E).reshape(B, T, X, D)
        return jnp.einsum("BTXD,BTX->BTD", out, weights.astype(x.dtype))


def apply_experts(
    one_expert: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, chosen: jax.Array, num_experts: int
) -> jax.Array:
    """Gives every token's output of each of its experts.

    The rows (token, chosen expert) are sorted by expert into tiles of C rows that belong to one expert each, the last
    of an expert's being filled up, and an expert is applied to one tile at a time: no more than M / C + E tiles, and
    never more than M. (`jax.lax.ragged_dot` multiplies every row by every expert's kernel where the platform has no
    instruction for it, and has no rule for `vmap`.)

    Args:
      one_expert: expert's index and rows [C, D] -> [C, D].
      x: [tokens, D].
      chosen: int [tokens, X].
      num_experts: E.

    Returns:
      [tokens, X, D].
    """
    M, D = chosen.size, x.shape[-1]
    # A quarter of the mean load: filling up costs an eighth more rows or so.
    C = min(max(M // (4 * num_experts), _SMALLEST_TILE), _LARGEST_TILE)
    num_tiles = min(M, -(-M // C) + num_experts)

    expert_of_row = chosen.reshape(-1)
    order = jnp.argsort(expert_of_row, stable=True)
    load = jnp.zeros(num_experts, jnp.int32).at[expert_of_row].add(1)
    tiles_until = jnp.cumsum(-(-load // C))  # of this expert and those before it
    expert_of_tile = jnp.searchsorted(tiles_until, jnp.arange(num_tiles), side="right", method="compare_all")

    expert = expert_of_row[order]
    rank = jnp.arange(M) - (jnp.cumsum(load) - load)[expert]
    place = (tiles_until - -(-load // C))[expert] * C + rank
    # Places that no row fills hold token 0; what is computed there is read by nobody.
    token_of_place = jnp.zeros(num_tiles * C, order.dtype).at[place].set(order // chosen.shape[-1])

    def one_tile(tile: tuple[jax.Array, jax.Array]) -> jax.Array:
        return one_expert(tile[0], x[tile[1]])

    expert_of_tile = jnp.minimum(expert_of_tile, num_experts - 1)
    out = jax.lax.map(one_tile, (expert_of_tile, token_of_place.reshape(num_tiles, C)))
    place_of_row = jnp.zeros_like(place).at[order].set(place)
    return out.reshape(num_tiles * C, D)[place_of_row].reshape(*chosen.shape, D)
