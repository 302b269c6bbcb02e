"""A training from scratch: its preset, and what goes over it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

import jax
from absl import flags

from experiments import common
from experiments.flags import mesh as mesh_flags
from experiments.flags import model, processes, seed
from massive_jax.files import Path
from massive_jax.models import AttentionBias
from massive_jax.models.attention_bias import ATTENTION_BIASES, SLOT_KINDS
from massive_jax.models.config import NormPlacement, ValueScale
from massive_jax.models.kernels import KERNELS, AttentionKernel, gpu_problem
from massive_jax.models.norms import NormKind
from massive_jax.models.stack import REMAT
from massive_jax.report import as_record
from massive_jax.report.results import Census
from massive_jax.train import OptimizerConfig, Preempted, RunConfig, mesh_of, read_lines
from massive_jax.train.config import MOST
from massive_jax.train.optimizer import OptimizerKind

PRESET = flags.DEFINE_string("preset", "small", "The training; see above.")
BIAS = flags.DEFINE_enum("attention_bias", "none", ["none", *ATTENTION_BIASES], "Explicit attention bias.")
SLOTS = flags.DEFINE_integer("slots", 1, "Slots of the bias, for the kinds that have them.", lower_bound=1)
_REMAT = flags.DEFINE_enum("remat", "none", list(REMAT), "What of a block the backward pass computes again.")
_OPTIMIZER = flags.DEFINE_enum(
    "optimizer", None, get_args(OptimizerKind), "Which; see massive_jax.train.OptimizerConfig. None for the preset's."
)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "At the end of the warm-up; the final one is a tenth.")
_FINAL_LEARNING_RATE = flags.DEFINE_float(
    "final_learning_rate", None, "At the end of the cosine; that of --learning_rate for one that stays.", lower_bound=0
)
_WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay", None, "Of matrices, times the learning rate; None for the preset's.", lower_bound=0
)
_NORM_PLACEMENT = flags.DEFINE_enum(
    "norm_placement", None, get_args(NormPlacement), "Where the blocks' norms are; None for the preset's."
)
_NORM = flags.DEFINE_enum("norm", None, get_args(NormKind), "What the norms are; None for the preset's.")
_SINGLE_SCALE = flags.DEFINE_bool("single_scale", None, "Gives a norm one scale for all dims; None for the preset's.")
_VALUE_SCALE = flags.DEFINE_enum(
    "value_scale", None, [kind for kind in get_args(ValueScale) if kind], "V-scale; None for the preset's."
)
_CLIP_RESIDUAL = flags.DEFINE_float(
    "clip_residual", None, "Clips the residual stream to ± this after each addition; None for the preset's."
)
for _positive in (_LEARNING_RATE, _CLIP_RESIDUAL):
    flags.register_validator(
        _positive, lambda value: value is None or 0 < value < math.inf, "give a positive one, and a finite one."
    )
for _finite in (_FINAL_LEARNING_RATE, _WEIGHT_DECAY):
    flags.register_validator(_finite, lambda value: value is None or value < math.inf, "give a finite one.")
_SCHEDULE = {
    name: flags.DEFINE_integer(name, None, f"{meaning}; None for the preset's.", lower_bound=least, upper_bound=MOST)
    for name, meaning, least in (
        ("warmup_steps", "Steps of the linear warm-up", 0),
        ("decay_steps", "Step at which the cosine has come down", 1),
    )
}
_INTEGERS = {
    name: flags.DEFINE_integer(name, None, f"{meaning}; None for the preset's.", lower_bound=least, upper_bound=MOST)
    for name, meaning, least in (
        ("steps", "When to end", 1),
        ("batch", "Examples of a step", 1),
        ("accumulate", "Micro-batches of a step", 1),
        ("log_every", "Steps between lines on the terminal", 1),
        ("eval_every", "Steps between validations, 0 for the end only", 0),
        ("census_every", "Steps between censuses, 0 for the end only", 0),
        ("checkpoint_every", "Steps between checkpoints, 0 for the end only", 0),
        ("keep", "Checkpoints to keep", 1),
    )
}

_Preset = TypeVar("_Preset")


def preset(presets: Mapping[str, _Preset]) -> _Preset:
    """The preset that the flags ask for; ValueError where there is none of that name."""
    if PRESET.value not in presets:
        raise ValueError(f"--preset={PRESET.value}: there are {', '.join(presets)}.")
    return presets[PRESET.value]


def attention_bias() -> AttentionBias | None:
    """The bias that the flags ask for; ValueError where --slots is given and it has none."""
    if BIAS.value not in SLOT_KINDS:
        common.without_effect(("slots",), f"with --attention_bias={BIAS.value}, which has no slots")
    return None if BIAS.value == "none" else AttentionBias(BIAS.value, slots=SLOTS.value)


def mesh() -> tuple[int, ...]:
    """The mesh that the flags ask for, as a `RunConfig` has it: fsdp and tensor, or all four axes."""
    sizes = mesh_flags.sizes()
    pair = (sizes["fsdp"], sizes["tensor"])
    return pair if math.prod(pair) == math.prod(sizes.values()) else tuple(sizes.values())


def check(of_preset: OptimizerConfig, fields: Mapping[str, Any]) -> None:
    """Looks at what every training has, before anything is read or made for it.

    Args:
      of_preset: the preset's recipe.
      fields: its other fields of a `massive_jax.train.RunConfig`, and perhaps more.

    Raises:
      ValueError: flags out of range, or that do not go together; a mesh of more devices than there are.
    """
    known = {field.name for field in dataclasses.fields(RunConfig)}
    given = {name: value for name, value in options(fields).items() if name in known}
    attention_bias()
    common.check_device()
    mesh_of(RunConfig(optimizer=optimizer(of_preset), data="", **given))


def dtype(of_preset: str) -> str:
    """The dtype that the flags ask for, or else the preset's."""
    return str(model.DTYPE.value) if flags.FLAGS["dtype"].present else of_preset


