"""Flags that are paths: of this machine, or of an object store (gs://…), which is looked at before anything runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from massive_jax.storage import check_reachable

_HUB = re.compile(r"hf://|https://huggingface\.co/")  # of which loading says how to name a model

NAMES: set[str] = set()  # of the flags that are defined so far
_here = True  # whether paths are for this machine

flags.disclaim_key_flags()  # a flag is that of the module which asks for it


def define(name: str, default: str | None, meaning: str, **options: Any) -> flags.FlagHolder[Any]:
    """Defines a flag that is a path; one of a store that nothing here reaches is an error before anything runs."""
    holder = flags.DEFINE_string(name, default, meaning, **options)
    look_at(holder)
    return holder


def look_at(holder: flags.FlagHolder[Any]) -> None:
    """Does the same for a flag, or a list, whose values are paths, or NAME:PATH, or names."""
    NAMES.add(holder.name)
    flags.register_validator(holder, _check)


@contextlib.contextmanager
def of_another_machine() -> Iterator[None]:
    """Flags that are read in the block are for another machine: this one need not have what reaches their stores."""
    global _here
    _here = False
    try:
        yield
    finally:
        _here = True


def _check(value: str | Sequence[str] | None) -> bool:
    for text in [value] if isinstance(value, str) else value or ():
        try:
            for path in (text, text.partition(":")[2]):
                if not _HUB.match(path):
                    check_reachable(path, here=_here)
        except ValueError as error:
            raise flags.ValidationError(str(error)) from None
    return True
