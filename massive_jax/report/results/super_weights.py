"""Super weights of one model."""

from __future__ import annotations

import dataclasses

from massive_jax.analysis.super_weights import SuperWeights
from massive_jax.report.records import inline
from massive_jax.report.results.source import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperWeightsOf(Run):
    """super_weights.json: `massive_jax.analysis.SuperWeights`, whose keys stand beside what they were measured on.

    Attributes:
      predicted_tokens: how many the perplexities are over.
      found: what was.
    """

    predicted_tokens: int
    found: SuperWeights = inline()  # noqa: RUF009  (a dataclass field)
