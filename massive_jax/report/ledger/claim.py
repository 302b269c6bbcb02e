"""A claim of a paper, what was measured of it here, and the verdict of a rule that was written before the number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from massive_jax.files import Path, read_json

REPRODUCED, NOT_REPRODUCED, UNDECIDED, OUT_OF_REACH = VERDICTS = (
    "reproduced",
    "not reproduced",
    "undecided",
    "out of reach here",
)


class MissingError(ValueError):
    """Says that a result is not there, or does not have what a claim needs."""


class Results:
    """Reads the results that claims are about: each run's JSON file, once."""

    def __init__(self, files: Mapping[str, Path]):
        """Takes the file of each run by its name; nothing is read yet."""
        self._files = dict(files)
        self._read: dict[str, Any] = {}

    def __getitem__(self, run: str) -> dict[str, Any]:
        """Gives what the run wrote; `MissingError` where it is not there."""
        if run not in self._read:
            path = self._files.get(run)
            if path is None or not path.is_file():
                raise MissingError(f"{run} was not run")
            self._read[run] = read_json(path)
        found: dict[str, Any] = self._read[run]
        return found


@dataclasses.dataclass(frozen=True)
class Ours:
    """What was measured here.

    Attributes:
      value: the number that the rule is asked about.
      low, high: its 95 % interval, where it has one.
      words: how it is written; None for the number alone, with its interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    words: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A row of the ledger.

    Attributes:
      paper: its number on arXiv.
      states: what it says, in our words.
      theirs: its number, and of which model.
      model: what was measured here.
      measure: reads that from results; None where it is out of reach.
      holds: whether a number reproduces the claim.
      rule: that in words: "counts as reproduced where …".
      why: of what is out of reach, the reason.
    """

    paper: str
    states: str
    theirs: str
    model: str = ""
    measure: Callable[[Results], Ours] | None = None
    holds: Callable[[float], bool] = bool
    rule: str = ""
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A claim with its verdict.

    Attributes:
      claim: the claim.
      verdict: one of `VERDICTS`.
      ours: what was measured; None where nothing was.
      why: what the verdict rests on beside the rule: what is missing, or that the interval has both.
    """

    claim: Claim
    verdict: str
    ours: Ours | None = None
    why: str = ""


def judge(claim: Claim, results: Results) -> Entry:
    """Measures a claim and applies its rule; a number whose interval's ends do not agree with it decides nothing."""
    if claim.measure is None:
        return Entry(claim, OUT_OF_REACH, why=claim.why)
    try:
        ours = claim.measure(results)
    except (MissingError, KeyError, IndexError, TypeError) as error:
        missing = str(error) if isinstance(error, MissingError) else f"its result has no {error}"
        return Entry(claim, UNDECIDED, why=missing)
    if math.isnan(ours.value):
        return Entry(claim, UNDECIDED, ours, "not a number")
    said = claim.holds(ours.value)
    if any(claim.holds(end) != said for end in (ours.low, ours.high) if end is not None):
        return Entry(claim, UNDECIDED, ours, "the interval has both")
    return Entry(claim, REPRODUCED if said else NOT_REPRODUCED, ours)
