"""Standard output and standard error, whatever a shell or a service manager has done to them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class _Forgiving(io.FileIO):
    """A file descriptor to print to; once nobody can read what is printed, it takes everything and gives it to none."""

    failed: OSError | None = None  # what went wrong, where it was not a reader that has gone

    def write(self, data: Any) -> int:
        """Writes what it can; never raises, so that the work that was asked for goes on."""
        try:
            return super().write(data)
        except OSError as error:
            self.failed = None if isinstance(error, BrokenPipeError) else error
            _to_nowhere(self.fileno())
            return len(memoryview(data).cast("B"))


def secure() -> None:
    """Makes both streams such that printing to them never ends the work: closed, piped to a reader that goes, full.

    A closed descriptor would be given to the next file that is opened, and what is printed would end up in that.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            _to_nowhere(fd)
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def flush() -> None:
    """Writes out what was printed.

    Raises:
      OSError: it could not be written, though somebody reads: a full disk, say. The second call no longer raises.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Forgiving) and raw.failed is not None:
        error, raw.failed = raw.failed, None
        raise OSError(error.errno, error.strerror, "standard output")


def _to_nowhere(fd: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != fd:
        os.dup2(opened, fd)
        os.close(opened)


def _stream(fd: int, stream: TextIO | None) -> TextIO:
    """The stream to use in place of `stream`: the same where it is not that of the descriptor."""
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != fd:
            return stream
    # A token that the terminal cannot show is no error.
    return io.TextIOWrapper(
        io.BufferedWriter(_Forgiving(fd, "w", closefd=False)),
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace",
        line_buffering=fd == 2 or os.isatty(fd),
    )
