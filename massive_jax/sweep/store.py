"""What a sweep has measured so far, in a file that it goes on from."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from massive_jax.arguments import shown
from massive_jax.files import Path, one_line, user_path, write_arrays
from massive_jax.parallel import bytes_from_first, is_first

_SECONDS = 2.0  # between two writings


@dataclasses.dataclass
class Store:
    """Holds the values of units, and writes them now and then.

    Attributes:
      path: of the file; None for none.
      marks: what makes this sweep another: name -> checksum.
      values: [units, …], NaN where not measured.
      done: bool [units].
    """

    path: Path | None
    marks: Mapping[str, str]
    values: np.ndarray
    done: np.ndarray
    _written: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: Any, marks: Mapping[str, str], shape: tuple[int, ...], dtype: Any) -> Store:
        """Opens a file, which need not be there.

        Raises:
          ValueError: it is damaged, or of another sweep; the message says in what.
        """
        where = None if path is None else user_path(path)
        empty = cls(where, marks, np.full(shape, np.nan, dtype), np.zeros(shape[0], bool))
        if where is None:
            return empty
        content = bytes_from_first(where.read_bytes() if is_first() and where.exists() else None)
        if content is None:
            return empty
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                found = dict(zip(file["marks"].tolist(), file["checksums"].tolist(), strict=True))
                values, done = file["values"], file["done"]
        except Exception as error:  # a zip file can be damaged in many ways
            raise ValueError(
                f"path {str(where)!r} is damaged, or no sweep's: {one_line(error)}. Give another, or remove it."
            ) from None
        if other := [name for name in marks if found.get(name) != marks[name]]:
            raise ValueError(
                f"path {str(where)!r} is of another sweep: of other {' and '.join(other)}. Give another, or remove it."
            )
        if values.shape != shape or values.dtype != dtype or done.shape != shape[:1] or done.dtype != bool:
            raise ValueError(
                f"path {str(where)!r} is damaged: its arrays have other shapes. Give another, or remove it."
            )
        return cls(where, marks, values, done)

    def put(self, units: Iterable[int], values: np.ndarray) -> None:
        """Keeps values of some units, and writes the file when the last time is a while ago."""
        numbers = list(units)
        self.values[numbers], self.done[numbers] = values, True
        if time.monotonic() - self._written > _SECONDS:
            self.write()

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        if self.path is not None:
            names = {"marks": np.array(list(self.marks)), "checksums": np.array(list(self.marks.values()))}
            write_arrays(self.path, values=self.values, done=self.done, **names)
        self._written = time.monotonic()


def checked_path(path: Any) -> None:
    """ValueError where `path` is no path, or of no .npz file."""
    if path is None:
        return
    if not isinstance(path, str | pathlib.PurePath) or not str(path).endswith(".npz") or "\0" in str(path):
        raise ValueError(f"path is {shown(path)}; give the name of a file that ends in .npz.")
    if user_path(path).is_dir():
        raise ValueError(f"path {str(path)!r} is a directory; give the name of a file that ends in .npz.")
