"""Trainings as data: a model's shape and a recipe for a machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from massive_jax.models import AttentionBias, TransformerConfig, VisionConfig
from massive_jax.models.config import BlockConfig, NormConfig
from massive_jax.models.kernels import AttentionKernel
from massive_jax.train.optimizer import OptimizerConfig
from massive_jax.zoo import nanogpt, vit
from massive_jax.zoo.fields import Fields

_Config = TypeVar("_Config", bound=BlockConfig)


@dataclasses.dataclass(frozen=True)
class TrainPreset:
    """Describes a training without its data.

    Attributes:
      shape: of the model, in nanoGPT's names.
      optimizer: the recipe.
      dtype: of the activations.
      options: the other fields of `TrainConfig`.
      text: what it trains on unless told; None where that must be given.
      changes: fields of `TransformerConfig` in which the model is not nanoGPT's.
      name: what results call the model.
    """

    shape: Mapping[str, Any]
    optimizer: OptimizerConfig
    dtype: str
    options: Mapping[str, Any]
    text: str | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = "GPT-2"

    def model(
        self, *, attention_bias: AttentionBias | None, dtype: str, kernel: AttentionKernel, **changes: Any
    ) -> TransformerConfig:
        """Gives the model, with an attention bias, in a dtype, on an attention kernel.

        Args:
          attention_bias: the bias; None for none.
          dtype: of the activations.
          kernel: of the attention.
          **changes: other fields of `TransformerConfig`, over those of the preset; "norm" may be a mapping of some of
            the fields of `NormConfig`.

        Raises:
          ValueError: a field that there is not, or that does not fit.
        """
        config = nanogpt.config(Fields(dict(self.shape), "preset"))
        for fields in (self.changes, {**changes, "attention_bias": attention_bias, "dtype": dtype}):
            config = with_options(config, fields)
        return dataclasses.replace(config, attention_kernel=kernel)


def with_options(config: _Config, changes: Mapping[str, Any]) -> _Config:
    """Gives a model's config with other options. It takes sequences as long: places of a prefix come on top.

    Args:
      config: the config.
      changes: field -> value; "norm" may be a mapping of some of its own fields.

    Raises:
      ValueError: a field that there is not, or that does not fit.

    Examples:
      >>> from massive_jax.train.presets import PRESETS, with_options
      >>> config = PRESETS["small"].model(attention_bias=None, dtype="float32", kernel="xla")
      >>> with_options(config, {"norm": {"kind": "rms"}, "clip_residual": 30.0}).norm.kind
      'rms'
    """
    _check_fields(config, f"a {type(config).__name__}", changes)
    norm = changes.get("norm")
    if isinstance(norm, Mapping):
        _check_fields(config.norm, "a norm", norm)
        changes = {**changes, "norm": dataclasses.replace(config.norm, **norm)}
    changed = dataclasses.replace(config, **changes)
    if isinstance(changed, TransformerConfig) and isinstance(config, TransformerConfig):
        more = changed.prefix_length - config.prefix_length
        if more > 0 and "max_position" not in changes:
            changed = dataclasses.replace(changed, max_position=changed.max_position + more)
    return changed


def _check_fields(config: Any, what: str, changes: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(config)]
    if unknown := [name for name in changes if name not in known]:
        raise ValueError(f"{what} has no field {', '.join(unknown)}; it has {', '.join(known)}.")


# nanoGPT's GPT-2 124M: no biases, a vocabulary padded to a multiple of 64.
_GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50304, "block_size": 1024, "bias": False}

PRESETS: Mapping[str, TrainPreset] = {
    # The paper's: 491,520 tokens a step, 50,000 steps of a cosine over 600,000.
    "paper": TrainPreset(
        _GPT2,
        OptimizerConfig(),
        "bfloat16",
        {
            "steps": 50_000,
            "batch": 480,
            "context": 1024,
            "accumulate": 40,
            "unroll": 12,
            "validation": 0.0005,
            "eval_every": 500,
            "census_every": 500,
            "checkpoint_every": 1000,
            "eval_batches": 16,
        },
    ),
    # The same model for hours on one GPU: 65,536 tokens a step and a cosine that comes down.
    "gpu": TrainPreset(
        _GPT2,
        OptimizerConfig(warmup_steps=500, decay_steps=10_000),
        "bfloat16",
        {
            "steps": 10_000,
            "batch": 64,
            "context": 1024,
            "accumulate": 4,
            "unroll": 12,  # 35 % more tokens a second on an H200 than a loop, compiled in 22 to 29 s
            "validation": 0.005,
            "eval_every": 250,
            "census_every": 250,
            "checkpoint_every": 500,
        },
    ),
    # Minutes on two cores: bytes of a text that is there.
    "small": TrainPreset(
        {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 256, "block_size": 128, "bias": False},
        OptimizerConfig(learning_rate=2e-3, final_learning_rate=2e-4, warmup_steps=50, decay_steps=800),
        "float32",
        {
            "steps": 800,
            "batch": 16,
            "context": 128,
            "unroll": 4,
            "eval_every": 100,
            "census_every": 100,
            "checkpoint_every": 200,
        },
        text="python",
    ),
    # Minutes on two cores, to an attention sink: a language whose copying head has nothing to do at most tokens.
    "backcopy": TrainPreset(
        {"n_layer": 3, "n_head": 1, "n_embd": 64, "vocab_size": 256, "block_size": 128, "bias": False},
        OptimizerConfig(
            learning_rate=3e-3, final_learning_rate=3e-4, warmup_steps=50, decay_steps=4000, weight_decay=0.01
        ),
        "float32",
        {
            "steps": 4000,
            "batch": 16,
            "context": 128,
            "bos": 0,  # a byte that no text has
            "unroll": 3,
            "log_every": 400,
            "eval_every": 400,
            "census_every": 200,
            "checkpoint_every": 1000,
        },
        text="backcopy",
    ),
    # Minutes on two cores, to a sink and massive activations on the start token: how it was found, docs/emergence.md
    # says. Strong decay keeps small what is not written again and again; training ends before the rate has come down.
    "emergence": TrainPreset(
        {"n_layer": 4, "n_head": 4, "n_embd": 64, "vocab_size": 256, "block_size": 64, "bias": False},
        OptimizerConfig(
            learning_rate=2e-3, final_learning_rate=1e-4, warmup_steps=100, decay_steps=9000, weight_decay=1.0
        ),
        "float32",
        {
            "steps": 6000,
            "batch": 16,
            "context": 64,
            "bos": 0,
            "unroll": 4,
            "log_every": 1000,
            "eval_every": 1000,
            "census_every": 250,
            "checkpoint_every": 2000,
        },
        text="multicopy",
        name="transformer",
        changes={
            "norm": NormConfig("rms"),
            "position": "rope",
            "mlp": "gated",
            "activation": "silu",
            "intermediate_size": 170,
            "head_dim": 8,  # too few for all distances: several heads do a part each
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class ImageTrainPreset:
    """Describes a training of a vision transformer, without its images.

    Attributes:
      shape: of the model, in the names of Hugging Face's `ViTConfig`.
      optimizer: the recipe.
      dtype: of the activations.
      options: the other fields of `ImageTrainConfig`.
    """

    shape: Mapping[str, Any]
    optimizer: OptimizerConfig
    dtype: str
    options: Mapping[str, Any]

    def model(self, *, image_size: tuple[int, int], num_classes: int, registers: int, **changes: Any) -> VisionConfig:
        """Gives the model for images of that size and those classes, with `changes` of other fields."""
        fields = Fields({**self.shape, "image_size": image_size}, "preset")
        config = vit.encoder(fields, model_type="vit", num_classes=num_classes, registers=registers)
        return dataclasses.replace(config, **changes)


def _vit(width: int, layers: int, heads: int, patch_size: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch_size,
        "layer_norm_eps": 1e-6,
    }


# Recipes for images as small as Fashion-MNIST's.
IMAGE_PRESETS: Mapping[str, ImageTrainPreset] = {
    # Minutes on two cores.
    "small": ImageTrainPreset(
        _vit(64, 4, 4, 7),
        OptimizerConfig(
            learning_rate=3e-3,
            final_learning_rate=3e-5,
            warmup_steps=100,
            decay_steps=3750,
            b2=0.98,
            weight_decay=0.05,
        ),
        "float32",
        {
            "steps": 3750,  # four epochs of Fashion-MNIST
            "batch": 64,
            "ema": 0.99,
            "unroll": 4,
            "flip": False,  # all shoes point one way
            "log_every": 250,
            "eval_every": 1250,
            "census_every": 250,
            "checkpoint_every": 500,
        },
    ),
    # ViT-S, minutes on one GPU.
    "gpu": ImageTrainPreset(
        _vit(384, 12, 6, 4),
        OptimizerConfig(
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            warmup_steps=1000,
            decay_steps=23_400,
            b2=0.98,
            weight_decay=0.05,
        ),
        "bfloat16",
        {
            "steps": 23_400,
            "batch": 256,
            "ema": 0.9995,
            "shift": 2,
            "smoothing": 0.1,
            "unroll": 12,
            "log_every": 100,
            "eval_every": 2340,
            "census_every": 500,
            "checkpoint_every": 2000,
        },
    ),
}
