"""Optimisers: AdamW with the recipe the paper trained GPT-2 by, which is nanoGPT's, and what is compared with it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeAlias, get_args

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from massive_jax.arguments import number, shown
from massive_jax.models import LanguageModel, VisionTransformer, declared

OptimizerKind: TypeAlias = Literal["adamw", "muon", "sgd"]
_ADAMS_RMS = 0.2  # of AdamW's updates, about (arXiv 2502.16982, section 2.2)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Configures an optimiser under a linear warm-up and a cosine decay.

    Kinds: "adamw" (arXiv 1711.05101). "muon" (arXiv 2502.16982): of linear maps the momentum, made orthogonal by five
    Newton–Schulz steps, times 0.2 · √(the larger of inputs and outputs), so that an update is as large as AdamW's and a
    learning rate does for both; AdamW for all else, embedding and head among it. "sgd": the gradient with momentum,
    with which residual-state peaks do not form (arXiv 2410.13835); it needs a larger learning rate. Schedule, clipping
    and weight decay are the same for all.

    Attributes:
      learning_rate: at the end of the warm-up.
      final_learning_rate: from `decay_steps` on; the same as `learning_rate` for one that stays.
      warmup_steps: steps of the linear warm-up; its first step already moves.
      decay_steps: step at which the cosine has come down.
      b1, b2: decay of the first and second moment; "sgd" has b1 as its momentum.
      eps: added to the root of the second moment.
      weight_decay: of the parameters that `decayed` names, times the learning rate.
      clip: largest norm of the gradient of all parameters together.
      kind: which optimiser.
      momentum: decay of the momentum of Muon's matrices (Nesterov's).
    """

    learning_rate: float = 6e-4
    final_learning_rate: float = 6e-5
    warmup_steps: int = 2000
    decay_steps: int = 600_000
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    kind: OptimizerKind = "adamw"
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.kind not in get_args(OptimizerKind):
            raise ValueError(f"optimizer is {shown(self.kind)}; give one of {', '.join(get_args(OptimizerKind))}.")
        for field in dataclasses.fields(self):
            if field.name != "kind":
                number(field.name, getattr(self, field.name), 0)
        if not 0 <= self.final_learning_rate <= self.learning_rate or self.learning_rate <= 0:
            raise ValueError(
                f"learning rates {self.learning_rate} and {self.final_learning_rate} (final): give a positive one and "
                "a final one that is no larger."
            )
        if not 0 <= self.warmup_steps < self.decay_steps:
            raise ValueError(
                f"a warm-up of {self.warmup_steps} steps, a decay until step {self.decay_steps}: "
                "the warm-up must end first."
            )
        if not max(self.b1, self.b2, self.momentum) < 1:
            raise ValueError(
                f"b1, b2 and momentum are {self.b1}, {self.b2} and {self.momentum}; give decays from 0 to below 1."
            )
        if self.clip <= 0:
            raise ValueError(f"clip is {self.clip}; give a positive norm.")

    def schedule(self, step: jax.Array | int) -> jax.Array:
        """Gives the learning rate of step `step`, from 0: float32."""
        step = jnp.asarray(step, jnp.float32)
        warm = self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        done = jnp.clip((step - self.warmup_steps) / (self.decay_steps - self.warmup_steps), 0.0, 1.0)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * done))
        low = self.final_learning_rate
        return jnp.where(step < self.warmup_steps, warm, low + cosine * (self.learning_rate - low))


def make_optimizer(config: OptimizerConfig, decays: Any, matrices: Any = None) -> optax.GradientTransformation:
    """Makes the optimiser that `config` describes.

    Args:
      config: the recipe.
      decays: what `decayed` gives.
      matrices: what `matrices` gives; Muon asks for it.

    Raises:
      ValueError: Muon, and nobody says what is a matrix.
    """
    if config.kind == "muon" and matrices is None:
        raise ValueError("Muon has to know what is a matrix: give massive_jax.train.matrices(module).")
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        # In its own chain, as `optax.adamw` has it: that is how states of checkpoints are named.
        optax.chain(
            _direction(config, matrices),
            optax.add_decayed_weights(config.weight_decay, decays),
            optax.scale_by_learning_rate(config.schedule),
        ),
    )


def _direction(config: OptimizerConfig, matrices: Any) -> optax.GradientTransformation:
    """What an update is before decay and learning rate."""
    if config.kind == "sgd":
        return optax.trace(config.b1)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.kind == "adamw":
        return adam
    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=matrices),
        optax.stateless(lambda updates, _: jax.tree.map(_as_large_as_adams, updates, matrices)),
    )
    kinds = jax.tree.map(lambda x: "muon" if _is_matrix(x) else "adamw", matrices, is_leaf=_is_leaf)
    return optax.partition({"muon": muon, "adamw": adam}, kinds)


def _as_large_as_adams(update: jax.Array, matrix: optax.contrib.MuonDimensionNumbers) -> jax.Array:
    """An orthogonal update with the root mean square of AdamW's."""
    sizes = (math.prod(update.shape[axis] for axis in axes) for axes in (matrix.reduction_axis, matrix.output_axis))
    return _ADAMS_RMS * math.sqrt(max(sizes)) * update


def _is_matrix(x: Any) -> bool:
    return isinstance(x, optax.contrib.MuonDimensionNumbers)


def _is_leaf(x: Any) -> bool:
    return _is_matrix(x) or isinstance(x, optax.MaskedNode)


def matrices(module: LanguageModel | VisionTransformer) -> Any:
    """Tells which parameters are linear maps, for Muon: those of the blocks and around them, no embedding, no head.

    Layers and experts are separate matrices; a head's axes are one axis.

    Returns:
      `optax.contrib.MuonDimensionNumbers`, or `optax.MaskedNode` for what is no matrix, in a tree like the model's
      parameters.
    """
    found = {
        path: optax.MaskedNode() if it.matrix is None else optax.contrib.MuonDimensionNumbers(*it.matrix)
        for path, it in declared(module).items()
    }
    return flax.traverse_util.unflatten_dict(found, sep="/")


def decayed(module: LanguageModel | VisionTransformer) -> Any:
    """Tells which parameters decay: those with two axes or more in one layer (nanoGPT's rule); no norm, no bias.

    What is stacked counts as one layer's, and one expert's, and a projection's bias is one even where it is shaped by
    heads: nanoGPT, which goes by the number of axes alone, has vectors for both. Extra keys and values of an attention
    bias (per layer, a head's width each) decay, as the paper's do.

    Returns:
      Bools in a tree like the model's parameters.
    """
    decays = {
        path: parameter.role not in ("scale", "bias") and len(parameter.own_axes) > 1
        for path, parameter in declared(module).items()
    }
    return flax.traverse_util.unflatten_dict(decays, sep="/")
