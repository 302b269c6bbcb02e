"""Setting massive activations to something else, and what becomes of the model (paper, sections 3.1 and 5).

Axis letters: see `massive_jax.probe.sites`; W windows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from massive_jax.analysis import DEFINITION, FIRST_DELIMITER, Thresholds, find_massive
from massive_jax.arguments import is_index, number, several, shown
from massive_jax.data.windows import Windows
from massive_jax.evaluate.agreement import Images, Measure, check_data, measure_of
from massive_jax.evaluate.batches import Progress, batches, input_length
from massive_jax.evaluate.layers import measure_layers
from massive_jax.model import Model
from massive_jax.probe import Capture, Edit
from massive_jax.probe.operations import OPERATIONS, VALUES
from massive_jax.probe.sites import check_layers

_LARGEST = float(np.finfo(np.float32).max)  # of a value of an edit
# Operations at a place: those of `Edit` that do something to a single number, and what it is often set to.
_NUMBERED = tuple(op for op, how in OPERATIONS.items() if how.done is not None and how.number is not None)
_PLAIN = (*VALUES, *(op for op, how in OPERATIONS.items() if how.done is not None and how.number is None))
KNOWN = ", ".join([*_PLAIN, *(f"{op}=X" for op in _NUMBERED)])
"""The operations, as `Operation.parse` reads them; X is a number."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Names a (position, dim) of the residual stream; position may be a rule, "first_delimiter"."""

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
        """Makes the edit for `site` of the output of block `layer`; noise and shuffle draw by `seed`."""
        op = "set" if self.op in VALUES else self.op
        value = mean if self.op == "mean" else self.value or 0.0
        return Edit("block_out", layer=layer, position=place.position, dim=place.dim, op=op, value=value, seed=seed)


def parse_places(text: str) -> list[Place]:
    """Reads "POS:DIM,…"; POS is an integer or "delim", the first delimiter of each window.

    Raises:
      ValueError: not of that form; the message says which part.
    """
    places = []
    for part in text.split(",") if isinstance(text, str) else (text,):
        found = re.fullmatch(rf"\s*([0-9]{{1,18}}|delim|{FIRST_DELIMITER}):([0-9]{{1,18}})\s*", str(part))
        if found is None:
            raise ValueError(
                f"cannot read the place {shown(part)}; give --places (also --sites) as POS:DIM,… with POS a token "
                "position or 'delim' and DIM a dim, such as 0:507,0:247; or as 'auto'."
            )
        position, dim = found.groups()
        places.append(Place(int(position) if position.isdecimal() else FIRST_DELIMITER, int(dim)))
    if len(set(places)) < len(places):
        raise ValueError(f"the places {text!r} name a place twice.")
    return places


def hidden_state(model: Model, inputs: np.ndarray, layer: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Computes the output of block `layer`: tokens or images -> float32 [B, T, D] on the host."""
    check_layers([layer], model.config.num_layers, "layer")
    out = model(inputs, mask=mask, capture=Capture("block_out", layers=(layer,)), logits=False)
    return np.asarray(out.intermediates["block_out"], np.float32)[0]


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
        or not (p.position == FIRST_DELIMITER or (is_index(p.position) and 0 <= p.position < length))  # type: ignore[operator]
    ]
    if bad:
        raise ValueError(
            f"place{'s' * (len(bad) > 1)} {', '.join(map(str, bad))} out of range: the inputs have positions 0 to "
            f"{length - 1}, the model dims 0 to {width - 1}."
        )
    at_delimiter = any(isinstance(p.position, str) for p in places)
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
    check_places(model, data, places)
    values: list[list[np.ndarray]] = [[] for _ in places]
    everywhere = _mask_of(data)
    for which, inputs in batches(data.inputs, progress, input_length(model, data.inputs)):
        mask = None if everywhere is None else everywhere[which]
        hidden = hidden_state(model, inputs, layer, mask)
        for found, place in zip(values, places, strict=True):
            position = model.first_delimiter(inputs, mask) if isinstance(place.position, str) else place.position
            positions = np.broadcast_to(np.asarray(position), len(inputs))
            rows = np.flatnonzero(positions >= 0)
            columns = positions[rows]
            if mask is not None:
                columns = np.asarray([np.flatnonzero(mask[row])[positions[row]] for row in rows], int)
            found.append(hidden[rows, columns, place.dim])
    return [float(np.concatenate(found).mean(dtype=np.float64)) for found in values]


def nowhere(model: Model, data: Windows | Images, layer: int, places: Sequence[Place]) -> list[Edit]:
    """Gives edits like those at `places` that change nothing: the program that measures these measures without, too."""
    check_places(model, data, places)
    positions = np.full(len(data.inputs), -1)
    return [Edit("block_out", layer=layer, position=positions, dim=place.dim, value=0.0) for place in places]


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
    """Takes `measure` under each operation at all of `sites` of the output of block `layer`, by its name.

    The measure is the one of `measure_of` unless given.

    Raises:
      ValueError: as `check_places`; operations that are none; means that are not as many as the places.
    """
    check_places(model, data, places)
    if not all(isinstance(operation, Operation) for operation in _several("operations", operations)):
        raise ValueError(f"operations is {shown(operations)}; give a list of Operation, as `Operation.parse` reads.")
    if len(_several("means", means)) != len(places):
        raise ValueError(f"there are {len(means)} means; give one for each of the {len(places)} places.")
    measure = measure or measure_of(model, data)[1]
    return {
        str(operation): measure(
            [operation.edit(layer, place, mean, seed) for place, mean in zip(places, means, strict=True)], progress
        )
        for operation in operations
    }


# The names that these had when a place was called a site, for scripts that use them.
PlaceInStream, parse_sites, check_sites, site_means = Place, parse_places, check_places, place_means
