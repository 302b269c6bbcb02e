"""What a training minimises: the loss of a model on a batch. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from massive_jax.models import LanguageModel, VisionTransformer, head_of
from massive_jax.models.loss import mean_nll


class Objective(Protocol):
    """Computes a loss. It is hashable: equal ones are compiled once."""

    def loss(self, module: Any, params: Any, batch: Any) -> jax.Array:
        """Gives the mean over `batch`, whose arrays all have the batch's axis first: float32 []."""


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Computes the negative log-likelihood of the next token, in nats.

    Attributes:
      chunk, rounded: see `massive_jax.models.loss.mean_nll`.
    """

    chunk: int | None = None
    rounded: bool = False

    def loss(self, module: LanguageModel, params: Any, batch: jax.Array) -> jax.Array:
        """Gives the mean over int32 [B, T + 1], inputs and, one further, targets."""
        config = module.config
        _, hidden = module.apply({"params": params}, batch[:, :-1], logits=False)
        return mean_nll(config, hidden, head_of(config, params), batch[:, 1:], self.chunk, self.rounded)


NEXT_TOKEN = NextToken()


@dataclasses.dataclass(frozen=True)
class Classification:
    """Computes the cross-entropy of an image's class, in nats.

    Attributes:
      smoothing: share of the target that is spread over all classes (arXiv 1512.00567, section 7).
      mean, std: what pixels from 0 to 1 are normalised by, in every channel.
    """

    smoothing: float = 0.0
    mean: float = 0.5
    std: float = 0.5

    def loss(self, module: VisionTransformer, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """Gives the mean over "images", uint8 [B, height, width, 3], and "labels", int32 [B]."""
        logits = self.logits(module, params, batch["images"])
        targets = optax.smooth_labels(jax.nn.one_hot(batch["labels"], logits.shape[-1]), self.smoothing)
        return jnp.mean(optax.softmax_cross_entropy(logits, targets))

    def logits(self, module: VisionTransformer, params: Any, images: jax.Array) -> jax.Array:
        """Maps uint8 [B, height, width, 3] to float32 [B, V]."""
        logits: jax.Array = module.apply({"params": params}, self.normalised(images))[0]
        return logits

    def normalised(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Gives what the model sees of uint8 [B, height, width, 3]: float32 of that shape."""
        return (jnp.asarray(images, jnp.float32) / 255 - self.mean) / self.std
