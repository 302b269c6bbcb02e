"""What an intervention does, taken apart: each place alone, controls drawn many times, layer by layer.

Everything is edits as data: one compiled program measures all of it. Axis letters: see `massive_jax.probe.sites`; W
windows or images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from massive_jax.analysis import median_places
from massive_jax.arguments import seed_number, whole_number
from massive_jax.data.windows import Windows
from massive_jax.evaluate.agreement import Images, Scorer, scorer_of
from massive_jax.evaluate.batches import Progress, batches, input_length
from massive_jax.evaluate.intervention import (
    LayerMeans,
    Operation,
    Place,
    check_operations,
    check_places,
    edits_at,
    hidden_state,
    layer_means,
    means_by_layer,
)
from massive_jax.evaluate.scores import Scores
from massive_jax.model import Model
from massive_jax.probe.sites import check_layers

ByOperation: TypeAlias = Mapping[str, Scores]
"""The name of an operation -> what every window or image scores under it."""
CONTROLS: Mapping[str, str] = {
    "median_sized": "entries of median magnitude",
    "same_position": "the same positions, other dims",
    "same_dim": "the same dims, other positions",
}
"""Kinds of controls, in words: as many numbers, elsewhere."""
_ALONE = 8  # places that are looked at alone, those of largest magnitude


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """Holds what the operations do at places of a kind, drawn at random."""

    kind: str
    places: tuple[Place, ...]
    scores: ByOperation


@dataclasses.dataclass(frozen=True, eq=False)
class Effects:
    """Holds what operations do to a model, at all places together and otherwise.

    Attributes:
      metric: what the model is judged by.
      layer: 1-based, whose output is edited.
      everywhere: whether every block's output is, and `layer` only says where the places and `means` are from.
      places: P of them.
      means: what is there on average, P numbers.
      original: without an edit.
      together: under each operation at all places.
      strongest: the operation that changes the model most, for `alone` and `controls`; None where there is none.
      alone: places (those of largest magnitude) -> the same at one place.
      controls: of each kind as many as were drawn; the first of the kind "median_sized" under all operations.
      sweep: layer -> the same at all places of its output instead.
    """

    metric: str
    layer: int
    everywhere: bool
    places: tuple[Place, ...]
    means: tuple[float, ...]
    original: Scores
    together: ByOperation
    strongest: str | None
    alone: Mapping[Place, ByOperation]
    controls: tuple[Control, ...]
    sweep: Mapping[int, ByOperation]


@dataclasses.dataclass(frozen=True)
class Closer:
    """Says how closely an intervention is looked at.

    Attributes:
      alone: whether each of several places is edited alone.
      controls: kinds of controls, of `CONTROLS`.
      draws: how many of each kind.
      sweep: whether the output of every layer is edited, one after the other.
    """

    alone: bool = True
    controls: tuple[str, ...] = tuple(CONTROLS)
    draws: int = 8
    sweep: bool = False

    def __post_init__(self) -> None:
        whole_number("draws", self.draws, 1)
        unknown = [kind for kind in self.controls if kind not in CONTROLS]
        if unknown:
            raise ValueError(f"unknown controls {', '.join(map(str, unknown))}; known: {', '.join(CONTROLS)}.")

    def passes(self, model: Model, places: int, operations: int, everywhere: bool = False) -> int:
        """Counts how often `measure_effects` runs over the data at most, for a progress bar."""
        return self.passes_of(model.config.num_layers, places, operations, everywhere)

    def passes_of(self, num_layers: int, places: int, operations: int, everywhere: bool = False) -> int:
        """Counts the same for a model of so many layers."""
        alone = min(places, _ALONE) if self.alone and places > 1 else 0
        controls = len(self.controls) * self.draws + operations - 1 if places and self.controls else 0
        layers = num_layers * (self.sweep * operations) + math.ceil(num_layers / 8) * (self.sweep or everywhere)
        return 2 + operations + (alone + controls + layers if operations else 0)


def measure_effects(
    model: Model,
    data: Windows | Images,
    layer: int,
    places: Sequence[Place],
    operations: Sequence[Operation],
    *,
    everywhere: bool = False,
    closer: Closer | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """Measures what operations do at places of the output of block `layer`, and what of it is due to which place.

    Args:
      model: the model.
      data: what it is run on.
      layer: 1-based.
      places: where, in its output.
      operations: what is done there.
      everywhere: whether the same is done at the output of every block, "mean" with that block's means.
      closer: what else is measured; None for `Closer()`.
      seed: of controls, and of operations that draw.
      progress: called with the number of tokens.

    Raises:
      ValueError: as `intervene`; too few other places to draw controls from; the unedited model's score is not finite.
    """
    (layer,) = check_layers([layer], model.config.num_layers, "layer")
    check_places(model, data, places)
    check_operations(operations)
    places, closer, seed = tuple(places), closer or Closer(), seed_number(seed)
    for kind in closer.controls if operations else ():
        if kind != "median_sized":
            _drawn_from_all(kind, model, data, places, seed)  # an error now, if there are too few to draw from
    whole = layer_means(model, data, layer, places, progress)
    metric, scorer = scorer_of(model, data, progress)
    run = _Runs(model, data, scorer, layer, everywhere, operations, seed, progress)
    # Of images the unedited model has been run, and agrees with itself.
    ones = np.ones(len(data.inputs), int)
    original = Scores(metric, ones * 1.0, ones) if isinstance(data, Images) else run.untouched(places)
    if not math.isfinite(original.value):
        raise ValueError(f"{model.name}: the {metric} of the unedited model is {original.value} on this text.")

    together = run.at(places, means := run.means(places, whole))
    apart = {name: abs(np.nan_to_num(scores.mean - original.mean, nan=np.inf)) for name, scores in together.items()}
    strongest = max(apart, key=lambda name: apart[name]) if apart else None
    alone: dict[Place, ByOperation] = {}
    if closer.alone and len(places) > 1 and strongest:
        largest = sorted(range(len(places)), key=lambda i: -abs(whole.of(places)[i]))[:_ALONE]
        alone = {places[i]: run.at(places, means, [strongest], only=i) for i in sorted(largest)}
    controls = tuple(_controls(run, places, whole, closer, strongest)) if places and strongest else ()
    sweep: dict[int, ByOperation] = {}
    if closer.sweep and places:
        by_layer = run.means_of_layers(places)
        sweep = {at: run.at(places, [mean], layers=(at,)) for at, mean in enumerate(by_layer, 1)}
    return Effects(
        metric=metric,
        layer=layer,
        everywhere=everywhere,
        places=places,
        means=tuple(whole.of(places)),
        original=original,
        together=together,
        strongest=strongest,
        alone=alone,
        controls=controls,
        sweep=sweep,
    )


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Takes the scores under edits, all with as many rows."""

    model: Model
    data: Windows | Images
    scorer: Scorer
    layer: int
    everywhere: bool
    operations: Sequence[Operation]
    seed: int
    progress: Progress | None

    @property
    def layers(self) -> Sequence[int]:
        return range(1, self.model.config.num_layers + 1) if self.everywhere else (self.layer,)

    def means(
        self, places: Sequence[Place], whole: LayerMeans, names: Sequence[str] | None = None
    ) -> list[list[float]]:
        """Of each layer that is edited what the operations (or those named) set the places to by "mean"."""
        return self.means_of_layers(places, names) if self.everywhere else [whole.of(places)]

    def means_of_layers(self, places: Sequence[Place], names: Sequence[str] | None = None) -> list[list[float]]:
        """The same of all layers; zeros where nothing is set to the mean."""
        if any(operation.op == "mean" for operation in self._named(names)):
            return means_by_layer(self.model, self.data, places, self.progress)
        return [[0.0] * len(places)] * self.model.config.num_layers

    def _named(self, names: Sequence[str] | None) -> list[Operation]:
        return [operation for operation in self.operations if names is None or str(operation) in names]

    def untouched(self, places: Sequence[Place]) -> Scores:
        """Without any edit, in the program that measures edits."""
        means = [[0.0] * len(places)] * len(self.layers)
        edits = edits_at(self.layers, places, Operation("zero"), means, count=len(self.data.inputs), only=-1)
        return self.scorer(edits, self.progress)

    def at(
        self,
        places: Sequence[Place],
        means: Sequence[Sequence[float]],
        names: Sequence[str] | None = None,
        *,
        layers: Sequence[int] | None = None,
        only: int | None = None,
    ) -> dict[str, Scores]:
        """Under each operation (or those named) at the places, or at one of them only."""
        layers = self.layers if layers is None else layers
        count = len(self.data.inputs)
        return {
            str(operation): self.scorer(
                edits_at(layers, places, operation, means, self.seed, count=count, only=only), self.progress
            )
            for operation in self._named(names)
        }


