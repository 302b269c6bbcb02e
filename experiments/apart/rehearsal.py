"""An experiment's own look at its flags, without a run of it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments import common
from experiments.apart import Rehearsed
from experiments.flags import models, processes


class _Ready(BaseException):
    """Ends a rehearsal where an experiment asks for its directory: it has looked at its flags."""


def _taken() -> set[str]:
    """The flags of the experiment, which common's are among."""
    return {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}


def _try(main: Callable[[], Any]) -> None:
    """Does what the experiment does before it takes its directory, and looks at the models that it names."""
    taken = _taken()
    if "workdir" not in taken:
        raise ValueError("it has no --workdir, and so no place in a batch.")
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present and name not in taken:  # one of absl's own; `guarded` has looked at ours
            raise ValueError(f"it has no flag --{name}; --help lists those that it has.")
        if flag.present > 1 and not isinstance(flag, flags.MultiFlag):
            raise ValueError(f"--{name} is given {flag.present} times; it takes one value.")
    if processes.several():  # whose devices are not here to look at
        if (program := processes.program()) in processes.known_alone():
            raise ValueError(f"{program} runs in one process, and not on several hosts together.")
        return
    with contextlib.suppress(_Ready):
        main()
    named = flags.FLAGS["models"].value if "models" in taken else []
    models.check_all(named or ([flags.FLAGS["model"].value] if "model" in taken else []))


def _rehearsed(main: Callable[[], Any], arguments: Sequence[str]) -> Rehearsed:
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            common.guarded(lambda: _try(main), common.parse_flags([sys.argv[0], *arguments]))
    except SystemExit:
        errors = said.getvalue().partition("error: ")[2]
        return Rehearsed("; ".join(errors.splitlines()) or "--help has no place in a batch.", "")
    given = [flags.FLAGS[name] for name in sorted(_taken()) if flags.FLAGS[name].present]
    return Rehearsed(None, json.dumps({f.name: f.serialize() for f in given if f.value != f.default}))


def prepare() -> None:
    """Has the experiment that starts next in this process look at flags in place of running.

    Lists of them come on standard input; a list of what it says of each goes to standard output.
    """
    runs, out = json.load(sys.stdin), sys.stdout

    def look(main: Callable[[], Any]) -> None:
        json.dump([_rehearsed(main, arguments) for arguments in runs], out)

    def ready(**_: Any) -> None:
        raise _Ready

    vars(common).update(run_experiment=look, workdir=ready)  # this process does nothing else
    vars(processes).update(start=lambda program="": None)
