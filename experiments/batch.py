"""Many experiments from one file: models × experiments × flags, each in a process of its own, resumed, in one table.

  python -m experiments.batch --file=sweep.yaml --workdir=results/sweep
  python -m experiments.batch --file=sweep.yaml --workdir=results/sweep --dry_run
  srun python -m experiments.batch --file=sweep.yaml --workdir=/shared/sweep --shard=auto

The file is YAML, a list of groups. A group is an experiment and its flags; a list is one unit for each of its values:

  - experiment: [census, layerwise]
    model: [smollm2_135m, gemma3_270m_q4_k_m, results/gpt2/model]
    windows: 8
  - experiment: intervene
    model: smollm2_135m
    layer: 12
    places: ["0:507", "0:247", "0:507,0:247"]

These are 6 units and 3. Values are texts as they stand there; a list within a list gives its flag several times; null
leaves a flag out. Every flag of every unit is looked at by its experiment before the first runs, and what is wrong with
the first that it refuses is the error.

Each unit has a directory, WORKDIR/units/NAME, with what its experiment writes and unit.log, what it printed; and, when
it has ended, a line in results.jsonl (`massive_jax.report.results.UnitResult`). A unit that fails ends no other. Killed
or stopped, the same command goes on with what is missing; the unit that was running begins anew, or where its
experiment goes on itself. What failed is tried once more, after the rest (--noretry: is not). When all have had their
turn, it writes summary.json, summary.csv and report.html over all units of the file.

Several hosts: --shard=I/N, I from 0, runs every Nth unit, and keeps results.I.jsonl; --shard=auto is for a launcher
that says which of how many (Slurm, Open MPI, MPICH, a TPU pod). They share WORKDIR, or it is put together afterwards:
the same command, anywhere, then writes the summary. Or every unit over the devices of all hosts: give --distributed (or
--coordinator, --num_processes, --process_id) to the batch on each. It passes these on, and --mesh.

Ends with 0 when all units are done; 1: wrong input, nothing ran; 2: a unit has failed; 143: stopped by SIGTERM. With
--shard these are about its own units.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

import massive_jax as mj
from experiments import apart, common
from experiments.flags import paths, processes
from experiments.units import Unit, check_units, read_units
from massive_jax.files import (
    HeldError,
    Path,
    atomic_write,
    is_file,
    json_text,
    locked,
    make_directory,
    printable,
    shown,
    user_path,
    write_json,
)
from massive_jax.report import as_json, as_record
from massive_jax.report.batch import SUMMARY_COLUMNS, headline, summary_row, write_batch_report, write_csv
from massive_jax.report.results import Batch, UnitResult
from massive_jax.storage import Mirror

_FILE = paths.define("file", None, "The units, a YAML file.")
_SHARD = flags.DEFINE_string(
    "shard", None, "I/N: runs every Nth unit, from I (0 to N - 1) on; auto: as the launcher says."
)
_RETRY = flags.DEFINE_bool("retry", True, "Runs units that failed once more.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Looks at the units, prints what would be run, and ends.")

_WAIT = 600  # seconds for what is left of a run that was killed to end
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"  # of a TPU VM
# Where launchers say which process this is, of how many (a number, or a list of their names).
_LAUNCHERS = {
    "SLURM_PROCID": "SLURM_NTASKS",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK": "PMI_SIZE",
    "TPU_WORKER_ID": "TPU_WORKER_HOSTNAMES",
}
_ASKED = f"{', '.join(_LAUNCHERS)}, a TPU VM's metadata"

if __name__ == "__main__":
    flags.adopt_module_key_flags(common)
    flags.declare_key_flag("workdir")


def launched() -> tuple[int, int] | None:
    """Which process this is, and of how many, as a launcher says it; None where none does."""
    for index, count in _LAUNCHERS.items():
        which, of = os.environ.get(index, ""), os.environ.get(count, "")
        many = int(of) if of.isdecimal() else len([name for name in of.split(",") if name])
        if which.isdecimal() and int(which) < many:
            return int(which), many
    which, peers = _of_tpu_vm("agent-worker-number"), _of_tpu_vm("worker-network-endpoints")
    return (int(which), len(peers.split(","))) if which.isdecimal() and peers else None


def _of_tpu_vm(attribute: str) -> str:
    """What the machine's own server says of it, where jax, too, asks; nothing where there is none."""
    request = urllib.request.Request(_METADATA + attribute, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode().strip()
    return ""


def shard() -> tuple[int, int]:
    """Which units are ours: those whose number, from 0, leaves the first when divided by the second.

    Raises:
      ValueError: --shard is no such pair; or it is auto, and no launcher says which.
    """
    if _SHARD.value is None:
        return 0, 1
    if _SHARD.value == "auto":
        if (found := launched()) is None:
            raise ValueError(f"--shard=auto: nothing says which host this is ({_ASKED}); give --shard=I/N.")
        return found
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", _SHARD.value)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"--shard={_SHARD.value}: give I/N with I from 0 to N - 1, such as 0/4.")
    return int(match[1]), int(match[2])


def together() -> tuple[list[str], int]:
    """What every unit gets to run on all hosts, and which of them this is; --mesh if at all and 0 where each is alone.

    Raises:
      ValueError: it does not show which this is; --shard is given, too.
    """
    given = [flags.FLAGS[name] for name in (*processes.NAMES, "mesh") if flags.FLAGS[name].present]
    passed = [f"--{flag.name}={flag.value}" for flag in given]
    if not processes.several():
        return passed, 0
    common.without_effect(("shard",), f"beside --{given[0].name}, with which every host runs every unit")
    which = flags.FLAGS["process_id"].value
    if which is None:
        if (found := launched()) is None:
            raise ValueError(
                f"--{given[0].name}: nothing says which host this is ({_ASKED}); give --coordinator, --num_processes "
                "and --process_id."
            )
        which = found[0]
    return passed, int(which)


def read_results(path: Path) -> dict[str, UnitResult]:
    """Reads results.jsonl: of each unit, by id, its last line. ValueError where a line is none."""
    found = {}
    lines = path.read_text(encoding="utf-8").splitlines() if is_file(path) else []
    for number, line in enumerate(lines, 1):
        try:
            result = as_record(UnitResult, json.loads(line), f"{path}: line {number}")
        except (ValueError, RecursionError):
            raise ValueError(f"{path}: line {number} is no result, {shown(line)}; remove that line.") from None
        found[result.id] = result
    return found


def all_results(workdir: Path) -> dict[str, UnitResult]:
    """The same of all shards; a unit that one of them has done is done."""
    found: dict[str, UnitResult] = {}
    for path in sorted(workdir.glob("results*.jsonl")):
        for id_, result in read_results(path).items():
            if id_ not in found or found[id_].status != "done":
                found[id_] = result
    return found


class Results:
    """A results.jsonl, which is written anew with each unit, whole or not at all."""

    def __init__(self, path: Path):
        self._path, self._found = path, read_results(path)

    def add(self, result: UnitResult) -> None:
        """Adds a line, in place of the unit's line of before."""
        self._found.pop(result.id, None)
        self._found[result.id] = result
        lines = [json_text(as_json(one)) + "\n" for one in self._found.values()]
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def await_freed(directory: Path) -> None:
    """Waits for what a killed run has left in a unit's directory to end; it was told to."""
    for second in range(_WAIT):
        try:
            with locked(directory):
                return
        except HeldError:
            if second == 0:
                print("  waiting for a process of before, which still writes there", flush=True)
            time.sleep(1)


def run_unit(unit: Unit, directory: Path, passed: Sequence[str] = (), host: int = 0) -> UnitResult:
    """Runs a unit in a process of its own, and says what became of it.

    Args:
      unit: the unit.
      directory: for its results and its log.
      passed: arguments that it gets besides its own.
      host: which of the hosts that run it together this is.

    Raises:
      SystemExit: its process was told to stop, or we were.
    """
    make_directory(directory)
    if host == 0:
        await_freed(directory)
    arguments = [*unit.arguments(directory), *passed]
    with contextlib.closing(Mirror(directory)) as mirror:
        log = mirror.file("unit.log" if host == 0 else f"unit.{host}.log")
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"$ {command(unit, arguments)}\n")
        begins = log.stat().st_size
        started = time.monotonic()
        status = apart.run(unit.experiment, arguments, log)
        seconds = time.monotonic() - started
        said = log.read_bytes()[begins:].decode(errors="replace")
    error = apart.reason(status, said) if status else None
    finding, numbers = (None, {}) if status else headline(unit.experiment, directory)
    return _result(
        unit,
        "failed" if status else "done",
        seconds=round(seconds, 2),
        exit=status,
        finding=finding,
        headline=numbers,
        error=error,
        versions={"massive_jax": mj.__version__, "jax": jax.__version__},
    )


