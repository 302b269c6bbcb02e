"""Keeps what the storage library says of a failure off the terminal: the failure itself is raised, with its path.

Each of Orbax's threads logs the failure that it passes on, with a traceback of its own, and callbacks of tensorstore
come to event loops that are closed by then.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any


@contextlib.contextmanager
def quiet_storage() -> Iterator[None]:
    """Drops such lines while the block runs, and afterwards too where it fails: some come late."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(_is_news)
    shown = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> Any:
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            shown(kind, error, traceback)

    sys.excepthook = show
    try:
        yield
    except Exception:
        raise
    else:
        for logger in loggers:
            logger.removeFilter(_is_news)
        if sys.excepthook is show:
            sys.excepthook = shown


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log line is not the storage library's."""
    if re.search(r"[/\\]orbax[/\\]", record.pathname):
        return False
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return not (record.name == "asyncio" and re.search(r"OCDBT|tensorstore", str(error)))