def _controls(
    run: _Runs, places: Sequence[Place], whole: LayerMeans, closer: Closer, strongest: str
) -> Iterator[Control]:
    """As many numbers elsewhere, drawn again and again; of the first that are median-sized, under every operation."""
    # Of a whole batch, though one input is used: that program is there.
    _, first = next(batches(run.data.inputs, None, input_length(run.model, run.data.inputs)))
    hidden = hidden_state(run.model, first, run.layer)[0] if "median_sized" in closer.controls else None
    for kind in closer.controls:
        for i in range(closer.draws):
            # The first draw is that of the seed itself.
            seed = run.seed if i == 0 else int(np.random.SeedSequence([run.seed, i]).generate_state(1)[0])
            drawn = _elsewhere(kind, run, places, hidden, seed)
            names = None if kind == "median_sized" and i == 0 else [strongest]
            yield Control(kind, drawn, run.at(drawn, run.means(drawn, whole, names), names))


def _elsewhere(
    kind: str, run: _Runs, places: Sequence[Place], hidden: np.ndarray | None, seed: int
) -> tuple[Place, ...]:
    """As many places of a kind, none of them of `places`."""
    if hidden is None or kind != "median_sized":
        return _drawn_from_all(kind, run.model, run.data, places, seed)
    taken = [(place.position, place.dim) for place in places if isinstance(place.position, int)]
    return tuple(Place(*found) for found in median_places(hidden, len(places), exclude=taken, seed=seed))


