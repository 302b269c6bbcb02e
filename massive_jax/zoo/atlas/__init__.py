"""What is known about the massive activations of each model: data with sources (`atlas.json`), and reading it."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from massive_jax import zoo

_FILE = pathlib.Path(__file__).with_name("atlas.json")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Holds one model's massive activations, as somebody reported them.

    Attributes:
      name: zoo name, or a short one where the zoo has no preset.
      hub_id: on the hub; None where it comes from elsewhere.
      dims: where they sit; empty where none are massive.
      positions: on which tokens, in words; None where it is not reported.
      layers: first and last layer (1-based) whose output has them; None where it is not reported.
      largest: the largest magnitude reported.
      median: of the same hidden state; None where it is not reported.
      bos: whether a BOS token was in front; None where it is not reported.
      exact: whether `largest` was measured on this project's default prompt, so that a rerun must give it again.
      sources: paper, released code, replication, …, spelled out in `SOURCES`.
      note: anything else.
    """

    name: str
    hub_id: str | None
    dims: tuple[int, ...]
    positions: str | None
    layers: tuple[int, int] | None
    largest: float | None
    median: float | None
    bos: bool | None
    exact: bool
    sources: tuple[str, ...]
    note: str = ""


@functools.cache
def _read() -> dict[str, Any]:
    return json.loads(_FILE.read_text(encoding="utf-8"))


def sources() -> Mapping[str, str]:
    """Says what the sources of entries are."""
    return _read()["sources"]


def entries() -> Mapping[str, Entry]:
    """Gives every entry by its name."""

    def entry(fields: Mapping[str, Any]) -> Entry:
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return Entry(**values)

    return {fields["name"]: entry(fields) for fields in _read()["models"]}


def find(name: str) -> Entry:
    """Finds the entry of a zoo name or hub id; ValueError, with those there are, where there is none.

    Examples:
      >>> from massive_jax.zoo import atlas
      >>> atlas.find("smollm2_135m").dims
      (507,)
    """
    known = entries()
    for found in known.values():
        if zoo.full_name(name) in (found.name, found.hub_id):
            return found
    raise ValueError(f"the atlas has no entry for {name!r}; it has {', '.join(known)}.")
