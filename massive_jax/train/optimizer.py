"""AdamW with the recipe the paper trained GPT-2 by, which is nanoGPT's."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from massive_jax.arguments import number
from massive_jax.models import LanguageModel, VisionTransformer, declared


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Configures AdamW (arXiv 1711.05101) under a linear warm-up and a cosine decay.

    Attributes:
      learning_rate: at the end of the warm-up.
      final_learning_rate: from `decay_steps` on.
      warmup_steps: steps of the linear warm-up; its first step already moves.
      decay_steps: step at which the cosine has come down.
      b1, b2: decay of the first and second moment.
      eps: added to the root of the second moment.
      weight_decay: of the parameters that `decayed` names, times the learning rate.
      clip: largest norm of the gradient of all parameters together.
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

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
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
        if not max(self.b1, self.b2) < 1:
            raise ValueError(f"b1 and b2 are {self.b1} and {self.b2}; give decays from 0 to below 1.")
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


def make_optimizer(config: OptimizerConfig, decays: Any) -> optax.GradientTransformation:
    """Makes the optimiser that `config` describes."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            config.schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decays
        ),
    )


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
