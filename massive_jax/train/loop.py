"""The training loop: steps, metrics, census, checkpoints; stopped and resumed without a trace in its numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from massive_jax.models import LanguageModel, TransformerConfig
from massive_jax.parallel import make_mesh
from massive_jax.train.census import take_census
from massive_jax.train.checkpoints import Checkpoints
from massive_jax.train.data import TokenFile, batches_of, even_windows
from massive_jax.train.metrics import Metrics, flops_per_token, peak_flops, read_lines
from massive_jax.train.optimizer import OptimizerConfig
from massive_jax.train.step import Trainer, TrainState
from massive_jax.weights.checkpoint import save_params
from massive_jax.weights.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training.

    Attributes:
      model: the model.
      optimizer: the recipe.
      data: checksum of the token file.
      steps: when it ends.
      batch: sequences of a step, of all processes and micro-batches.
      context: T, tokens of a sequence.
      accumulate: micro-batches that a step adds up.
      remat: what the backward pass computes again (`massive_jax.models.stack.REMAT`).
      seed: of the parameters and of the data's order.
      validation: share of the token file, its end, that is held out.
      log_every, eval_every, census_every, checkpoint_every: in steps; 0 for never (the last step always has all).
      eval_batches: micro-batches of held-out windows that the validation loss is the mean of.
      census_windows: held-out windows of a census.
      keep: newest checkpoints that are kept.
      mesh: devices along the axes "data" and "model".
    """

    model: TransformerConfig
    optimizer: OptimizerConfig
    data: str
    steps: int
    batch: int
    context: int
    accumulate: int = 1
    remat: str = "none"
    seed: int = 0
    validation: float = 0.05
    log_every: int = 10
    eval_every: int = 100
    census_every: int = 100
    checkpoint_every: int = 500
    eval_batches: int = 4
    census_windows: int = 4
    keep: int = 2
    mesh: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected at least {least}"
            for names, least in (
                (("steps", "batch", "context", "accumulate", "log_every", "eval_batches", "census_windows", "keep"), 1),
                (("eval_every", "census_every", "checkpoint_every", "seed"), 0),
            )
            for name in names
            if getattr(self, name) < least
        ]
        if self.context > self.model.max_position:
            problems.append(f"context is {self.context}, more than the model's max_position {self.model.max_position}")
        if not problems and self.batch % (self.accumulate * self.mesh[0]):
            problems.append(
                f"batch is {self.batch}, no multiple of accumulate {self.accumulate} × {self.mesh[0]} devices"
            )
        if not 0 < self.validation < 1:
            problems.append(f"validation is {self.validation}, expected a share between 0 and 1")
        if problems:
            raise ValueError("training: " + "; ".join(problems) + ".")


# What a resumed training may have otherwise than it began: nothing here changes a step.
_FREE = (
    *("steps", "log_every", "eval_every", "census_every", "checkpoint_every"),
    *("eval_batches", "census_windows", "keep", "mesh"),
)


class Preempted(Exception):  # noqa: N818 (it is no error: everything is saved)
    """SIGTERM came; the checkpoint of `step` is written."""

    def __init__(self, step: int, directory: pathlib.Path):
        """Says so of the training in `directory`."""
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved in {directory}; run it again to go on.")
        self.step = step