def kernel(dtype: str, tokens: int, platform: str | None = None) -> AttentionKernel:
    """The attention kernel to train with, that the model of the flags can have, on so many tokens.

    On this machine; with a `platform`, on one of those: cuDNN's only where this machine has it, which traces it.
    """
    if platform in (None, "gpu") and dtype in KERNELS["cudnn"].dtypes and gpu_problem() is None:
        return "cudnn"
    # Splash computes blocks of 128 tokens, whole.
    on_tpu = (platform or jax.default_backend()) == "tpu" and tokens >= 128
    if on_tpu and dtype in KERNELS["splash"].dtypes and BIAS.value != "sigmoid":
        return "splash"
    return "xla"


def optimizer(of_preset: OptimizerConfig) -> OptimizerConfig:
    """The recipe, with the optimiser, the learning rates and the decay that the flags ask for."""
    changes: dict[str, Any] = {}
    if (rate := _LEARNING_RATE.value) is not None:
        changes |= {"learning_rate": rate, "final_learning_rate": rate / 10}
    given: dict[str, flags.FlagHolder[Any]] = {
        **_SCHEDULE,
        "kind": _OPTIMIZER,
        "final_learning_rate": _FINAL_LEARNING_RATE,
        "weight_decay": _WEIGHT_DECAY,
    }
    return dataclasses.replace(of_preset, **changes | _given(given))


def model_options() -> dict[str, Any]:
    """The fields of a model's config that the flags ask for, as `massive_jax.train.presets.with_options` takes them."""
    found = _given({"norm_placement": _NORM_PLACEMENT, "value_scale": _VALUE_SCALE, "clip_residual": _CLIP_RESIDUAL})
    norm = _given({"kind": _NORM, "single_scale": _SINGLE_SCALE})
    return {**found, "norm": norm} if norm else found


def _given(flag_of: Mapping[str, flags.FlagHolder[Any]]) -> dict[str, Any]:
    """The values of those flags that have one."""
    return {name: flag.value for name, flag in flag_of.items() if flag.value is not None}


def options(of_preset: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields of a `massive_jax.train.RunConfig`."""
    return {**of_preset, **_given(_INTEGERS), "remat": _REMAT.value, "mesh": mesh(), "seed": seed.SEED.value}


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Ends the process as SIGTERM would have where the training in it was stopped by that."""
    try:
        yield
    except Preempted as stopped:
        processes.say(str(stopped))
        sys.exit(143)


def census(workdir: Path) -> tuple[Census, ...]:
    """Every census of the training in `workdir`, which may have none yet; ValueError where they are not of one."""
    path = workdir / "census.jsonl"
    found = tuple(as_record(Census, line, f"{path}: a line") for line in read_lines(path))
    if found and (len({len(record.layers) for record in found}) > 1 or not found[0].layers):
        raise ValueError(f"{path}: its censuses have different layers, or none; it is not of one training.")
    return found


def whole_census(workdir: Path, steps: int) -> tuple[Census, ...]:
    """The same of a training that has ended; ValueError where the census of its last step is not there."""
    found = census(workdir)
    if not found or found[-1].step != steps:
        raise ValueError(
            f"{workdir / 'census.jsonl'} is gone, or has lost its end (step {steps}); remove {workdir}, to train anew."
        )
    return found
