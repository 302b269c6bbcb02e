"""What the workers run: an experiment and its flags, checked here as far as that goes without a model."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import apart
from experiments.flags import paths, processes
from massive_jax import storage
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
    """

    module: str
    arguments: tuple[str, ...]
    values: dict[str, Any]

    @classmethod
    def read(cls, words: Sequence[str]) -> Command:
        """Reads "layerwise --model=…", word by word.

        Raises:
          ValueError: no experiment, one that there is not, or flags that it does not take; a control character.
        """
        for word in words:
            if not word.isprintable():
                raise ValueError(f"{word!r}: a command for other machines has printable characters only.")
        if not words:
            raise ValueError("give what to run after --, such as: -- layerwise --model=llama2_7b --workdir=gs://…")
        module = _module(words[0])
        importlib.import_module(module)  # defines its flags
        return cls(module, tuple(words[1:]), _parsed(words))

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
        mesh = self.values.get("mesh")
        mesh = mesh if isinstance(mesh, str) else ",".join(mesh or ())
        size = math.prod(parse_mesh(mesh).values()) if mesh else devices
        if size != devices:
            raise ValueError(f"--mesh={mesh}: {size} devices; the accelerator has {devices}.")
        if hosts == 1 or any(self.values.get(name) for name in ("distributed", "shard")):
            return self  # --shard has each do its own part of a batch
        if self.module.rpartition(".")[2] in processes.known_alone():
            raise ValueError(f"{self.module} runs in one process; give an accelerator with one host.")
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
        for name, value in self.values.items():
            for part in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(part, str) or "://" in part or not os.path.exists(part):
                    continue
                path = pathlib.Path(part)
                if path.is_dir():
                    raise ValueError(
                        f"--{name}={part} is a folder of this machine, which the workers do not have; copy it to an "
                        "object store (checkpoints.convert --out=gs://… for a model)."
                    )
                if path.is_absolute() or ".." in path.parts:
                    raise ValueError(f"--{name}={part}: a file that goes along must be below the current folder.")
                if path.stat().st_size + sum(map(len, found.values())) > _LARGEST:
                    raise ValueError(f"--{name}={part} is too large to go along; copy it to an object store.")
                found[path.as_posix()] = path.read_bytes()
        return found

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


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    """What the experiment's flags become, in a copy: this process runs no experiment."""
    values = copy.deepcopy(flags.FLAGS)
    values.unparse_flags()
    try:
        with paths.of_another_machine():
            rest = values(list(words))
    except flags.Error as error:
        raise ValueError(f"{words[0]}: {error}") from None
    if len(rest) > 1:
        raise ValueError(f"{words[0]}: unexpected arguments {' '.join(rest[1:])!r}; flags look like --name=value.")
    return {name: values[name].value for name in values if values[name].present or name == "workdir"}
