"""Quantisation of one model."""

from __future__ import annotations

import dataclasses

from massive_jax.quantize import Quantization
from massive_jax.report.records import inline
from massive_jax.report.results.source import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationOf(Run):
    """quantize.json: `massive_jax.quantize.Quantization`, whose keys stand beside what they were measured on.

    Attributes:
      predicted_tokens: how many the perplexities are over.
      alpha: of SmoothQuant's scaling.
      seed: of the rotation's signs.
      found: what was.
    """

    predicted_tokens: int
    alpha: float
    seed: int
    found: Quantization = inline()  # noqa: RUF009  (a dataclass field)
