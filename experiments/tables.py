"""What experiments print: progress, tables, places; and results made of measurements."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from massive_jax.analysis import PARAMETERS, fit_emergence
from massive_jax.evaluate import Profile
from massive_jax.files import printable
from massive_jax.parallel import is_first
from massive_jax.report import label, number
from massive_jax.report.results import Activation, Estimate, ProfileCurves, ProfileLayer


@contextlib.contextmanager
def progress(total: int, what: str, unit: str = "tok") -> Iterator[Callable[[int], Any]]:
    """A progress bar over `total` tokens (or `unit`) that shows itself when the work takes more than two seconds."""
    shown = None if is_first() else True  # None: where there is a terminal
    with tqdm.tqdm(total=total, desc=what, unit=unit, unit_scale=True, delay=2.0, disable=shown) as bar:
        yield bar.update


def profile_layers(profile: Profile) -> tuple[ProfileLayer, ...]:
    """A profile's layers, as results have them."""
    return tuple(ProfileLayer(**layer) for layer in profile.layers())


def profile_curves(name: str, profile: Profile) -> ProfileCurves:
    """A profile's curves, as figures have them."""
    curves = {of: tuple(getattr(profile, of).tolist()) for of in ("largest", "median", "sink_rate")}
    return ProfileCurves(name=name, **curves)


def fitted(steps: Sequence[int], ratios: Sequence[float]) -> dict[str, Any]:
    """The curve of arXiv 2508.03616 through ratios by step, or why there is none: fields of a result's `Fit`."""
    try:
        fit = fit_emergence(steps, ratios)
    except ValueError as error:
        return {"problem": str(error)}
    estimates = {
        name: Estimate(value=getattr(fit, name), error=None if math.isnan(error) else error)
        for name, error in zip(PARAMETERS, fit.errors, strict=True)
    }
    return {"parameters": estimates, "r_squared": fit.r_squared, "peak": fit.peak}


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under aligned columns; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    for row in [list(columns), *cells]:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        print("  ".join(parts).rstrip())


def place(found: Activation) -> str:
    """A found activation's place in words: (position token, dim)."""
    token = "" if found.token is None else f" {label(found.token)}"
    return f"({found.position}{token}, {found.dim})"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return "–" if value is None else printable(value)