def _drawn_from_all(
    kind: str, model: Model, data: Windows | Images, places: Sequence[Place], seed: int
) -> tuple[Place, ...]:
    """The same of a kind for which what is there does not count."""
    rng = np.random.default_rng(seed)
    if kind == "same_position":
        other = _others(kind, rng, [place.dim for place in places], model.config.hidden_size)
        return tuple(Place(place.position, other(place.dim)) for place in places)
    length = int(data.lengths.min()) if isinstance(data, Windows) else input_length(model, data.inputs)
    other = _others(kind, rng, [place.position for place in places], length)
    return tuple(Place(other(place.position), place.dim) for place in places)


def _others(kind: str, rng: np.random.Generator, taken: Sequence[int | str], size: int) -> Callable[[int | str], int]:
    """For each of those taken, by itself or by a rule, another index below `size`, each one's own."""
    names = list(dict.fromkeys(taken))
    free = np.setdiff1d(np.arange(size), [name for name in names if not isinstance(name, str)])
    if len(free) < len(names):
        raise ValueError(
            f"controls at {CONTROLS[kind]}: there are only {len(free)} others to draw {len(names)} from; take fewer "
            "places, a longer context, or no controls."
        )
    chosen = dict(zip(names, rng.choice(free, len(names), replace=False).tolist(), strict=True))
    return lambda name: chosen[name]
