"""What became of a batch: the numbers that its units are compared by, the table, and one page over all."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from massive_jax.files import Path, atomic_write, is_directory, is_file, read_json, short_name, size_of
from massive_jax.report import words
from massive_jax.report.html import Cell, Section, Summary, Table, write_report
from massive_jax.report.observatory import METRICS, attention_metrics, census_metrics, weight_metrics
from massive_jax.report.records import as_record
from massive_jax.report.results import (
    Batch,
    Layerwise,
    MassiveAttention,
    Metric,
    ModelCensus,
    SuperWeightsOf,
    UnitResult,
)

# An experiment's result, where its file is called otherwise than the experiment.
_FILES = {"reproduce": "summary.json", "observe": "observatory.json", "collect": "activations/index.json"}
# What a result says of how it was made, and not of what was found.
_CONDITIONS = {
    *("batch", "bootstrap_draws", "bos", "classes", "context", "count", "dim", "draws", "found_at", "layer"),
    *("predicted_tokens", "registers", "rows", "seconds", "seed", "sink_share", "steps", "thresholds", "tokens"),
    *("value", "versions", "windows"),
}
_MOST = 8  # numbers of a unit
_EMBEDDED = 20e6  # bytes of figures that are put into the page; others are links


def headline(experiment: str, directory: Path) -> tuple[str | None, dict[str, float | str]]:
    """Gives what an experiment found in `directory`: its sentence, if it has one, and the numbers to compare it by.

    Numbers that are not finite are texts: "inf". Of a result that is not there, or cannot be read, there are none.
    """
    with contextlib.suppress(OSError, ValueError):
        result = read_json(directory / _FILES.get(experiment, f"{experiment}.json"))
        if isinstance(result, Mapping):
            found: dict[str, Any] = {}
            with contextlib.suppress(ValueError):
                kind = _METRICS.get(experiment)
                found = _numbers(result) if kind is None else _values(kind[1](as_record(kind[0], result)))
            sentences = [one.get("finding") for one in (result, *result.get("models", ())) if isinstance(one, Mapping)]
            said = " ".join(sentence for sentence in sentences if isinstance(sentence, str))
            return said or None, {
                name: value if math.isfinite(value) else str(value) for name, value in [*found.items()][:_MOST]
            }
    return None, {}


def unit_cells(unit: UnitResult, names: Sequence[str]) -> list[Cell]:
    """Gives the numbers of a unit, by name, for a table."""
    return [_cell(unit.headline.get(name)) for name in names]


def number_names(units: Sequence[UnitResult]) -> list[str]:
    """Gives the names of all numbers that any of the units has."""
    return list(dict.fromkeys(name for unit in units for name in unit.headline))


def in_words(name: str) -> str:
    """Says what a number is called in a table."""
    return METRICS[name].words if name in METRICS else name.replace("_", " ")


def summary_row(unit: UnitResult) -> list[Cell]:
    """Gives a unit's row of the table over all: what it is, its status, its seconds, its first numbers."""
    found = [f"{in_words(name)} {_shown(value)}" for name, value in [*unit.headline.items()][:3]]
    return [unit.title, unit.status, unit.seconds, unit.error or ", ".join(found) or None]


SUMMARY_COLUMNS = ("unit", "status", "seconds", "result")


def write_csv(path: str | os.PathLike[str], batch: Batch) -> None:
    """Writes a table with a row for every unit: its id and directory, its flags, its numbers, why it failed."""
    flags = list(dict.fromkeys(name for unit in batch.units for name in unit.flags))
    numbers = number_names(batch.units)
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    fixed = ("id", "name", "experiment", "status", "seconds", "exit", "error")
    table.writerow([*fixed, *(f"--{name}" for name in flags), *numbers])
    for unit in batch.units:
        given = [_text(unit.flags.get(name)) for name in flags]
        found = [unit.headline.get(name) for name in numbers]
        table.writerow([*(getattr(unit, name) for name in fixed), *given, *found])
    with atomic_write(path) as temporary:
        temporary.write_text(out.getvalue(), encoding="utf-8")


