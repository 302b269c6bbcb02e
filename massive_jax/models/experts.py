"""Mixture of experts. Axis letters: see `massive_jax.probe.sites`; X experts a token, M = B·T·X rows, C rows a tile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from massive_jax.dtypes import wide
from massive_jax.models.config import BlockConfig
from massive_jax.models.linear import Projection
from massive_jax.models.mlp import ACTIVATION_FUNCTIONS
from massive_jax.models.parameters import Module, Role
from massive_jax.parallel import activation_spec, current_mesh, top_k, used_spec
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
        chosen_probs, chosen = top_k(probs, X, "BTE")
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

        mesh = current_mesh()
        if mesh is None:
            return self._mixture(params, x, chosen, weights)
        axes_of = {f"{name}_bias": f"E{its[-1]}" for name, (its, _) in kernels.items()}
        axes_of |= {name: its for name, (its, _) in kernels.items()}
        specs = {name: used_spec(axes_of[name], p.shape, mesh) for name, p in params.items()}
        batch = activation_spec("BTD", x.shape, mesh)
        expert, _, tensor = specs["gate"]
        mixture: jax.Array = jax.shard_map(
            functools.partial(self._mixture, expert=expert, tensor=tensor),
            in_specs=(specs, batch, batch, batch),
            out_specs=batch,
            check_vma=False,
        )(params, x, chosen, weights)
        return mixture

    @nn.nowrap
    def _mixture(
        self,
        params: Mapping[str, jax.Array],
        x: jax.Array,
        chosen: jax.Array,
        weights: jax.Array,
        expert: str | None = None,
        tensor: str | None = None,
    ) -> jax.Array:
        """The weighted sum of the chosen experts' outputs, [B, T, D], of tokens x [B, T, D].

        `chosen` and `weights` are [B, T, X]. On a mesh each device has its own experts along the axis `expert` and its
        part of each one's width along `tensor`, where these are given; the sum is that of all devices.
        """
        cfg, experts = self.config, self.config.experts
        assert experts is not None
        (B, T, D), X, E = x.shape, chosen.shape[-1], len(params["gate"])
        if expert is not None:
            own = chosen - jax.lax.axis_index(expert) * E
            chosen = jnp.where((own >= 0) & (own < E), own, E)

        def one_expert(number: jax.Array, rows: jax.Array) -> jax.Array:
            def product(name: str, rows: jax.Array) -> jax.Array:
                y = rows @ params[name][number].astype(rows.dtype)
                if not experts.clamped:
                    return y
                bias = params[f"{name}_bias"][number].astype(rows.dtype)
                if name == "down" and tensor is not None:  # once, not on every device
                    bias = jnp.where(jax.lax.axis_index(tensor) == 0, bias, 0)
                return y + bias

            gate, up = product("gate", rows), product("up", rows)
            if not experts.clamped:
                return product("down", ACTIVATION_FUNCTIONS[cfg.activation](gate) * up)
            gate = jnp.minimum(gate, experts.swiglu_limit)
            up = jnp.clip(up, -experts.swiglu_limit, experts.swiglu_limit)
            return product("down", (up + 1) * gate * jax.nn.sigmoid(experts.swiglu_alpha * gate))

        parts = experts.num_experts // E
        out = apply_experts(one_expert, x.reshape(B * T, D), chosen.reshape(B * T, X), E, parts).reshape(B, T, X, D)
        mixed = jnp.einsum("BTXD,BTX->BTD", out, weights.astype(x.dtype))
        summed = tuple(axis for axis in (expert, tensor) if axis is not None)
        return jax.lax.psum(mixed, summed) if summed else mixed


def apply_experts(
    one_expert: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    chosen: jax.Array,
    num_experts: int,
    parts: int = 1,
) -> jax.Array:
    """Gives every token's output of each of its experts.

    The rows (token, chosen expert) are sorted by expert into tiles of C rows that belong to one expert each, the last
    of an expert's being filled up, and an expert is applied to one tile at a time: no more than M / C + E tiles, and
    never more than M. (`jax.lax.ragged_dot` multiplies every row by every expert's kernel where the platform has no
    instruction for it, and has no rule for `vmap`.)

    Args:
      one_expert: expert's index and rows [C, D] -> [C, D].
      x: [tokens, D].
      chosen: int [tokens, X]; E for an expert that is on another device.
      num_experts: E, those that are here.
      parts: how many times as many there are on all devices. What is done is as much as there is to do here.

    Returns:
      [tokens, X, D]; zeros of an expert that is not here.
    """
    M, D = chosen.size, x.shape[-1]
    # A quarter of the mean load: filling up costs an eighth more rows or so.
    C = min(max(M // (4 * num_experts * parts), _SMALLEST_TILE), _LARGEST_TILE)
    num_tiles = min(M, -(-M // C) + num_experts)

    expert_of_row = chosen.reshape(-1)
    order = jnp.argsort(expert_of_row, stable=True)
    load = jnp.zeros(num_experts, jnp.int32).at[expert_of_row].add(1)
    tiles_until = jnp.cumsum(-(-load // C))  # of this expert and those before it
    expert_of_tile = jnp.searchsorted(tiles_until, jnp.arange(num_tiles), side="right", method="compare_all")

    expert = expert_of_row[order]
    rank = jnp.arange(M) - (jnp.cumsum(load) - load)[expert]
    place = (tiles_until - -(-load // C))[expert] * C + rank
    if parts > 1:
        place = jnp.where(expert < num_experts, place, num_tiles * C)  # nowhere
    # Places that no row fills hold token 0; what is computed there is read by nobody.
    token_of_place = jnp.zeros(num_tiles * C, order.dtype).at[place].set(order // chosen.shape[-1])

    def one_tile(tile: tuple[jax.Array, jax.Array]) -> jax.Array:
        return one_expert(tile[0], x[tile[1]])

    expert_of_tile = jnp.minimum(expert_of_tile, num_experts - 1)
    tiles = (expert_of_tile, token_of_place.reshape(num_tiles, C))
    place_of_row = jnp.zeros_like(place).at[order].set(place)
    if parts == 1:
        out = jax.lax.map(one_tile, tiles)
        return out.reshape(num_tiles * C, D)[place_of_row].reshape(*chosen.shape, D)

    def tile_if_filled(numbered: tuple[jax.Array, tuple[jax.Array, jax.Array]]) -> jax.Array:
        number, tile = numbered
        return jax.lax.cond(number < tiles_until[-1], one_tile, lambda tile: jnp.zeros((C, D), x.dtype), tile)

    out = jax.lax.map(tile_if_filled, (jnp.arange(num_tiles), tiles))
    return out.reshape(num_tiles * C, D).at[place_of_row].get(mode="fill", fill_value=0).reshape(*chosen.shape, D)
