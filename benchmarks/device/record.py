"""What a section measures: a line of JSON each, on the disk as soon as it is known."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Context:
    """Holds what a section is given.

    Attributes:
      name: of the section.
      out: directory of the results.
      small: toy sizes, for tests on CPU.
      deadline: when the section should have ended, as `time.monotonic()` has it.
      data: a token file to train on; None for none.
    """

    name: str
    out: pathlib.Path
    small: bool
    deadline: float
    data: str | None = None

    @property
    def seconds_left(self) -> float:
        """Gives the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def add(self, what: str, **values: Any) -> None:
        """Writes a measurement, and says it."""
        record = {"section": self.name, "what": what, **values}
        with (self.out / RECORDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, default=str) + "\n")
        shown = ", ".join(
            f"{key} {_short(value)}" for key, value in values.items() if not isinstance(value, list | dict)
        )
        print(f"{self.name}: {what}: {shown}", flush=True)


RECORDS = "records.jsonl"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure(function: Callable[[], Any], repeats: int = 10, *, calls: int = 1, seconds: float = 20.0) -> list[float]:
    """Times a jax function after two runs that are not: seconds a call of each repeat.

    Args:
      function: what to call; its arrays are waited for.
      repeats: how often.
      calls: made one after another in each repeat before anything is waited for: for what is quicker than a dispatch.
      seconds: after which no repeat is begun.
    """
    for _ in range(2):
        jax.block_until_ready(function())
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < repeats and (not found or time.perf_counter() - began < seconds):
        started = time.perf_counter()
        out = [function() for _ in range(calls)]
        jax.block_until_ready(out)
        found.append((time.perf_counter() - started) / calls)
        del out
    return found


def median(seconds: list[float]) -> float:
    """Gives the median."""
    return statistics.median(seconds)


class Compiles:
    """Counts what jax compiles, and the seconds, from when it is made on."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            self.count += 1
            self.seconds += duration_secs


def bytes_accessed(compiled: jax.stages.Compiled) -> float | None:
    """Gives the bytes that a program reads and writes, as its compiler counts them: those of each fused kernel."""
    costs: Any = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) and costs else costs
    return costs.get("bytes accessed") if isinstance(costs, dict) else None
