"""Training from scratch: tokens or images, optimiser, compiled step, the loop with its checkpoints, the census."""

from massive_jax.train.census import take_census
from massive_jax.train.classification import shuffled_batches, train_images
from massive_jax.train.config import ImageTrainConfig, RunConfig, TrainConfig
from massive_jax.train.data import TokenFile, adopt, batches_of
from massive_jax.train.language import train
from massive_jax.train.loop import DivergedError, Preempted, Task, Trained, mesh_of, run
from massive_jax.train.lora import lora_init, lora_merge
from massive_jax.train.metrics import flops_per_token, read_lines
from massive_jax.train.objective import Classification, NextToken, Objective
from massive_jax.train.optimizer import OptimizerConfig, decayed, make_optimizer, matrices
from massive_jax.train.prepare import prepare_tokens
from massive_jax.train.step import Trainer, TrainState
from massive_jax.train.variants import VARIANTS, Variant, variants_named

__all__ = [
    "VARIANTS",
    "Classification",
    "DivergedError",
    "ImageTrainConfig",
    "NextToken",
    "Objective",
    "OptimizerConfig",
    "Preempted",
    "RunConfig",
    "Task",
    "TokenFile",
    "TrainConfig",
    "TrainState",
    "Trained",
    "Trainer",
    "Variant",
    "adopt",
    "batches_of",
    "decayed",
    "flops_per_token",
    "lora_init",
    "lora_merge",
    "make_optimizer",
    "matrices",
    "mesh_of",
    "prepare_tokens",
    "read_lines",
    "run",
    "shuffled_batches",
    "take_census",
    "train",
    "train_images",
    "variants_named",
]
