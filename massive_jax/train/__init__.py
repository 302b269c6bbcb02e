"""Training from scratch: tokenised data, optimiser, compiled step, the loop with its checkpoints, the census."""

from massive_jax.train.data import TokenFile, adopt, batches_of
from massive_jax.train.prepare import prepare_tokens

__all__ = ["TokenFile", "adopt", "batches_of", "prepare_tokens"]
