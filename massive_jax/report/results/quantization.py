"""Quantisation of one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from massive_jax.quantize import Quantization
from massive_jax.report.records import inline
from massive_jax.report.results.source import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationOf(Run):
    """quantize.json: `massive_jax.quantize.Quantization`, whose keys stand beside what they were measured on.

    Attributes:
      count: of images; None for a text.
      predicted_tokens: how many the perplexities are over; None for images.
      alpha: of SmoothQuant's scaling.
      seed: of the rotation's signs.
      left_out: methods of the default that the model cannot take, and why.
      found: what was.
    """

    count: int | None = None
    predicted_tokens: int | None = None
    alpha: float
    seed: int
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    found: Quantization = inline()  # noqa: RUF009  (a dataclass field)
