"""What a batch is made of: units, each an experiment and its flags, read from a file and looked at by experiments."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import yaml

from experiments import apart
from experiments.flags import processes
from massive_jax.files import Path, listed, one_line, short_name, shown

MOST = 10_000  # units of a batch
_NAME = 80  # letters of a directory's name, before the id
_LONGEST = 100_000  # bytes of a text; Linux takes an argument of 128 KiB
_OURS = {
    "workdir": "the batch gives each unit its own",
    "traceback": "it is for people at a terminal",
    "flagfile": "write its flags here",
    "undefok": "a flag that an experiment has not is an error",
    **dict.fromkeys(processes.NAMES, "give it to the batch, which passes it on"),
}

Flags = Mapping[str, str | tuple[str, ...]]
"""Flags by name: their text, or several where a flag is given several times."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """An experiment and its flags.

    Attributes:
      experiment: its name.
      flags: as they were written, without --workdir.
      line: of the file, from 1, where its group begins.
    """

    experiment: str
    flags: Flags
    line: int = 0

    @property
    def id(self) -> str:
        """Gives ten hexadecimal digits of the experiment and its flags, in whatever order and place they stand."""
        said = json.dumps([self.experiment, self.flags], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:10]

    @property
    def title(self) -> str:
        """Says in words what it is: the experiment, the model, the other flags."""
        models = [short_name(name) for key in ("model", "models") for name in self._texts(key)]
        others = [f"{key}={','.join(self._texts(key))}" for key in sorted(self.flags) if key not in ("model", "models")]
        return " ".join([self.experiment, *models, *others])

    @property
    def name(self) -> str:
        """Gives the name of its directory: the title, as far as there is room, and the id."""
        return re.sub(r"[^A-Za-z0-9._=+,]+", "-", self.title)[:_NAME].strip("-.") + f"-{self.id}"

    def arguments(self, workdir: str | os.PathLike[str] | None = None) -> list[str]:
        """Gives its flags as they stand in a command, with --workdir where one is given."""
        given = [f"--{key}={text}" for key in self.flags for text in self._texts(key)]
        return given + ([] if workdir is None else [f"--workdir={os.fspath(workdir)}"])

    def _texts(self, key: str) -> tuple[str, ...]:
        value = self.flags.get(key, ())
        return (value,) if isinstance(value, str) else value


def read_units(path: Path) -> list[Unit]:
    """Reads the units of a file, in its order; the last key of a group changes first.

    Raises:
      ValueError: it is no list of groups, or names no experiment, or one that there is not; a unit twice; the message
        says where.
    """
    units: dict[str, Unit] = {}
    known = apart.names()
    for group in _groups(path):
        where = f"--file={path}: line {group.start_mark.line + 1}"
        axes = _axes(group, where)
        count = math.prod(map(len, axes.values()))
        if len(units) + count > MOST:
            raise ValueError(f"{where}: {len(units) + count:,} units or more; a batch has at most {MOST:,}. Split it.")
        for experiment in axes["experiment"]:
            if experiment not in known or experiment == "batch":
                close = get_close_matches(str(experiment), known, 1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
                raise ValueError(f"{where}: no experiment {shown(experiment)}; {hint}")
        for values in itertools.product(*axes.values()):
            given = dict(zip(axes, values, strict=True))
            experiment = given.pop("experiment")
            flags = {key: value for key, value in given.items() if value is not None}
            unit = Unit(experiment, flags, group.start_mark.line + 1)
            if (other := units.setdefault(unit.id, unit)) is not unit:
                raise ValueError(f"{where}: {unit.title} is asked for twice, also in the group of line {other.line}.")
    return list(units.values())


def check_units(units: Sequence[Unit], passed: Sequence[str], where: str) -> None:
    """Has every experiment look at the flags of its units, before the first runs.

    Args:
      units: of a file.
      passed: arguments that every unit gets besides.
      where: how messages begin.

    Raises:
      ValueError: what an experiment refuses; two units whose flags come to the same.
    """
    problems: list[str] = []
    for experiment in dict.fromkeys(unit.experiment for unit in units):
        of = [unit for unit in units if unit.experiment == experiment]
        meanings: dict[str, Unit] = {}
        for unit, said in zip(of, apart.rehearse(experiment, [[*u.arguments(), *passed] for u in of]), strict=True):
            if said.problem is not None:
                problems.append(f"line {unit.line}: {unit.title}: {said.problem}")
            elif (other := meanings.setdefault(said.meaning, unit)) is not unit:
                problems.append(f"line {unit.line}: {unit.title} is the same as {other.title} of line {other.line}.")
    if problems:
        more = f" ({len(problems) - 1} more units are refused.)" if len(problems) > 1 else ""
        raise ValueError(f"{where}: {problems[0]}{more}")


def _groups(path: Path) -> Iterator[yaml.MappingNode]:
    """The groups of a file. Its nodes, not its values: those are texts as they stand there, 4:12 is no number."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise ValueError(f"--file={path} is not UTF-8 text; expected YAML, a list of groups.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"--file={path} is no YAML: {one_line(error)}.") from None
    if not isinstance(root, yaml.SequenceNode) or not root.value:
        raise ValueError(f"--file={path}: expected a list of groups, “- experiment: census” and flags under it.")
    for node in root.value:
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(
                f"--file={path}: line {node.start_mark.line + 1}: expected a group, experiment: and flags under it."
            )
        yield node


def _axes(group: yaml.MappingNode, where: str) -> dict[str, list[Any]]:
    """What each key of a group can be."""
    axes: dict[str, list[Any]] = {}
    for key, value in group.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{where}: {shown(name)} is no name of a flag.")
        if name in axes:
            raise ValueError(f"{where}: two of {name!r} in one group.")
        if name in _OURS:
            raise ValueError(f"{where}: leave out {name!r}; {_OURS[name]}.")
        axes[name] = [_value(node, name, where) for node in _list(value)]
        if not axes[name]:
            raise ValueError(f"{where}: {name!r} is an empty list; give a value, or leave it out.")
        twice = [one for i, one in enumerate(axes[name]) if one in axes[name][:i]]
        if twice:
            raise ValueError(f"{where}: {name!r} lists {listed(dict.fromkeys(map(str, twice)))} twice.")
    if "experiment" not in axes or not all(isinstance(name, str) for name in axes["experiment"]):
        raise ValueError(f"{where}: the group has no experiment; give experiment: census, say.")
    return axes


def _list(node: yaml.Node) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else [node]


def _value(node: yaml.Node, name: str, where: str) -> str | tuple[str, ...] | None:
    """A flag's text; several where it is given several times; None where it is left out."""
    parts = _list(node)
    if not parts or not all(isinstance(part, yaml.ScalarNode) for part in parts):
        raise ValueError(f"{where}: a value of {name!r} is no text, number or list of these.")
    if not _fits_in_a_command("".join(part.value for part in parts)):
        raise ValueError(
            f"{where}: {name} {shown(parts[0].value)} cannot stand in a command: it has a null byte, half of a "
            f"surrogate pair, or more than {_LONGEST:,} bytes."
        )
    if isinstance(node, yaml.SequenceNode):
        return tuple(part.value for part in parts)
    return None if node.tag == "tag:yaml.org,2002:null" else node.value


def _fits_in_a_command(text: str) -> bool:
    try:
        return "\0" not in text and len(text.encode("utf-8")) <= _LONGEST
    except UnicodeEncodeError:
        return False
