"""The weights of all MLPs, and of the norms around them, where the blocks keep them.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from massive_jax.models.config import BlockConfig


@dataclasses.dataclass(frozen=True, eq=False)
class MLPWeights:
    """Holds the parameters that go into what the MLPs add to the residual stream, stacked over the layers.

    Attributes:
      up: [L, D, F].
      gate: [L, D, F]; None of a plain MLP.
      down: [L, F, D].
      up_bias: [L, F]; None for none.
      scale: [L, D], of the norm that the MLP reads through; None where there is none.
      shift: [L, D], the bias of that norm; None for none.
      normed: whether there is such a norm.
      out_scale: [L, D], of the norm on what the MLP gives; None where there is none.
    """

    up: Any
    gate: Any | None
    down: Any
    up_bias: Any | None
    scale: Any | None
    shift: Any | None
    normed: bool
    out_scale: Any | None


def mlp_weights(config: BlockConfig, params: Mapping[str, Any]) -> MLPWeights:
    """Finds the weights of the MLPs of a model of `config`.

    Raises:
      ValueError: its blocks have a mixture of experts, which has many of each, or a dynamic tanh on what the MLP gives.
    """
    _check_no_experts(config)
    if config.norm.kind == "dynamic_tanh" and config.norm_placement in ("output", "pre_and_output"):
        raise ValueError(
            f"a dynamic tanh is on what the MLPs give (norm_placement {config.norm_placement!r}), which bounds that "
            "whatever the weights are; give a model with a norm there, or without one."
        )
    layers = params["layers"]
    mlp, placement = layers["mlp"], config.norm_placement
    # Whose output the MLP reads: see `Block`.
    before = "attn_norm" if placement == "after_residual" or config.residual == "parallel_shared_norm" else "mlp_norm"
    read = layers.get(before, {}) if placement != "output" else {}
    out = layers.get("mlp_out_norm", {}) if placement in ("output", "pre_and_output") else {}
    return MLPWeights(
        up=mlp["up"]["kernel"],
        gate=mlp["gate"]["kernel"] if config.mlp == "gated" else None,
        down=mlp["down"]["kernel"],
        up_bias=mlp["up"].get("bias"),
        scale=_scale(config, read),
        shift=read.get("bias"),
        normed=placement != "output",
        out_scale=_scale(config, out),
    )


def with_down(config: BlockConfig, params: Mapping[str, Any], down: Any) -> dict[str, Any]:
    """Gives `params` with other down projections [L, F, D]; errors as `mlp_weights`."""
    _check_no_experts(config)
    layers = params["layers"]
    mlp = {**layers["mlp"], "down": {**layers["mlp"]["down"], "kernel": down}}
    return {**params, "layers": {**layers, "mlp": mlp}}


def _scale(config: BlockConfig, norm: Mapping[str, Any]) -> Any | None:
    if "scale" not in norm:
        return None
    scale = norm["scale"] + config.norm.unit_offset
    return scale.repeat(config.hidden_size, axis=-1) if config.norm.single_scale else scale


def _check_no_experts(config: BlockConfig) -> None:
    if config.mlp == "experts":
        raise ValueError(
            f"the MLPs are a mixture of {config.experts and config.experts.num_experts} experts ({config.model_type}), "
            "each with a down projection of its own; give a model whose blocks have one MLP."
        )
