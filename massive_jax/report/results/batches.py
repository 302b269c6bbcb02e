"""What became of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitResult:
    """A line of results.jsonl: what became of an experiment with its flags.

    Attributes:
      id: of the experiment and its flags.
      name: its directory in units/.
      title: it in words.
      experiment: its name.
      flags: by name, as they were given; a list where one was given several times.
      status: "done", "failed", or "missing".
      seconds: how long it took.
      exit: the exit status, or minus the signal that ended the process.
      finding: its result in a sentence, where it has one.
      headline: the numbers that it is compared by; those that are not finite as text.
      error: why it failed, in a line.
      versions: of jax and this package.
    """

    id: str
    name: str
    title: str
    experiment: str
    flags: Mapping[str, Any]
    status: str
    seconds: float | None = None
    exit: int | None = None
    finding: str | None = None
    headline: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    error: str | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """summary.json.

    Attributes:
      file: that asked for the units.
      units: in its order.
    """

    file: str
    units: tuple[UnitResult, ...]
