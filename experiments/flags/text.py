"""A longer text, and how it is cut into windows. All None where not given, so that a prompt can be the default."""

from __future__ import annotations

from absl import flags

from experiments.flags import paths
from massive_jax.data import BUILT_IN

_CONTEXT, _WINDOWS = 512, 4

TEXT = paths.define(
    "text",
    None,
    "A UTF-8 file; 'python' (the default: paragraphs of the reference that CPython ships, no download); 'backcopy' "
    "or 'multicopy' (made-up languages); or a dataset: wikitext2, c4, pg19 from the hub, or NAME:DIRECTORY for a local "
    "copy in the hub's layout.",
)
CONTEXT = flags.DEFINE_integer(
    "context", None, f"Tokens of text in a window (default {_CONTEXT}, or what the model takes).", lower_bound=1
)
WINDOWS = flags.DEFINE_integer(
    "windows", None, f"How many windows of the text, from its start (default {_WINDOWS}).", lower_bound=1
)


def given() -> bool:
    """Whether any of these flags is: then a text is meant, not the prompt."""
    return any(flag.value is not None for flag in (TEXT, CONTEXT, WINDOWS))


def name() -> str:
    """The text asked for."""
    return BUILT_IN if TEXT.value is None else TEXT.value


def context(most: int) -> int:
    """Tokens of text in a window, of which the model takes `most`."""
    return CONTEXT.value or min(_CONTEXT, most)


def windows() -> int:
    """Number of windows."""
    return WINDOWS.value or _WINDOWS
