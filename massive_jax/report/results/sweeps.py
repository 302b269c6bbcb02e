"""What an edit does in each layer at each position."""

from __future__ import annotations

import dataclasses

from massive_jax.report.results.source import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepResult(Run):
    """sweep.json.

    Attributes:
      tokens: their texts, T.
      site: what is edited.
      dim: the dim that is; None for all.
      op: "set", "scale" or "add".
      value: its number; None where it is what another prompt has there.
      patched_from: that prompt; None for none.
      metric: a name in `massive_jax.sweep.METRICS`.
      targets: texts of the tokens that the metric is of.
      unedited: the metric without an edit.
      values: with one, by layer, and position: L of T.
      approximate: the change of the metric to first order, by gradients, likewise; None of "kl".
      spearman: the rank correlation of the two; None where there is none.
    """

    tokens: tuple[str, ...]
    site: str
    dim: int | None
    op: str
    value: float | None
    patched_from: str | None = None
    metric: str
    targets: tuple[str, ...] = ()
    unedited: float
    values: tuple[tuple[float, ...], ...]
    approximate: tuple[tuple[float, ...], ...] | None = None
    spearman: float | None = None
