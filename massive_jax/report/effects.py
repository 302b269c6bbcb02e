"""What was measured of an intervention, as its result has it: numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.analysis.bootstrap import DRAWS, Interval, percentiles
from massive_jax.analysis.effects import shares_alone
from massive_jax.report.results.interventions import (
    AloneEffect,
    ControlDraws,
    ControlPlace,
    DrawnEffect,
    EditedPlace,
    Effect,
    Intervention,
    LayerEffect,
)

if TYPE_CHECKING:
    from massive_jax.evaluate import Control, Effects, Place, Scores


def effect_of(scores: Scores, original: Scores) -> Effect:
    """Gives what a model scores with its interval, and how far that is from what it scores unedited."""
    found = scores.estimate()
    return Effect(
        value=found.value,
        low=found.low,
        high=found.high,
        difference=scores.difference(original),
        nats=scores.mean_difference(original) if scores.metric == "perplexity" else None,
    )


def intervention_of(effects: Effects, header: Mapping[str, Any], **more: Any) -> Intervention:
    """Gives the result: intervene.json.

    Args:
      effects: what was measured.
      header: the fields of a `Run`.
      **more: the other fields of an `Intervention`.
    """
    original, strongest = effects.original, effects.strongest
    by_name = {"original": original, **effects.together}
    first = next((control for control in effects.controls if control.kind == "median_sized"), None)
    by_name |= {f"random_{name}": scores for name, scores in first.scores.items()} if first else {}
    together = effects.together[strongest].mean if strongest else original.mean
    shares = shares_alone(original.mean, together, [one[strongest].mean for one in effects.alone.values() if strongest])
    kinds = dict.fromkeys(control.kind for control in effects.controls)
    measured: dict[str, Any] = {effects.metric: {name: scores.value for name, scores in by_name.items()}}
    return Intervention(
        **header,
        **measured,
        **more,
        layer="all" if effects.everywhere else effects.layer,
        found_at=effects.layer if effects.everywhere else None,
        sites=tuple(
            EditedPlace(position=place.position, dim=place.dim, value_mean=mean)
            for place, mean in zip(effects.places, effects.means, strict=True)
        ),
        mean_values=effects.means,
        controls=_places(first.places) if first else (),
        bootstrap_draws=DRAWS if len(original.sums) > 1 else None,
        effects=_by_name(by_name, original),
        alone=tuple(
            AloneEffect(position=place.position, dim=place.dim, share=share, effects=_by_name(scores, original))
            for share, (place, scores) in zip(shares, effects.alone.items(), strict=True)
        ),
        control_draws=tuple(
            _draws([control for control in effects.controls if control.kind == kind], original, strongest or "")
            for kind in kinds
        ),
        sweep=tuple(
            LayerEffect(layer=layer, effects=_by_name(scores, original)) for layer, scores in effects.sweep.items()
        ),
    )


def _by_name(scores: Mapping[str, Scores], original: Scores) -> dict[str, Effect]:
    return {name: effect_of(one, original) for name, one in scores.items()}


def _places(places: Sequence[Place]) -> tuple[ControlPlace, ...]:
    return tuple(ControlPlace(position=place.position, dim=place.dim) for place in places)


def _draws(controls: Sequence[Control], original: Scores, operation: str) -> ControlDraws:
    """Controls of one kind."""
    drawn = [control.scores[operation] for control in controls]
    values, nats = [one.value for one in drawn], [one.mean - original.mean for one in drawn]
    low, high = percentiles(np.asarray(values)) if len(values) > 1 else (None, None)
    of_nats = Interval(float(np.mean(nats)), *(percentiles(np.asarray(nats)) if len(nats) > 1 else ()))
    effect = DrawnEffect(
        values=tuple(values),
        mean=float(np.mean(values)),
        low=low,
        high=high,
        nats=of_nats if original.metric == "perplexity" else None,
    )
    return ControlDraws(
        kind=controls[0].kind,
        places=tuple(_places(control.places) for control in controls),
        effects={operation: effect},
    )