@dataclasses.dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
      params: float32, on their devices.
      loss: of the last step.
      validation_loss: on the held-out text.
      unigram_entropy: of the held-out text, in nats: a model that knows the tokens' frequencies only has that loss.
      directory: with the model, for `massive_jax.load`.
    """

    params: Any
    loss: float
    validation_loss: float
    unigram_entropy: float
    directory: pathlib.Path


def train(
    config: TrainConfig, file: TokenFile, workdir: pathlib.Path, *, say: Callable[[str], Any] = lambda line: None
) -> Trained:
    """Trains, or goes on with the training whose checkpoints are in `workdir`.

    Writes metrics.jsonl (a line a step, and one for each validation), census.jsonl, tensorboard/, checkpoints/ and, at
    the end, model/, which `massive_jax.load` takes. On SIGTERM it saves and stops; resumed, on as many devices as
    before, every step has the loss it would have had, to the last bit.

    Args:
      config: the training.
      file: the tokens.
      workdir: where everything goes.
      say: is given a line now and then.

    Raises:
      ValueError: data that do not fit the model or the context; checkpoints of another training, told by the field; a
        loss or gradient that is not finite; a checkpoint that cannot be written. The last good checkpoint stays.
      Preempted: SIGTERM.
    """
    if file.sha256 != config.data:
        raise ValueError(f"the training is of data {config.data[:12]}…, and {file.path} is {file.sha256[:12]}….")
    file.check_vocabulary(config.model.vocab_size)
    parts = file.split(config.validation, config.context)
    mesh = None if config.mesh == (1, 1) else make_mesh(*config.mesh)
    trainer = Trainer(LanguageModel(config.model, config.remat), config.optimizer, config.accumulate, mesh)
    processes = jax.process_index(), jax.process_count()
    batches = batches_of(
        file,
        parts[0],
        context=config.context,
        batch=config.batch // processes[1],
        seed=config.seed,
        shard=processes,
    )
    described = json.loads(json.dumps(dataclasses.asdict(config)))
    with Checkpoints(workdir / "checkpoints", config.keep) as checkpoints:
        done = checkpoints.latest
        if done is None:
            state, done = trainer.init(config.seed), 0
        else:
            data, stored = checkpoints.describe(done)
            check_same(stored, described, workdir)
            batches.set_state(data)
            state = checkpoints.load(done, trainer.abstract())
            say(f"going on after step {done}")
        metrics = Metrics(workdir, done, say)
        try:
            run = _Run(config, trainer, file, parts, checkpoints, metrics, described)
            return run.until_done(state, done, batches, workdir)
        finally:
            metrics.close()


def check_same(stored: Mapping[str, Any], asked: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Nothing where a training may go on as `asked`; ValueError that names every field that differs otherwise."""

    def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in fields.items():
            nested = flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
            found.update(nested)
        return found

    before, now = flat(stored), flat(asked)
    differing = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name) and name not in _FREE
    ]
    if differing:
        raise ValueError(
            f"the training in {workdir} cannot go on with another config: {'; '.join(differing)}. Give what it began "
            "with, or another --workdir."
        )


