"""What was run, on what."""

from __future__ import annotations

import dataclasses

from massive_jax.report.records import inline


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource:
    """A prompt, or windows of a text.

    Attributes:
      bos: whether the BOS token is in front of each.
      text: the text's name; None for a prompt.
      windows: how many.
      context: tokens of each, without BOS.
    """

    bos: bool
    text: str | None = None
    windows: int | None = None
    context: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Images.

    Attributes:
      images: their names, or the path that was given.
      image_size: height and width in pixels, as the model sees them.
    """

    images: tuple[str, ...]
    image_size: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """What every result says first: the model."""

    model: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a model computes in (`dtype`), and what its weights were stored as (None where that is not known)."""

    dtype: str
    weights: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class On(Numbers):
    """What a result holds for: numbers, and a text or images, whose keys stand beside the others."""

    source: TextSource | ImageSource = inline()  # noqa: RUF009  (a dataclass field)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Named, On):
    """A model on a text or on images."""
