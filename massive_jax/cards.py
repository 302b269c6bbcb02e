"""Short pictures of what holds arrays: a line a field, with dtype and shape in place of numbers; small tables."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from massive_jax.arguments import shown

LINES = 25  # at most, of what stands for an object


class Card:
    """Base of dataclasses that show a card in place of their arrays' numbers; they are made with `repr=False`."""

    def __repr__(self) -> str:
        assert dataclasses.is_dataclass(self)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return card(type(self).__name__, fields)

    def _repr_html_(self) -> str:
        return as_html(repr(self))


def card(title: str, fields: Mapping[str, Any]) -> str:
    """Gives a title and a line a field, those that are None left out: at most `LINES` lines."""
    there = {name: value for name, value in fields.items() if value is not None}
    width = max(map(len, there), default=0)
    lines = [title]
    for name, value in there.items():
        if isinstance(value, Mapping) and any(map(_is_array, value.values())):
            within = max(map(len, map(str, value)))
            lines.append(f"  {name}")
            lines += [f"    {key!s:{within}}  {in_words(part)}" for key, part in value.items()]
        else:
            lines.append(f"  {name:{width}}  {in_words(value)}")
    if len(lines) > LINES:
        lines[LINES - 1 :] = [f"  … and {len(lines) - LINES + 1} more"]
    return "\n".join(lines)


def in_words(value: Any) -> str:
    """Gives one line: dtype and shape of an array, of a dataclass those of its fields, or what Python writes."""
    if _has_shape(value):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(part)}" for key, part in value.items()) or "{}"
    if dataclasses.is_dataclass(value):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        there = ", ".join(f"{name} {in_words(part)}" for name, part in fields if part is not None)
        return f"{type(value).__name__}: {there}"
    return value if isinstance(value, str) else shown(value)


def as_html(text: str) -> str:
    """Gives a card for a notebook."""
    return f"<pre>{html.escape(text)}</pre>"


@dataclasses.dataclass(frozen=True, repr=False)
class CardTable(Sequence[Any]):
    """A table to look at and to read: a sequence of its rows.

    Attributes:
      rows: tuples of one kind, whose field names head the columns.
    """

    rows: tuple[NamedTuple, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def _cells(self) -> list[list[str]]:
        heads = list(self.rows[0]._fields) if self.rows else []
        return [heads, *([str(cell) for cell in row] for row in self.rows)]

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        body = (("th", head), *(("td", row) for row in rows))
        lines = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in body)
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _has_shape(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _is_array(value: Any) -> bool:
    """Whether it is an array, or holds some."""
    return _has_shape(value) or dataclasses.is_dataclass(value)
