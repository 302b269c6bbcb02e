"""Named arrays from an .npz file, without pickles."""

from __future__ import annotations

import os
import zipfile

import numpy as np

from massive_jax.files import existing_file


def read_arrays(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """Reads the arrays in an .npz file, by name; ValueError, with `what` it should be, unless it is one of numbers."""
    file = existing_file(path, what)
    try:
        stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("it holds one array without a name")
        with stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{what} {str(file)!r} is no .npz file of arrays: {error}.") from None