def _result(unit: Unit, status: str, **more: Any) -> UnitResult:
    return UnitResult(
        id=unit.id,
        name=unit.name,
        title=unit.title,
        experiment=unit.experiment,
        flags=unit.flags,
        status=status,
        **more,
    )


def command(unit: Unit, arguments: Sequence[str]) -> str:
    """What to type for a unit."""
    return printable(shlex.join(["python", "-m", f"experiments.{unit.experiment}", *arguments]))


def ordered(units: Sequence[Unit], found: Mapping[str, UnitResult], retry: bool) -> list[Unit]:
    """What is to be run: what has no result, and then, with `retry`, what failed."""
    missing = [unit for unit in units if unit.id not in found]
    return missing + [u for u in units if retry and u.id in found and found[u.id].status != "done"]


def summarise(units: Sequence[Unit], found: Mapping[str, UnitResult], file: str) -> Batch:
    """The result over all units of the file."""
    return Batch(file=file, units=tuple(found.get(unit.id) or _result(unit, "missing") for unit in units))


def show(batch: Batch) -> None:
    """Prints the table, and why units failed."""
    rows = [summary_row(unit) for unit in batch.units]
    common.print_table(SUMMARY_COLUMNS, [(*row[:3], "see below" if row[1] == "failed" else row[3]) for row in rows])
    for unit in batch.units:
        if unit.status == "failed":
            print(f"failed: {printable(unit.title)}: {printable(unit.error)}")


