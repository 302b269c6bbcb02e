"""What a training reports: a line of JSON a step, TensorBoard event files, a line on the terminal."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from massive_jax.arguments import is_index, shown
from massive_jax.chips import chip_of
from massive_jax.files import Path, atomic_write, make_directory
from massive_jax.models import TransformerConfig, VisionConfig, build, declared
from massive_jax.storage import Mirror


def peak_flops(dtype: str) -> float | None:
    """Gives the FLOP/s of one device of this machine; None where it is not known, or for float32."""
    chip = chip_of(jax.devices()[0].device_kind)
    return None if chip is None or dtype == "float32" else chip.flops


def flops_per_token(config: TransformerConfig | VisionConfig, context: int) -> float:
    """Counts FLOPs of one token's forward and backward pass, as PaLM does (arXiv 2204.02311, appendix B).

    Six for each weight that multiplies (tables that are looked up do not; a tied head does; an image's head is for no
    token; of experts, those that a token goes to), and those of attention over the whole context.
    """
    weights = 0
    for parameter in declared(build(config)).values():
        if parameter.role == "table" or (isinstance(config, VisionConfig) and "V" in parameter.axes):
            continue
        size = math.prod(parameter.shape)
        if parameter.per_expert and config.experts is not None:
            size = size * config.experts.num_chosen // config.experts.num_experts
        weights += size
    return 6.0 * weights + 12.0 * config.num_layers * config.num_heads * config.head_dim * context


class JsonLines:
    """Writes a file with one JSON object a line, each with its "step", as they come."""

    def __init__(self, path: pathlib.Path, done: int):
        """Opens `path` to go on after step `done`: what a run that was killed wrote of later steps is removed."""
        kept = [record for record in read_lines(path) if record["step"] <= done] if done else []
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a record."""
        self._file.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Gives what was written to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a `JsonLines` file; a last line that was not written whole is left out.

    Raises:
      ValueError: a line that is no record; the message says which.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    return [_record(path, number, line) for number, line in enumerate(lines[:-1], 1) if line]


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict) and is_index(record.get("step")):
            return record
    raise ValueError(f"{path}: line {number} is no record of a training, {shown(line)}; remove that line.")


class Metrics:
    """Writes what a training says: metrics.jsonl, census.jsonl, tensorboard/, and `say`, a line at a time."""

    def __init__(self, workdir: Path, done: int, say: Callable[[str], Any]):
        """Opens the files in `workdir` to go on after step `done`."""
        from tensorboardX import SummaryWriter

        make_directory(workdir)
        self._mirror = Mirror(workdir)
        self._steps = JsonLines(self._mirror.file("metrics.jsonl"), done)
        self._census = JsonLines(self._mirror.file("census.jsonl"), done)
        self._board = SummaryWriter(str(self._mirror.file("tensorboard")), purge_step=done + 1 if done else None)
        self.say = say

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        self._steps.write({"step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def census(self, step: int, layers: list[dict[str, Any]]) -> None:
        """Writes a census."""
        self._census.write({"step": step, "layers": layers})
        for name in ("largest", "kurtosis", "sink_rate"):
            self._board.add_scalar(f"census/{name}", max(layer[name] for layer in layers), step)
        self.flush()

    def flush(self, *, now: bool = False) -> None:
        """Gives what was written to the operating system; to a store where the last time is a while ago, or `now`."""
        self._steps.flush()
        self._census.flush()
        self._board.flush()
        self._mirror.put(now=now)

    def close(self) -> None:
        """Closes the files."""
        for file in (self._steps, self._census, self._board, self._mirror):
            file.close()


class NoMetrics(Metrics):
    """Writes and says nothing: for a process beside the one that does."""

    def __init__(self) -> None:
        self.say = lambda line: None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def census(self, step: int, layers: list[dict[str, Any]]) -> None:
        pass

    def flush(self, *, now: bool = False) -> None:
        pass

    def close(self) -> None:
        pass
