"""What every experiment does: start, hold its directory, fail in one line. What else they share is named here too."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging

import massive_jax as mj
from experiments import streams
from experiments.flags import mesh as mesh_flags
from experiments.flags import model as model_flags
from experiments.flags import processes
from experiments.inputs import (
    check_device,
    check_inputs,
    header,
    image_files,
    image_header,
    image_source,
    images,
    load_model,
    prompt_or_image,
    prompt_tokens,
    prompts,
    shared_token,
    stored_as,
    takes_images,
    token_texts,
    windows,
    without_effect,
)
from experiments.tables import fitted, place, print_table, profile_curves, profile_layers, progress
from massive_jax import storage
from massive_jax.files import Path, is_remote, locked, printable, user_path
from massive_jax.parallel import check_shared, everywhere, is_leaving, leave, once, watch

__all__ = [
    "check_device",
    "check_inputs",
    "fitted",
    "guarded",
    "header",
    "image_files",
    "image_header",
    "image_source",
    "images",
    "load_model",
    "parse_flags",
    "place",
    "print_table",
    "profile_curves",
    "profile_layers",
    "progress",
    "prompt_or_image",
    "prompt_tokens",
    "prompts",
    "run_experiment",
    "shared_token",
    "stored_as",
    "takes_images",
    "token_texts",
    "windows",
    "without_effect",
    "workdir",
]

_held: contextlib.ExitStack | None = None  # what a run of `guarded` holds until it ends

_TRACEBACK = flags.DEFINE_bool("traceback", False, "On an error, shows where in the code it was raised.")
for _module in (mesh_flags, processes):  # whoever adopts the flags of this module has those, too
    flags.adopt_module_key_flags(_module)


def run_experiment(main: Callable[[], Any]) -> None:
    """Parses flags and runs `main`. Bad input ends in one clear line on stderr and exit status 1."""
    streams.secure()
    mj.keep_compiled()  # the second run of an experiment starts in seconds
    signal.signal(signal.SIGTERM, terminate)  # so that temporary files are removed
    app.run(lambda argv: guarded(main, argv), flags_parser=parse_flags)


class _Terminated(SystemExit):
    """SIGTERM has come."""


def terminate(*_: Any) -> None:
    """What SIGTERM does in an experiment: everything is closed, and it ends with status 143."""
    raise _Terminated(143)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; gives what is no flag."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError, ValueError) as error:  # a --flagfile that is not there, or no text; --nobos=true
        _fail(_in_words(error))
    except SystemExit:  # after --help; absl's status is 1
        sys.exit(0)
    return []


def _check_flags_have_effect() -> None:
    """Modules share their flags, so absl takes some that this binary does not look at: an error, not silence."""
    taken = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    if processes.program() in mesh_flags.WITHOUT:
        taken -= {"mesh"}
    for name in flags.FLAGS if taken else ():  # none where a script of the user's own runs an experiment
        ours = str(flags.FLAGS.find_module_defining_flag(name)).startswith("experiments.")
        if ours and flags.FLAGS[name].present and name not in taken:
            raise ValueError(f"--{name} has no effect here; leave it out. --help lists the flags that have.")


def guarded(main: Callable[[], Any], argv: Sequence[str]) -> None:
    """Runs `main` with what `parse_flags` gave; an error becomes a line and an exit status."""
    global _held
    absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch is no news either
    logging.getLogger("jax").setLevel(logging.WARNING)  # which accelerators are absent is no news
    for chatty in ("datasets", "huggingface_hub"):  # what goes wrong there ends in one line of ours
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments {' '.join(argv[1:])!r}; flags look like --name=value.")
        _check_flags_have_effect()
        if model_flags.DTYPE.value == "float64":
            jax.config.update("jax_enable_x64", True)
        processes.start(processes.program())
        if jax.distributed.is_initialized():
            watch(_say_error)
            check_device()
        with contextlib.ExitStack() as _held:
            _held.enter_context(processes.silent_but_first())
            main()
            everywhere(lambda: None)  # nobody ends before process 0 has written everything
        streams.flush()  # here, where it can still be told, and not at the interpreter's end
    except BrokenPipeError:  # whoever read our output has seen enough; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        _fail("interrupted.", 130)
    except (ValueError, OSError, MemoryError, FloatingPointError, jax.errors.JaxRuntimeError) as error:
        if _TRACEBACK.value:
            raise
        _fail(_in_words(error))
    except _Terminated:
        leave("stopped by SIGTERM; start all processes again to go on.", 143)  # the others would wait
        raise
    except Exception as error:
        if (answer := storage.in_words(error)) is None or _TRACEBACK.value:
            raise
        _fail(answer)
    finally:
        _held = None


def _fail(message: str, status: int = 1) -> None:
    if not is_leaving():
        _say_error(message)
    leave(message, status)
    sys.exit(status)


def _say_error(message: str) -> None:
    print(f"error: {printable(message, keep=chr(10))}", file=sys.stderr, flush=True)


_STATUS = re.compile(r"(UNKNOWN|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|FAILED_PRECONDITION): ")


def _in_words(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    # What a device could not do comes as a ValueError where numpy asks for its array.
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError) or _STATUS.match(first):
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in first:
            return (
                f"out of memory; try a smaller --batch, a shorter --context or --prompt, or --dtype=bfloat16. ({first})"
            )
        if jax.distributed.is_initialized():
            return (
                f"process {jax.process_index()} of {jax.process_count()} cannot go on: another has ended, or no longer "
                f"answers; its own output may say why. Start all again, to go on where this can. ({first})"
            )
        return first
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def workdir(*, reserve: bool = True, shared: bool = False) -> Path:
    """The directory for results, this process's alone until `guarded` ends; it is made with its first file.

    Of several processes that do one thing together process 0 holds it, and writes.

    Args:
      reserve: False in processes that share it with the one that holds it.
      shared: whether all of several processes have to see it.

    Raises:
      ValueError: files cannot be made in it, no store is there; another process is writing there; not all see it.
    """
    if not jax.distributed.is_initialized():
        return _workdir(reserve)
    once(lambda: _workdir(reserve), "write to --workdir")
    path = user_path(model_flags.WORKDIR.value)
    if shared:
        everywhere(lambda: _workdir(reserve=False))
        check_shared(path)
    return path


def _workdir(reserve: bool) -> Path:
    if not model_flags.WORKDIR.value:
        raise ValueError("--workdir is empty; give a directory, or . for this one.")
    path = user_path(model_flags.WORKDIR.value)
    if is_remote(path):
        if reserve:
            _hold(path, path)  # which shows that it can be written to
        return path
    try:
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        with tempfile.TemporaryDirectory(prefix=".", dir=there):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--workdir={path}: cannot write there: {reason}.") from None
    if reserve and _held is not None:
        # Where nothing can be made beside it, as at a mount point, the directory is there to keep the lock in.
        inside = path.is_dir() and not os.access(path.absolute().parent, os.W_OK)
        made = [parent for parent in path.absolute().parents if not parent.exists()]
        _held.callback(_remove_empty, made)
        _hold(path, path / "workdir" if inside else path)
    return path


def _hold(path: Path, what: Path) -> None:
    """Locks `what` until `guarded` ends, for --workdir at `path`."""
    try:
        if _held is not None:
            _held.enter_context(locked(what))
    except ValueError as error:
        raise ValueError(f"--workdir={path}: {error}") from None


def _remove_empty(directories: Sequence[Path]) -> None:
    """Removes those that are empty, from the innermost: they were made for a lock, and no result came."""
    with contextlib.suppress(OSError):
        for directory in directories:
            directory.rmdir()
