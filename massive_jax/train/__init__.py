"""Training from scratch: tokenised data, optimiser, compiled step, the loop with its checkpoints, the census."""

from massive_jax.train.census import take_census
from massive_jax.train.data import TokenFile, adopt, batches_of
from massive_jax.train.loop import Preempted, TrainConfig, Trained, train
from massive_jax.train.metrics import flops_per_token, read_lines
from massive_jax.train.optimizer import OptimizerConfig, decayed, make_optimizer
from massive_jax.train.prepare import prepare_tokens
from massive_jax.train.step import Trainer, TrainState

__all__ = [
    "OptimizerConfig",
    "Preempted",
    "TokenFile",
    "TrainConfig",
    "TrainState",
    "Trained",
    "Trainer",
    "adopt",
    "batches_of",
    "decayed",
    "flops_per_token",
    "make_optimizer",
    "prepare_tokens",
    "read_lines",
    "take_census",
    "train",
]
