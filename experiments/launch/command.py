"""What the workers run: an experiment and its flags, checked here as far as that goes without a model."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from experiments import apart
from experiments.flags import paths, processes
from experiments.units import read_units
from massive_jax import storage
from massive_jax.files import existing_file, one_line
from massive_jax.parallel import parse_mesh

FOLDER = "/job"  # of a container, in which the command runs; the Dockerfile's, too
_LARGEST = 512 * 1024  # bytes of the files that go along: a ConfigMap has at most 1 MiB


@dataclasses.dataclass(frozen=True)
class Command:
    """Is what every worker runs.

    Attributes:
      module: what `python -m` takes.
      arguments: after it.
      values: the flags that `arguments` give, and --workdir: name -> value.
      units: of a batch, of each unit, experiment and such flags.
    """

    module: str
    arguments: tuple[str, ...]
    values: dict[str, Any]
    units: tuple[tuple[str, dict[str, Any]], ...] = ()

    @classmethod
    def read(cls, words: Sequence[str]) -> Command:
        """Reads "layerwise --model=…", word by word.

        Raises:
          ValueError: no experiment, one that there is not, or flags that it does not take, also in the file of a batch,
            or no such file; a control character.
        """
        if not words:
            raise ValueError("give what to run after --, such as: -- layerwise --model=llama2_7b --workdir=gs://…")
        module = _module(words[0])
        importlib.import_module(module)  # defines its flags
        words = _without_flag_files(words)
        for word in words:
            if not word.isprintable():
                raise ValueError(f"{word!r}: a command for other machines has printable characters only.")
        (values,) = _parsed([words])
        return cls(module, tuple(words[1:]), values, _units(values) if module == "experiments.batch" else ())

    @property
    def results(self) -> str:
        """Gives where the results go."""
        ours = flags.FLAGS.find_module_defining_flag("out") == self.module
        return self.values.get("out" if ours else "workdir") or ""

    def together(self, devices: int, hosts: int) -> Command:
        """Gives the command for several processes that find each other.

        Raises:
          ValueError: an experiment that runs in one process; a mesh of another number of devices.
        """
        if found := [name for name in processes.NAMES if name != "distributed" and self.values.get(name) is not None]:
            raise ValueError(f"--{found[0]}: the hosts of a launch find each other; leave it out.")
        shard = self.values.get("shard")
        if shard not in (None, "auto") and hosts > 1:
            raise ValueError(f"--shard={shard} would be the same on every host; give --shard=auto.")
        if shard is not None:  # each does its own part of a batch
            devices //= hosts
        for values in (self.values, *(of_unit for _, of_unit in self.units)):
            mesh = values.get("mesh")
            size = math.prod(parse_mesh(mesh).values()) if mesh else devices
            if size != devices:
                of = "a host" if shard is not None else "the accelerator"
                raise ValueError(f"--mesh={mesh}: {size} devices; {of} has {devices}.")
        if hosts == 1 or shard is not None:
            return self
        for name in (self.module, *(f"experiments.{unit}" for unit, _ in self.units)):
            if name.rpartition(".")[2] in processes.known_alone():
                raise ValueError(f"{name} runs in one process; give an accelerator with one host.")
        if self.values.get("distributed"):
            return self
        return dataclasses.replace(self, arguments=(*self.arguments, "--distributed"))

    def words(self) -> list[str]:
        """Gives what comes after `python -m`."""
        return [self.module, *self.arguments]

    def local_files(self) -> dict[str, bytes]:
        """Finds the files of this machine that the flags name: path below this folder -> content.

        Raises:
          ValueError: a folder; a file outside this folder, or too large to send along; results that would stay on the
            workers.
        """
        if self.results.partition("://")[0] not in storage.SCHEMES:
            raise ValueError(
                f"results in {self.results!r} would be lost with the workers; give --workdir=gs://BUCKET/FOLDER."
            )
        found: dict[str, bytes] = {}
        for name, path in self._paths_here():
            if path.is_dir():
                raise ValueError(
                    f"--{name}={path} is a folder of this machine, which the workers do not have; copy it to an "
                    "object store (checkpoints.convert --out=gs://… for a model)."
                )
            if not _is_below(path):
                raise ValueError(f"--{name}={path}: a file that goes along must be below the current folder.")
            if path.stat().st_size + sum(map(len, found.values())) > _LARGEST:
                raise ValueError(f"--{name}={path} is too large to go along; copy it to an object store.")
            found[path.as_posix()] = path.read_bytes()
        return found

    def check_below(self) -> None:
        """Checks that the command reads and writes below the current folder, or in a store; ValueError otherwise."""
        results = [("results in ", pathlib.Path(self.results))] if "://" not in self.results else []
        for name, path in (*results, *((f"--{name}=", path) for name, path in self._paths_here())):
            if not _is_below(path):
                raise ValueError(f"{name}{path}: the container has the current folder only; give a path below it.")

    def _paths_here(self) -> Iterator[tuple[str, pathlib.Path]]:
        """What the flags name that is on this machine: flag, path."""
        for values in (self.values, *(of_unit for _, of_unit in self.units)):
            for name in sorted((values.keys() & paths.NAMES) - {"workdir", "out", "save", "page"}):  # what is read
                value = values[name]
                for text in [value] if isinstance(value, str) else value or ():
                    # One may be NAME:PATH.
                    for part in (text, text.partition(":")[2]):
                        if part and "://" not in part and os.path.exists(os.path.expanduser(part)):
                            yield name, pathlib.Path(part)

    def schemes(self) -> set[str]:
        """Finds the kinds of object stores that the command names: "gs", "s3"."""
        return {scheme for scheme in storage.SCHEMES if any(f"{scheme}://" in word for word in self.arguments)}

    def mark(self, *more: object) -> str:
        """Gives eight letters that say whether a job that is there is this one."""
        return hashlib.sha256(repr((self.module, self.arguments, more)).encode()).hexdigest()[:8]


def _module(name: str) -> str:
    programs = {*(f"experiments.{each}" for each in apart.names()), "checkpoints.convert"}
    for candidate in (name, f"experiments.{name}", f"checkpoints.{name}"):
        if candidate in programs:
            return candidate
    short = ", ".join(sorted(program.rpartition(".")[2] for program in programs))
    raise ValueError(f"there is no experiment {name!r}; there are {short}.")


def _units(values: Mapping[str, Any]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The units of a batch whose file is here: experiment and flags of each."""
    file = values.get("file")
    if not file:
        raise ValueError("batch: --file is missing; give a YAML file with the units.")
    if "://" in file:
        return ()
    units = read_units(existing_file(file, "--file"))
    for experiment in {unit.experiment for unit in units}:
        importlib.import_module(f"experiments.{experiment}")
    words = [[unit.experiment, *unit.arguments()] for unit in units]
    return tuple(zip([unit.experiment for unit in units], _parsed(words), strict=True))


def _without_flag_files(words: Sequence[str]) -> list[str]:
    """The words with those of each --flagfile, which is on this machine, in its place."""
    try:
        return list(flags.FLAGS.read_flags_from_files(list(words), force_gnu=False))
    except (flags.Error, OSError, ValueError) as error:
        raise ValueError(f"{words[0]}: {one_line(error)}") from None


def _is_below(path: pathlib.Path) -> bool:
    return not path.is_absolute() and ".." not in path.parts and not str(path).startswith("~")


def _parsed(commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What the flags of each command become, in a copy: this process runs no experiment."""
    values = copy.deepcopy(flags.FLAGS)
    found = []
    for words in commands:
        for name in values:
            values[name].unparse()
        values.unparse_flags()
        try:
            with paths.of_another_machine():
                rest = values(list(words))
        except (flags.Error, ValueError) as error:
            raise ValueError(f"{words[0]}: {one_line(error)}.") from None
        if len(rest) > 1:
            raise ValueError(f"{words[0]}: unexpected arguments {' '.join(rest[1:])!r}; flags look like --name=value.")
        found.append({name: values[name].value for name in values if values[name].present or name == "workdir"})
    return found