def main() -> None:
    """Runs the binary."""
    if not _FILE.value:
        raise ValueError("--file is missing; give a YAML file with the units, as --help shows.")
    file = user_path(_FILE.value)
    (index, count), (passed, host) = shard(), together()
    units = read_units(file)
    workdir = common.workdir(reserve=False)
    check_units(units, passed, f"--file={file}")
    found = all_results(workdir)
    ours = units[index::count]
    todo = ordered(ours, found, _RETRY.value)
    if _DRY_RUN.value:
        for unit in ours:
            state = "to run" if unit in todo else found[unit.id].status
            print(f"{unit.id} {state}: {command(unit, [*unit.arguments(workdir / 'units' / unit.name), *passed])}")
        print(f"{len(todo)} of {len(ours)} units to run" + (f" in shard {index} of {count}" if count > 1 else ""))
        return
    if host:
        statuses = [_turn(unit, n, todo, workdir, passed, host).status for n, unit in enumerate(todo, 1)]
        sys.exit(2 if "failed" in statuses else 0)
    path = workdir / ("results.jsonl" if count == 1 else f"results.{index}.jsonl")
    with locked(path):
        results, number = Results(path), 0
        try:
            for number, unit in enumerate(todo):
                results.add(_turn(unit, number + 1, todo, workdir, passed))
        except (SystemExit, KeyboardInterrupt):
            print(f"stopped after {number} of {len(todo)} units; the same command goes on.", file=sys.stderr)
            raise
    found = all_results(workdir)
    batch = summarise(units, found, str(file))
    write_json(workdir / "summary.json", as_json(batch))
    write_csv(workdir / "summary.csv", batch)
    write_batch_report(workdir, batch)
    show(batch)
    print(f"wrote {workdir / 'summary.json'}, summary.csv and report.html")
    if any(found[unit.id].status != "done" for unit in ours):
        sys.exit(2)


def _turn(
    unit: Unit, number: int, of: Sequence[Unit], workdir: Path, passed: Sequence[str], host: int = 0
) -> UnitResult:
    print(f"[{number}/{len(of)}] {printable(unit.title)}", flush=True)
    result = run_unit(unit, workdir / "units" / unit.name, passed, host)
    print(f"  {result.status} in {result.seconds:.0f} s" + (f": {result.error}" if result.error else ""), flush=True)
    return result


if __name__ == "__main__":
    common.run_experiment(main)
