"""Keeps what the storage library says of a failure off the terminal: the failure itself is raised, with its path.

Each of Orbax's threads logs the failure that it passes on, with a traceback of its own; and what tensorstore finishes
later is reported to event loops that are closed by then, whose complaints it prints.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_storage() -> Iterator[None]:
    """Drops such lines while the block runs; log lines afterwards too where it fails, as some come late."""
    import asyncio

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(_is_news)
    made = asyncio.new_event_loop
    asyncio.new_event_loop = _tolerant(made)
    try:
        yield
    finally:
        asyncio.new_event_loop = made
    for logger in loggers:
        logger.removeFilter(_is_news)


def _tolerant(new_event_loop: Any) -> Any:
    """Makes event loops that take no notice of what is handed to them once they are closed."""

    def make() -> Any:
        loop = new_event_loop()
        call = loop.call_soon_threadsafe
        with contextlib.suppress(AttributeError):  # of a loop that is not Python's own
            loop.call_soon_threadsafe = lambda *args, **more: None if loop.is_closed() else call(*args, **more)
        return loop

    return make


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log line is not the storage library's."""
    if re.search(r"[/\\]orbax[/\\]", record.pathname):
        return False
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return not (record.name == "asyncio" and re.search(r"OCDBT|tensorstore", str(error)))