@dataclasses.dataclass
class _Run:
    """One run of the loop."""

    config: TrainConfig
    trainer: Trainer
    file: TokenFile
    parts: tuple[range, range]
    checkpoints: Checkpoints
    metrics: Metrics
    described: Mapping[str, Any]

    def __post_init__(self) -> None:
        cfg = self.config
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._held_out = even_windows(
            self.file,
            self.parts[1],
            context=cfg.context,
            count=max(cfg.census_windows, cfg.eval_batches * (cfg.batch // cfg.accumulate)),
        )
        self._loss = self._validation = math.nan
        self._flops = flops_per_token(cfg.model, cfg.context)
        peak = peak_flops(cfg.model.dtype)
        self._peak = peak and peak * math.prod(cfg.mesh)
        self._saved: int | None = None

    def until_done(self, state: TrainState, done: int, batches: Any, workdir: pathlib.Path) -> Trained:
        """Steps from `done` on to the end."""
        cfg = self.config
        self._saved = done or None
        if not done and cfg.census_every:
            self._census(state, 0)
        with _sigterm() as asked:
            self._started, self._timed_from = time.perf_counter(), done
            for step in range(done + 1, cfg.steps + 1):
                state, found = self.trainer.step(state, next(batches))
                self._pending.append((step, found))
                due = {
                    name: step == cfg.steps or (every > 0 and step % every == 0)
                    for name, every in (
                        ("log", cfg.log_every),
                        ("eval", cfg.eval_every),
                        ("census", cfg.census_every),
                        ("checkpoint", cfg.checkpoint_every),
                    )
                }
                if step == done + 1 or any(due.values()) or asked:
                    self._flush(speak=due["log"])
                    if due["eval"]:
                        self._validate(state, step)
                    if due["census"]:
                        self._census(state, step)
                    if due["checkpoint"] or asked:
                        self._save(state, step, batches)
                    if asked and step < cfg.steps:
                        self.checkpoints.wait()
                        raise Preempted(step, workdir)
                    self._started, self._timed_from = time.perf_counter(), step
        if done >= cfg.steps:  # there was nothing left to do
            losses = [record["loss"] for record in read_lines(workdir / "metrics.jsonl") if "loss" in record]
            self._loss = losses[-1] if losses else math.nan
            self._validate(state, done)
        self.checkpoints.wait()
        return self._finish(state, workdir)

    def _flush(self, *, speak: bool) -> None:
        """Waits for the steps taken and writes their metrics; the steps since the last time are timed."""
        found = jax.device_get(self._pending)
        self._pending = []
        seconds = (time.perf_counter() - self._started) / max(1, len(found))
        rate = self.config.batch * self.config.context / seconds
        for step, values in found:
            numbers = {name: float(value) for name, value in values.items()}
            bad = [name for name in ("loss", "grad_norm") if not math.isfinite(numbers[name])]
            if bad:
                self._not_finite(step, bad[0], numbers[bad[0]])
            self._loss = numbers["loss"]
            if step == found[-1][0] and self._timed_from:  # the first step of a run is compiled
                numbers |= {"tokens_per_second": rate}
                if self._peak:
                    numbers |= {"flops_utilisation": rate * self._flops / self._peak}
            self.metrics.scalars(step, numbers)
        self.metrics.flush()
        if speak:
            step = found[-1][0]
            left = (self.config.steps - step) * seconds
            used = f"  {100 * rate * self._flops / self._peak:.1f} % of peak FLOPs" if self._peak else ""
            self.metrics.say(
                f"step {step}/{self.config.steps}  loss {self._loss:.4f}  {rate:,.0f} tokens/s{used}  "
                f"{_duration(left)} left"
            )

    def _not_finite(self, step: int, name: str, value: float) -> None:
        self.checkpoints.wait()
        last = self.checkpoints.latest
        kept = "there is no checkpoint yet" if last is None else f"the last good checkpoint is of step {last}"
        raise ValueError(
            f"the {name.replace('_', ' ')} of step {step} is {value}: stopped; {kept}. Lower the learning rate, or "
            "look at the data of that step."
        )

    def _validate(self, state: TrainState, step: int) -> None:
        size = self.config.batch // self.config.accumulate
        losses = [
            float(self.trainer.loss(state.params, self._held_out[i * size : (i + 1) * size]))
            for i in range(self.config.eval_batches)
        ]
        self._validation = float(np.mean(losses))
        self.metrics.scalars(step, {"validation_loss": self._validation})
        self.metrics.say(f"step {step}  validation loss {self._validation:.4f}")

    def _census(self, state: TrainState, step: int) -> None:
        windows = self._held_out[: self.config.census_windows, :-1]
        self.metrics.census(step, take_census(LanguageModel(self.config.model), state.params, windows))

    def _save(self, state: TrainState, step: int, batches: Any) -> None:
        if step != self._saved:
            self.checkpoints.save(step, state, batches.get_state(), self.described)
            self._saved = step

    def _finish(self, state: TrainState, workdir: pathlib.Path) -> Trained:
        """Writes the model, and says what came out."""
        target = workdir / "model"
        if target.exists():
            shutil.rmtree(target)  # of this training, when it was shorter
        tokenizer = None if self.file.tokenizer is None else Tokenizer.from_json(self.file.tokenizer)
        provenance = {"training": self.described, "text": self.file.text, "tokenizer": self.file.tokenizer_name}
        model = dataclasses.replace(self.config.model, attention_kernel="xla", dtype="float32")
        save_params(str(target), model, state.params, tokenizer=tokenizer, provenance=lambda: provenance)
        return Trained(state.params, self._loss, self._validation, self.file.unigram_entropy(self.parts[1]), target)


@contextlib.contextmanager
def _sigterm() -> Iterator[list[bool]]:
    """A list that is no longer empty once SIGTERM has come; the handler that was there is put back."""
    asked: list[bool] = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