def write_batch_report(workdir: Path, batch: Batch) -> None:
    """Writes report.html: a table over all units, one for each experiment, and each unit's figure and files.

    Args:
      workdir: of the batch; units are in its units/.
      batch: what became of it.
    """
    counts = {status: sum(unit.status == status for unit in batch.units) for status in ("done", "failed", "missing")}
    said = [f"{counts['done']} of {words.count(len(batch.units), 'unit')} done"]
    said += [f"{counts[status]} {status}" for status in ("failed", "missing") if counts[status]]
    # The result comes second, where a phone shows it, too.
    rows = [(what, result, status, seconds) for what, status, seconds, result in map(summary_row, batch.units)]
    overview = Table(("Unit", "Result", "Status", "Seconds"), rows)
    sections = [
        _of_experiment(name, [unit for unit in batch.units if unit.experiment == name])
        for name in dict.fromkeys(unit.experiment for unit in batch.units)
    ]
    budget = _EMBEDDED
    for unit in batch.units:
        image = _figure(workdir / "units" / unit.name, unit.experiment)
        size = 0 if image is None else size_of(image)
        sections.append(_of_unit(unit, workdir, image if size <= budget else None))
        budget -= size if size <= budget else 0
    title = f"Batch of {pathlib.PurePath(batch.file).name}"
    write_report(workdir / "report.html", title, Summary(", ".join(said) + ".", overview), sections)


def _of_experiment(name: str, units: Sequence[UnitResult]) -> Section:
    """A table of an experiment's units: the flags that differ between them, and their numbers."""
    flags = list(dict.fromkeys(flag for unit in units for flag in unit.flags))
    same = [flag for flag in flags if all(unit.flags.get(flag) == units[0].flags.get(flag) for unit in units)]
    apart, numbers = [flag for flag in flags if flag not in same], number_names(units)
    rows = [
        [*([_flag(unit, flag) for flag in apart] or [unit.title]), unit.status, *unit_cells(unit, numbers)]
        for unit in units
    ]
    given = f"All with {', '.join(f'--{flag}={_text(units[0].flags[flag])}' for flag in same)}." if same else ""
    columns = [*([f"--{flag}" for flag in apart] or ["Unit"]), "Status", *map(in_words, numbers)]
    said = f"{words.count(len(units), 'unit')} of experiments.{name}. {given}"
    return Section(name, said, table=Table(columns, rows))


def _of_unit(unit: UnitResult, workdir: Path, image: Path | None) -> Section:
    directory = workdir / "units" / unit.name
    files = sorted(path.name for path in directory.iterdir() if is_file(path)) if is_directory(directory) else []
    shown = [name for name in files if not name.startswith(".")]
    said = {"failed": f"Failed: {unit.error}", "missing": "It has not run to its end."}
    return Section(
        unit.title,
        said.get(unit.status) or unit.finding or "",
        image,
        alt=unit.finding or f"The figure of {unit.title}.",
        links=[(name, f"units/{unit.name}/{name}") for name in shown],
    )


def _figure(directory: Path, experiment: str) -> Path | None:
    """The figure of a unit: that named like its experiment, or else the first."""
    found = sorted(directory.glob("[!.]*.png"), key=lambda path: path.name)
    named = [path for path in found if path.stem == experiment]
    return next(iter([*named, *found]), None)


def _flag(unit: UnitResult, name: str) -> Cell:
    value = unit.flags.get(name)
    return short_name(value) if name == "model" and isinstance(value, str) else _text(value)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else ", ".join(value)


def _cell(value: float | str | None) -> Cell:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e9 else value


def _shown(value: float | str) -> str:
    cell = _cell(value)
    return words.number(cell) if isinstance(cell, int | float) else str(cell)


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers at the top of a result and in the objects there, without what says how it was made."""
    found: dict[str, float] = {}
    for key, value in result.items():
        if key in _CONDITIONS:
            continue
        parts = {f"{key} {of}": one for of, one in value.items()} if isinstance(value, Mapping) else {key: value}
        found |= {name: float(one) for name, one in parts.items() if _is_number(one)}
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    return {name: float(metric.value) for name, metric in metrics.items() if metric.value is not None}


def _layerwise(result: Layerwise) -> dict[str, Metric]:
    peak = max(result.layers, key=lambda layer: layer.largest[0])
    largest = peak.largest[0]
    found = {"largest magnitude": largest, "times the median": largest / peak.median if peak.median else math.inf}
    return {name: Metric(value=value) for name, value in found.items()} | {"in layer": Metric(value=peak.layer)}


_METRICS: Mapping[str, tuple[Any, Callable[[Any], Mapping[str, Metric]]]] = {
    "census": (ModelCensus, census_metrics),
    "attention": (MassiveAttention, attention_metrics),
    "layerwise": (Layerwise, _layerwise),
    "super_weights": (SuperWeightsOf, weight_metrics),
}
