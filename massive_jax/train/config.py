"""What a training is, as plain data: it is written into every checkpoint and compared on the way back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from massive_jax.arguments import SEEDS, is_index, shown
from massive_jax.files import Path, differences
from massive_jax.models import TransformerConfig, VisionConfig
from massive_jax.parallel import BATCH_AXES, mesh_sizes
from massive_jax.train.optimizer import OptimizerConfig

# What a resumed training may have otherwise than it began: nothing here changes a step.
_FREE = (
    *("steps", "log_every", "eval_every", "census_every", "checkpoint_every"),
    *("eval_batches", "census_windows", "census_images", "keep", "mesh"),
)
MOST = (1 << 31) - 1  # of a step's number and whatever else is counted: int32 on the device


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Configures what every training has.

    Attributes:
      optimizer: the recipe.
      data: checksum of what it trains on.
      steps: when it ends.
      batch: examples of a step, of all processes and micro-batches.
      accumulate: micro-batches that a step adds up.
      ema: decay of the moving average of the parameters, which is then evaluated and saved; 0 for none.
      remat: what the backward pass computes again (`massive_jax.models.stack.REMAT`).
      unroll: blocks compiled one after another (`massive_jax.models.LanguageModel`).
      seed: of the parameters and of the data's order.
      log_every, eval_every, census_every, checkpoint_every: in steps; 0 for never (the last step always has all).
      keep: newest checkpoints that are kept.
      mesh: devices along "fsdp" and "tensor"; or four numbers, along `massive_jax.parallel.AXES`.
    """

    optimizer: OptimizerConfig
    data: str
    steps: int
    batch: int
    accumulate: int = 1
    ema: float = 0.0
    remat: str = "none"
    unroll: int = 1
    seed: int = 0
    log_every: int = 10
    eval_every: int = 100
    census_every: int = 100
    checkpoint_every: int = 500
    keep: int = 2
    mesh: tuple[int, ...] = (1, 1)

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ValueError("training: " + "; ".join(problems) + ".")

    def _problems(self) -> Iterator[str]:
        """What is wrong with the fields."""
        yield from self._below(1, "steps", "batch", "accumulate", "unroll", "log_every", "keep")
        yield from self._below(0, "eval_every", "census_every", "checkpoint_every")
        yield from self._below(0, "seed", most=SEEDS - 1)
        try:
            split = self.batch_devices
        except ValueError as problem:
            yield str(problem)
            return
        micro = self.accumulate * split
        if is_index(self.batch) and is_index(self.accumulate) and micro >= 1 and self.batch % micro:
            yield f"batch is {self.batch}, no multiple of accumulate {self.accumulate} × {split} devices"
        if not self._is_share("ema"):
            yield f"ema is {shown(self.ema)}, expected a decay from 0 to below 1"

    @property
    def batch_devices(self) -> int:
        """Gives how many parts the mesh splits a batch into."""
        sizes = mesh_sizes(self.mesh)
        return math.prod(sizes[axis] for axis in BATCH_AXES)

    def _is_share(self, name: str) -> bool:
        """Whether a field is a number from 0 to below 1."""
        value = getattr(self, name)
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1

    def _below(self, least: int, *names: str, most: int = MOST) -> Iterator[str]:
        """Those of the fields that are no whole number from `least` to `most`, in words."""
        for name in names:
            value = getattr(self, name)
            if not is_index(value):
                yield f"{name} is {shown(value)}, expected a whole number"
            elif value < least:
                yield f"{name} is {value}, expected at least {least}"
            elif value > most:
                yield f"{name} is {shown(value)}, expected at most {most:,}"

    def described(self) -> dict[str, Any]:
        """Gives the fields as plain JSON."""
        described: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return described


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Configures a training of a language model on tokens.

    Attributes:
      model: the model.
      context: T, tokens of a sequence.
      bos: a token that every sequence begins with, the first of its T; None for none.
      validation: share of the token file, its end, that is held out.
      eval_batches: micro-batches of held-out windows that the validation loss is the mean of.
      census_windows: held-out windows of a census.
    """

    model: TransformerConfig
    context: int
    bos: int | None = None
    validation: float = 0.05
    eval_batches: int = 4
    census_windows: int = 4

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from self._below(1, "context", "eval_batches", "census_windows")
        if is_index(self.context) and self.context > self.model.context_length:
            prefix = f" with a prefix of {self.model.prefix_length} before it" if self.model.prefix_length else ""
            yield f"context is {self.context}, more than the model's max_position {self.model.max_position}{prefix}"
        if self.bos is not None and not (is_index(self.bos) and 0 <= self.bos < self.model.vocab_size):
            yield f"bos is {shown(self.bos)}, no token of the model's (0 to {self.model.vocab_size - 1})"
        if not self._is_share("validation") or not self.validation:
            yield f"validation is {shown(self.validation)}, expected a share between 0 and 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTrainConfig(RunConfig):
    """Configures a training of a vision model on labelled images.

    Attributes:
      model: the model, with a head.
      flip: whether half of the images are mirrored, left to right.
      shift: most pixels that an image is moved by in either direction, its edge repeated.
      smoothing: of the labels (`massive_jax.train.Classification`).
      census_images: held-out images of a census.
    """

    model: VisionConfig
    flip: bool = True
    shift: int = 0
    smoothing: float = 0.0
    census_images: int = 64

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from self._below(1, "census_images")
        yield from self._below(0, "shift")
        if not self._is_share("smoothing"):
            yield f"smoothing is {shown(self.smoothing)}, expected a share from 0 to below 1"
        if not self.model.num_classes:
            yield "the model has no head; give it num_classes"
        if is_index(self.shift) and self.shift >= min(self.model.image_size):
            yield f"shift is {self.shift}, more than the images' {self.model.image_size} pixels"


def check_same(stored: Mapping[str, Any], asked: RunConfig, workdir: Path, done: int = 0) -> None:
    """Raises a ValueError that names every field that differs where a training may not go on as `asked`.

    What `stored` lacks, an option from after it was written, was as its default is. Nor may one go on that has `done`
    more steps than are asked for.
    """

    def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in fields.items():
            nested = flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
            found.update(nested)
        return found

    before, now = flat(_with_defaults(stored, asked)), flat(asked.described())
    differing = [
        f"{name} was {was!r} and is {is_now!r}" for name, was, is_now in differences(before, now) if name not in _FREE
    ]
    if differing:
        raise ValueError(
            f"the training in {workdir} cannot go on with another config: {'; '.join(differing)}. Give what it began "
            "with, or another --workdir."
        )
    if done > asked.steps:
        raise ValueError(
            f"the training in {workdir} has {done} steps; --steps={asked.steps} is fewer. Give as many, or another "
            "--workdir."
        )


def _with_defaults(stored: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The fields of a config like `config`, as plain JSON, with those that are not there at their defaults."""
    found = dict(stored)
    for field in dataclasses.fields(config):
        value, made = getattr(config, field.name), field.default_factory
        if dataclasses.is_dataclass(value) and isinstance(found.get(field.name), Mapping):
            found[field.name] = _with_defaults(found[field.name], value)
        elif field.name not in found and (field.default, made) != (dataclasses.MISSING, dataclasses.MISSING):
            default = field.default if made is dataclasses.MISSING else made()
            found[field.name] = json.loads(json.dumps(default, default=dataclasses.asdict))
    return found
