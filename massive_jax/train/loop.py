"""The training loop: steps, metrics, census, checkpoints; stopped and resumed without a trace in its numbers."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from massive_jax.files import Path, as_path, remove_tree
from massive_jax.parallel import check_shared, from_first, in_any, is_first, make_mesh, mesh_sizes, once
from massive_jax.train.checkpoints import Checkpoints
from massive_jax.train.config import RunConfig, check_same
from massive_jax.train.metrics import Metrics, NoMetrics, peak_flops, read_lines
from massive_jax.train.step import Trainer, TrainState


class Preempted(Exception):  # noqa: N818 (it is no error: everything is saved)
    """Says that SIGTERM came, and that the checkpoint of `step` is written."""

    def __init__(self, step: int, directory: Path):
        """Says so of the training in `directory`."""
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved in {directory}; run it again to go on.")
        self.step = step


class DivergedError(ValueError):
    """Says that the loss, or its gradient, is no longer a finite number."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """Holds what came of a training.

    Attributes:
      params: float32, on their devices: the moving average where one is kept.
      loss: of the last step.
      validation: on held-out data: "validation_loss", and what else the task measures.
      directory: with the model, for `massive_jax.load`.
    """

    params: Any
    loss: float
    validation: Mapping[str, float]
    directory: Path

    @property
    def validation_loss(self) -> float:
        """Gives the loss on held-out data, in nats."""
        return self.validation["validation_loss"]


class Task(abc.ABC):
    """Describes what the loop asks of what is trained.

    Attributes:
      config: the training.
      trainer: its compiled functions.
      unit: what is counted: "tokens", "images".
      units: of a step.
      flops: of one of them, forward and backward.
    """

    config: RunConfig
    trainer: Trainer
    unit: str
    units: int
    flops: float

    @abc.abstractmethod
    def batches(self) -> Any:
        """Gives the batches of this process, an iterator of grain: its state is plain JSON and says where it is."""

    @abc.abstractmethod
    def validate(self, params: Any) -> dict[str, float]:
        """Measures on held-out data: "validation_loss", and others."""

    @abc.abstractmethod
    def census(self, params: Any) -> list[dict[str, Any]]:
        """Takes `massive_jax.train.take_census` on held-out data."""

    @abc.abstractmethod
    def save(self, directory: Path, params: Any) -> None:
        """Writes the model that came out, for `massive_jax.load`. Called by all processes."""


def mesh_of(config: RunConfig) -> Any:
    """Makes the mesh of a training; None for one device.

    Raises:
      ValueError: there are not that many devices; of several processes it does not take all.
    """
    if jax.process_count() > 1 and math.prod(config.mesh) != jax.device_count():
        raise ValueError(
            f"a mesh of {' × '.join(map(str, config.mesh))} leaves out some of the {jax.device_count()} devices of "
            f"{jax.process_count()} processes; give one of all, such as --mesh=fsdp:{jax.device_count()}."
        )
    if math.prod(config.mesh) == 1:
        return None
    return make_mesh(*config.mesh) if len(config.mesh) == 2 else make_mesh(**mesh_sizes(config.mesh))


def run(task: Task, workdir: Path, *, say: Callable[[str], Any] = lambda line: None) -> Trained:
    """Runs a training, or goes on with the one whose checkpoints are in `workdir`.

    Writes metrics.jsonl (a line a step, and one for each validation), census.jsonl, tensorboard/, checkpoints/ and, at
    the end, model/, which `massive_jax.load` takes. On SIGTERM it saves and stops; resumed, on as many devices as
    before, every step has the loss it would have had, to the last bit.

    Several processes (`jax.distributed`) each call this. They save together, process 0 writes the other files and
    speaks, and a SIGTERM to any of them stops all after the same step.

    Args:
      task: the training.
      workdir: where everything goes; of several processes one directory that all of them see.
      say: is given a line now and then; of several processes only that of process 0.

    Raises:
      DivergedError: a loss or gradient that is not finite.
      ValueError: checkpoints of another training, told by the field, or of more steps; a checkpoint that cannot be
        written; a `workdir` that is not shared. The last good checkpoint stays.
      Preempted: SIGTERM.
    """
    config, trainer, workdir = task.config, task.trainer, as_path(workdir)
    batches = task.batches()
    described = config.described()
    check_shared(workdir)
    with Checkpoints(workdir / "checkpoints", config.keep) as checkpoints:
        done = from_first(checkpoints.latest or 0)
        if not done:
            state = trainer.init(config.seed)
        else:
            data, stored = checkpoints.describe(done)
            check_same(stored, config, workdir, done)
            batches.set_state(data)
            state = checkpoints.load(done, trainer.abstract())
        metrics = Metrics(workdir, done, say) if is_first() else NoMetrics()
        if done:
            metrics.say(f"going on after step {done}")
        try:
            return _Run(task, checkpoints, metrics, described).until_done(state, done, batches, workdir)
        finally:
            metrics.close()


@dataclasses.dataclass
class _Run:
    """One run of the loop."""

    task: Task
    checkpoints: Checkpoints
    metrics: Metrics
    described: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.config = self.task.config
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._loss = math.nan
        self._validation: dict[str, float] = {}
        peak = peak_flops(self.task.trainer.module.config.dtype)
        self._peak = peak and peak * math.prod(self.config.mesh)
        self._saved: int | None = None

    def until_done(self, state: TrainState, done: int, batches: Any, workdir: Path) -> Trained:
        """Steps from `done` on to the end."""
        cfg = self.config
        self._saved = done or None
        if not done and cfg.census_every:
            self._census(state, 0)
        with _sigterm() as asked:
            stop = _Stop(asked, self.task.trainer.mesh)
            self._started, self._timed_from = time.perf_counter(), done
            for step in range(done + 1, cfg.steps + 1):
                batch = next(batches)
                stop.ask()
                state, found = self.task.trainer.step(state, batch)
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
                if step == done + 1 or any(due.values()) or stop:
                    self._flush(speak=due["log"])
                    if due["eval"]:
                        self._validate(state, step)
                    if due["census"]:
                        self._census(state, step)
                    if due["checkpoint"] or stop:
                        self._save(state, step, batches)
                    if stop and step < cfg.steps:
                        self.checkpoints.wait()
                        raise Preempted(step, workdir)
                    self._started, self._timed_from = time.perf_counter(), step
        if done >= cfg.steps:  # there was nothing left to do
            losses = [record["loss"] for record in read_lines(workdir / "metrics.jsonl") if "loss" in record]
            self._loss = losses[-1] if losses else math.nan
            self._validate(state, done)
        self.checkpoints.wait()
        target = workdir / "model"

        def clear() -> None:
            if target.exists():
                remove_tree(target)  # of this training, when it was shorter

        once(clear, f"remove {target}")
        self.task.save(target, state.evaluated)
        return Trained(state.evaluated, self._loss, self._validation, target)

    def _flush(self, *, speak: bool) -> None:
        """Waits for the steps taken and writes their metrics; the steps since the last time are timed."""
        found = jax.device_get(self._pending)
        self._pending = []
        seconds = (time.perf_counter() - self._started) / max(1, len(found))
        rate = self.task.units / seconds
        for step, values in found:
            numbers = {name: float(value) for name, value in values.items()}
            bad = [name for name in ("loss", "grad_norm") if not math.isfinite(numbers[name])]
            if bad:
                self._not_finite(step, bad[0], numbers[bad[0]])
            self._loss = numbers["loss"]
            if step == found[-1][0] and self._timed_from:  # the first step of a run is compiled
                numbers |= {f"{self.task.unit}_per_second": rate}
                if self._peak:
                    numbers |= {"flops_utilisation": rate * self.task.flops / self._peak}
            self.metrics.scalars(step, numbers)
        self.metrics.flush()
        if speak:
            step = found[-1][0]
            left = (self.config.steps - step) * seconds
            used = f"  {100 * rate * self.task.flops / self._peak:.1f} % of peak FLOPs" if self._peak else ""
            self.metrics.say(
                f"step {step}/{self.config.steps}  loss {self._loss:.4f}  {rate:,.0f} {self.task.unit}/s{used}  "
                f"{_duration(left)} left"
            )

    def _not_finite(self, step: int, name: str, value: float) -> None:
        self.checkpoints.wait()
        last = self.checkpoints.latest
        kept = "there is no checkpoint yet" if last is None else f"the last good checkpoint is of step {last}"
        raise DivergedError(
            f"the {name.replace('_', ' ')} of step {step} is {value}: stopped; {kept}. Lower the learning rate, or "
            "look at the data of that step."
        )

    def _validate(self, state: TrainState, step: int) -> None:
        self._validation = self.task.validate(state.evaluated)
        self.metrics.scalars(step, self._validation)
        words = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self._validation.items())
        self.metrics.say(f"step {step}  {words}")

    def _census(self, state: TrainState, step: int) -> None:
        self.metrics.census(step, self.task.census(state.evaluated))

    def _save(self, state: TrainState, step: int, batches: Any) -> None:
        if step != self._saved:
            self.metrics.flush(now=True)  # a run that goes on from here finds all that came before
            self.checkpoints.save(step, state, batches.get_state(), self.described)
            self._saved = step


class _Stop:
    """Whether to stop: SIGTERM has come; of several processes, to any of them before it began the step.

    They ask each other before every step, which all begin, so that all have the same answer after it, and the question
    is answered while the step is computed. (jax's preemption service would not do: it takes SIGTERM away from Python,
    and does not know when a training ends.)
    """

    def __init__(self, asked: list[bool], mesh: Any):
        self._asked, self._mesh = asked, mesh
        self._answer: jax.Array | None = None

    def ask(self) -> None:
        """Called by all processes before a step."""
        if jax.process_count() > 1:
            self._answer = in_any(bool(self._asked), self._mesh)

    def __bool__(self) -> bool:
        return bool(self._asked if self._answer is None else self._answer)


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
