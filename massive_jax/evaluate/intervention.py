"""Setting massive activations to something else, and what becomes of the model (paper, sections 3.1 and 5).

Axis letters: see `massive_jax.probe.sites`; W windows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from massive_jax.analysis import DEFINITION, FIRST_DELIMITER, Thresholds, find_massive
from massive_jax.arguments import is_index, number, several, shown
from massive_jax.data.windows import Windows
from massive_jax.evaluate.agreement import Images, Measure, check_data, measure_of
from massive_jax.evaluate.batches import Progress, batches, input_length
from massive_jax.evaluate.layers import measure_layers
from massive_jax.model import Model
from massive_jax.parallel import fetch
from massive_jax.probe import RULES, Capture, Edit
from massive_jax.probe.operations import OPERATIONS, VALUES
from massive_jax.probe.sites import check_layers

_LARGEST = float(np.finfo(np.float32).max)  # of a value of an edit
# Operations at a place: those of `Edit` that do something to a single number, and what it is often set to.
_NUMBERED = tuple(op for op, how in OPERATIONS.items() if how.done is not None and how.number is not None)
_PLAIN = (*VALUES, *(op for op, how in OPERATIONS.items() if how.done is not None and how.number is None))
KNOWN = ", ".join([*_PLAIN, *(f"{op}=X" for op in _NUMBERED)])
"""The operations, as `Operation.parse` reads them; X is a number."""
_DELIM = "delim"  # short for the rule
_POSITIONS = (_DELIM, FIRST_DELIMITER, *RULES)
_LAYERS_AT_ONCE = 8  # whose outputs are held together, where those of many are averaged


@dataclasses.dataclass(frozen=True)
class Place:
    """Names a (position, dim) of the residual stream; position may be a rule of `Edit`, such as "first_delimiter"."""

    position: int | str
    dim: int

    def __str__(self) -> str:
        return f"{self.position}:{self.dim}"


@dataclasses.dataclass(frozen=True)
class Operation:
    """Says what to do at each site: "zero", "mean" (each one's own), "shuffle", or an op of `Edit` with a number."""

    op: str
    value: float | None = None

    def __post_init__(self) -> None:
        if self.op not in (*_PLAIN, *_NUMBERED) or (self.op in _NUMBERED) != (self.value is not None):
            raise ValueError(f"operation {shown(self.op)} with the value {shown(self.value)}; known: {KNOWN}.")
        if self.value is not None:
            number(f"operation {self.op}: value", self.value, -_LARGEST, _LARGEST)

    @classmethod
    def parse(cls, text: str) -> Operation:
        """Reads one of `KNOWN`, such as "zero" or "scale=2"; ValueError otherwise."""
        op, sign, digits = text.partition("=") if isinstance(text, str) else ("", "", "")
        takes_number = op in _NUMBERED
        if op not in (*_PLAIN, *_NUMBERED) or not takes_number == bool(sign) == bool(digits):
            raise ValueError(f"unknown operation {shown(text)}; known: {KNOWN} (X a number).")
        try:
            value = float(digits) if digits else None
        except ValueError:
            value = math.nan
        if value is not None and not abs(value) <= _LARGEST:
            raise ValueError(f"operation {text!r}: {digits!r} is not a finite number of float32; known: {KNOWN}.")
        return cls(op, value)

    def __str__(self) -> str:
        """Writes it as `parse` reads it: two that differ never look alike."""
        if self.value is None:
            return self.op
        short = f"{self.value:g}"
        return f"{self.op}={short if float(short) == self.value else repr(self.value)}"

    @property
    def drawn(self) -> bool:
        """Tells whether chance, that is the seed, has a part in it."""
        return self.op in OPERATIONS and OPERATIONS[self.op].drawn

    def edit(self, layer: int, place: Place, mean: float, seed: int = 0) -> Edit:
        """Makes the edit for `place` of the output of block `layer`; noise and shuffle draw by `seed`."""
        op = "set" if self.op in VALUES else self.op
        value = mean if self.op == "mean" else self.value or 0.0
        return Edit("block_out", layer=layer, position=place.position, dim=place.dim, op=op, value=value, seed=seed)


def parse_places(text: str) -> list[Place]:
    """Reads "POS:DIM,…"; POS is an integer, "delim" (each window's first delimiter), "first" or "last".

    Raises:
      ValueError: not of that form; the message says which part.
    """
    places = []
    for part in text.split(",") if isinstance(text, str) else (text,):
        found = re.fullmatch(rf"\s*([0-9]{{1,18}}|{'|'.join(_POSITIONS)}):([0-9]{{1,18}})\s*", str(part))
        if found is None:
            raise ValueError(
                f"cannot read the place {shown(part)}; give --places (also --sites) as POS:DIM,… with POS a token "
                "position, 'delim', 'first' or 'last', and DIM a dim, such as 0:507,0:247; or as 'auto'."
            )
        position, dim = found.groups()
        rule = FIRST_DELIMITER if position == _DELIM else position
        places.append(Place(int(position) if position.isdecimal() else rule, int(dim)))
    if len(set(places)) < len(places):
        raise ValueError(f"the places {text!r} name a place twice.")
    return places


def hidden_state(model: Model, inputs: np.ndarray, layer: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Computes the output of block `layer`: tokens or images -> float32 [B, T, D] on the host."""
    return _hidden_states(model, inputs, (layer,), mask)[0]


def _hidden_states(model: Model, inputs: np.ndarray, layers: Sequence[int], mask: np.ndarray | None) -> np.ndarray:
    """The outputs of some blocks: float32 [len(layers), B, T, D]."""
    check_layers(layers, model.config.num_layers, "layer")
    out = model(inputs, mask=mask, capture=Capture("block_out", layers=layers), logits=False)
    return np.asarray(fetch(out.intermediates["block_out"]), np.float32)


def check_places(model: Model, data: Windows | Images, places: Sequence[Place]) -> None:
    """Raises a ValueError that names the places out of range of any input."""
    check_data(model, data)
    if not all(isinstance(place, Place) for place in _several("places", places)):
        raise ValueError(f"places is {shown(places)}; give a list of Place, such as `parse_places` reads.")
    width, mask = model.config.hidden_size, _mask_of(data)
    length = int(data.lengths.min()) if isinstance(data, Windows) else input_length(model, data.inputs)
    bad = [
        p
        for p in places
        if not (is_index(p.dim) and 0 <= p.dim < width)
        or not (p.position in _POSITIONS[1:] or (is_index(p.position) and 0 <= p.position < length))  # type: ignore[operator]
    ]
    if bad:
        raise ValueError(
            f"place{'s' * (len(bad) > 1)} {', '.join(map(str, bad))} out of range: the inputs have positions 0 to "
            f"{length - 1}, the model dims 0 to {width - 1}."
        )
    at_delimiter = any(p.position == FIRST_DELIMITER for p in places)
    if at_delimiter and isinstance(data, Images):
        raise ValueError("a place is at the first delimiter, which an image does not have.")
    if at_delimiter and not (model.first_delimiter(data.inputs, mask) >= 0).any():
        raise ValueError("a place is at the first delimiter, and no window has one.")


def _several(name: str, given: Any) -> tuple[Any, ...]:
    if (found := several(given)) is None:
        raise ValueError(f"{name} is {shown(given)}; give a list.")
    return found


def _mask_of(data: Windows | Images) -> np.ndarray | None:
    """Which tokens are no padding; None for all."""
    return data.mask if isinstance(data, Windows) else None


def find_places(
    model: Model,
    data: Windows | Images,
    layer: int | None = None,
    places: Sequence[Place] | None = None,
    *,
    thresholds: Thresholds = DEFINITION,
    required: bool = True,
    progress: Progress | None = None,
) -> tuple[int, list[Place]]:
    """Gives the layer and the places to edit: as given, or what is massive there in `data`.

    Args:
      model: the model.
      data: what it is run on.
      layer: 1-based; None for the one where the largest activations first appear at full size.
      places: None for those that meet the definition at the layer.
      thresholds: the definition.
      required: whether there has to be a place.
      progress: called with the number of tokens; not where nothing has to be looked for.

    Raises:
      ValueError: a given place is out of range; none is found and one is `required`.
    """
    if places is not None:
        check_places(model, data, places)
        if layer is not None:
            return layer, list(places)
    table = measure_layers(model, data.inputs, thresholds=thresholds, progress=progress, mask=_mask_of(data))
    layer = layer or table.full_size_layer
    if places is not None:
        return layer, list(places)
    locations = table.layers[layer - 1].locations
    found = find_massive(locations)
    if not found and required:
        largest = locations[0]
        raise ValueError(
            f"nothing at layer {layer} meets the definition (magnitude above {thresholds.magnitude:g} and "
            f"{thresholds.ratio:g} times the median): the largest, {largest.value:.4g} at "
            f"{largest.position}:{largest.dim}, is {largest.ratio:.0f} times the median. "
            "Give --places (also --sites), another --layer, or lower thresholds."
        )
    return layer, [Place(f.position, f.dim) for f in found]


def place_means(
    model: Model, data: Windows | Images, layer: int, places: Sequence[Place], progress: Progress | None = None
) -> list[float]:
    """Averages over the inputs the activation at each place of the output of block `layer`, unedited.

    Raises:
      ValueError: a layer, position or dim out of range; a delimiter's place in a text without delimiters.
    """
    return layer_means(model, data, layer, places, progress).of(places)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerMeans:
    """Holds what a layer's output is on average over the inputs.

    Attributes:
      by_position: float64 [T, D], at each position of those inputs that have it.
      by_rule: the rules of some places -> float64 [D], at the position that the rule gives.
    """

    by_position: np.ndarray
    by_rule: Mapping[str, np.ndarray]

    def of(self, places: Sequence[Place]) -> list[float]:
        """Gives the mean at each of the places."""
        return [
            float((self.by_rule if isinstance(place.position, str) else self.by_position)[place.position][place.dim])  # type: ignore[index]
            for place in places
        ]


def layer_means(
    model: Model, data: Windows | Images, layer: int, places: Sequence[Place] = (), progress: Progress | None = None
) -> LayerMeans:
    """Averages over the inputs the output of block `layer`, unedited, at every position and by the rules of `places`.

    Raises:
      ValueError: as `place_means`.
    """
    check_places(model, data, places)
    return next(iter(_means_of(model, data, (layer,), places, progress)))


def means_by_layer(
    model: Model, data: Windows | Images, places: Sequence[Place], progress: Progress | None = None
) -> list[list[float]]:
    """Averages as `place_means` at every layer, some of them at a time: [L][number of places]."""
    check_places(model, data, places)
    L = model.config.num_layers
    size, found = min(_LAYERS_AT_ONCE, L), []
    for start in range(0, L, size):
        # As many layers each time, so that it is one program; those that have been seen already are left out.
        first = min(start, L - size)
        means = _means_of(model, data, range(first + 1, first + size + 1), places, progress)
        found += [mean.of(places) for mean in means][start - first :]
    return found


def _means_of(
    model: Model, data: Windows | Images, layers: Sequence[int], places: Sequence[Place], progress: Progress | None
) -> list[LayerMeans]:
    T, D = input_length(model, data.inputs), model.config.hidden_size
    rules = dict.fromkeys(place.position for place in places if isinstance(place.position, str))
    sums, counts = np.zeros((len(layers), T, D)), np.zeros((T, 1))
    at_rules = {rule: np.zeros((len(layers), D)) for rule in rules}
    seen = dict.fromkeys(rules, 0)
    everywhere = _mask_of(data)
    for which, inputs in batches(data.inputs, progress, T):
        mask = None if everywhere is None else everywhere[which]
        hidden = _hidden_states(model, inputs, layers, mask)
        # The columns of a sequence's own tokens, in their order.
        columns = [np.arange(T) if mask is None else np.flatnonzero(mask[row]) for row in range(len(inputs))]
        for row, own in enumerate(columns):
            sums[:, : len(own)] += hidden[:, row, own]
            counts[: len(own)] += 1
        for rule, total in at_rules.items():
            for row, position in enumerate(_positions(model, inputs, mask, rule)):
                if position >= 0:
                    total += hidden[:, row, columns[row][position]]
                    seen[rule] += 1
    with np.errstate(invalid="ignore"):  # beyond the end of every sequence there is no mean
        means = sums / counts
    return [
        LayerMeans(means[i], {rule: total[i] / seen[rule] for rule, total in at_rules.items()})
        for i in range(len(layers))
    ]


def _positions(model: Model, inputs: np.ndarray, mask: np.ndarray | None, rule: str) -> np.ndarray:
    """Where a rule of `Edit` points in each sequence's own tokens: int [B], -1 for nowhere."""
    work_out = model.rules()[rule]
    if mask is None:
        return work_out(inputs)
    return np.concatenate([work_out(row[own][None]) for row, own in zip(inputs, mask, strict=True)])


def nowhere(model: Model, data: Windows | Images, layer: int, places: Sequence[Place]) -> list[Edit]:
    """Gives edits like those at `places` that change nothing: the program that measures these measures without, too."""
    check_places(model, data, places)
    means = [[0.0] * len(places)]
    return edits_at((layer,), places, Operation("zero"), means, count=len(data.inputs), only=-1)


def edits_at(
    layers: Sequence[int],
    places: Sequence[Place],
    operation: Operation,
    means: Sequence[Sequence[float]],
    seed: int = 0,
    *,
    count: int = 0,
    only: int | None = None,
) -> list[Edit]:
    """Makes the edits of an operation at places of the outputs of some blocks.

    Args:
      layers: 1-based.
      places: where, in each.
      operation: what is done there.
      means: of each layer, the mean at each place.
      seed: of noise and shuffle.
      count: how many inputs there are, for `only`.
      only: index of the one place that is edited, -1 for none; the others keep their row, and so the program.
    """
    return [
        edit if only is None or only == i else dataclasses.replace(edit, position=np.full(count, -1))
        for layer, at in zip(layers, means, strict=True)
        for i, (place, mean) in enumerate(zip(places, at, strict=True))
        for edit in (operation.edit(layer, place, mean, seed),)
    ]


def intervene(
    model: Model,
    data: Windows | Images,
    layer: int,
    places: Sequence[Place],
    operations: Sequence[Operation],
    means: Sequence[float],
    progress: Progress | None = None,
    seed: int = 0,
    measure: Measure | None = None,
) -> dict[str, float]:
    """Takes `measure` under each operation at all of `places` of the output of block `layer`, by its name.

    The measure is the one of `measure_of` unless given. `measure_effects` takes apart what each place does.

    Raises:
      ValueError: as `check_places`; operations that are none; means that are not as many as the places.
    """
    check_places(model, data, places)
    check_operations(operations)
    if len(_several("means", means)) != len(places):
        raise ValueError(f"there are {len(means)} means; give one for each of the {len(places)} places.")
    measure = measure or measure_of(model, data)[1]
    return {
        str(operation): measure(edits_at((layer,), places, operation, [means], seed), progress)
        for operation in operations
    }


def check_operations(operations: Sequence[Operation]) -> None:
    """Raises a ValueError where `operations` is no list of them."""
    if not all(isinstance(operation, Operation) for operation in _several("operations", operations)):
        raise ValueError(f"operations is {shown(operations)}; give a list of Operation, as `Operation.parse` reads.")


# The names that these had when a place was called a site, for scripts that use them.
PlaceInStream, parse_sites, check_sites, site_means = Place, parse_places, check_places, place_means
