"""Options that are one of a few words: which, their annotation says."""

from __future__ import annotations

import typing
from collections.abc import Iterator


def unknown_words(config: object) -> Iterator[str]:
    """Yields a line for every field of a dataclass that is annotated as a `Literal` and has another value."""
    for name, hint in typing.get_type_hints(type(config)).items():
        known, value = typing.get_args(hint), getattr(config, name)
        if typing.get_origin(hint) is typing.Literal and value not in known:
            yield f"{name} {value!r} is not one of {', '.join(map(str, known))}"
