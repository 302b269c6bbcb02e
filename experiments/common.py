"""What every experiment does: start, load the model, show progress, print a table, fail in one line."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import app, flags

import massive_jax as mj
from experiments.flags import model as model_flags
from massive_jax.report import label
from massive_jax.weights.wheel import cache_dir

_TRACEBACK = flags.DEFINE_bool("traceback", False, "On an error, shows where in the code it was raised.")


def run_experiment(main: Callable[[], Any]) -> None:
    """Parses flags and runs `main`. Bad input ends in one clear line on stderr and exit status 1."""

    def guarded(argv: Sequence[str]) -> None:
        # Programs compiled before are read back: the second run of an experiment starts in seconds.
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        logging.getLogger("jax").setLevel(logging.WARNING)  # which accelerators are absent is no news
        try:
            if len(argv) > 1:
                raise ValueError(f"unexpected arguments {' '.join(argv[1:])!r}; flags look like --name=value.")
            main()
        except (ValueError, OSError) as error:
            if _TRACEBACK.value:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded)


def load_model() -> mj.Model:
    """The model that the flags ask for."""
    return mj.load(model_flags.MODEL.value, dtype=model_flags.DTYPE.value, revision=model_flags.REVISION.value)


def workdir() -> pathlib.Path:
    """The directory for results, made if need be; ValueError where it cannot be."""
    path = pathlib.Path(model_flags.WORKDIR.value).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--workdir={path}: cannot make this directory: {error.strerror}.") from None
    return path


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], Any]]:
    """A progress bar over `total` tokens that shows itself when the work takes more than two seconds."""
    with tqdm.tqdm(total=total, desc=what, unit="tok", unit_scale=True, delay=2.0, disable=None) as bar:
        yield bar.update


def header(model: mj.Model, tokens: np.ndarray, context: int | None = None) -> dict[str, Any]:
    """The fields every result starts with: what was run, on what. `tokens` int [W, T]; texts are the first row's."""
    return {
        "model": model.name,
        "dtype": model.config.dtype,
        "bos": model_flags.BOS.value,
        "tokens": model.token_texts(tokens[0]),
        "windows": len(tokens),
        "context": tokens.shape[1] if context is None else context,
    }


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under aligned columns; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    for row in [list(columns), *cells]:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        print("  ".join(parts).rstrip())


def place(found: dict[str, Any]) -> str:
    """A found activation's place in words: (position "token", dim)."""
    return f"({found['position']} {label(found['token'])}, {found['dim']})"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "–" if value is None else str(value)
