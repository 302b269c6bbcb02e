"""Setting massive activations to something else, and what becomes of the model (paper, sections 3.1 and 5).

Axis letters: see `massive_jax.probe.sites`; W windows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from massive_jax.analysis.massive import FIRST_DELIMITER
from massive_jax.arguments import is_index, number, shown
from massive_jax.data.windows import Windows
from massive_jax.evaluate.agreement import Images, Measure, measure_of
from massive_jax.evaluate.batches import Progress, batches, input_length
from massive_jax.model import Model
from massive_jax.probe import Capture, Edit
from massive_jax.probe.sites import check_layers

_KNOWN = "zero, mean, shuffle, set=X, scale=X, add=X, noise=X"
_LARGEST = float(np.finfo(np.float32).max)  # of a value of an edit
_NUMBERED = ("set", "scale", "add", "noise")  # operations of `Edit` that take a number


@dataclasses.dataclass(frozen=True)
class PlaceInStream:
    """A (position, dim) of the residual stream; position may be a rule, "first_delimiter"."""

    position: int | str
    dim: int

    def __str__(self) -> str:
        return f"{self.position}:{self.dim}"


@dataclasses.dataclass(frozen=True)
class Operation:
    """What to do at each site: "zero", "mean" (each site's own mean), "shuffle", or an op of `Edit` with a number."""

    op: str
    value: float | None = None

    def __post_init__(self) -> None:
        if self.op not in ("zero", "mean", "shuffle", *_NUMBERED) or (self.op in _NUMBERED) != (self.value is not None):
            raise ValueError(f"operation {shown(self.op)} with the value {shown(self.value)}; known: {_KNOWN}.")
        if self.value is not None:
            number(f"operation {self.op}: value", self.value, -_LARGEST, _LARGEST)

    @classmethod
    def parse(cls, text: str) -> Operation:
        """Reads "zero", "mean", "shuffle", "set=0.5", "scale=2", "add=1", "noise=3"; ValueError otherwise."""
        op, _, digits = text.partition("=")
        takes_number = op in _NUMBERED
        if op not in ("zero", "mean", "shuffle", *_NUMBERED) or takes_number != bool(digits):
            raise ValueError(f"unknown operation {text!r}; known: {_KNOWN} (X a number).")
        try:
            value = float(digits) if digits else None
        except ValueError:
            value = math.nan
        if value is not None and not abs(value) <= _LARGEST:
            raise ValueError(f"operation {text!r}: {digits!r} is not a finite number of float32; known: {_KNOWN}.")
        return cls(op, value)

    def __str__(self) -> str:
        """Writes it as `parse` reads it: two that differ never look alike."""
        if self.value is None:
            return self.op
        short = f"{self.value:g}"
        return f"{self.op}={short if float(short) == self.value else repr(self.value)}"

    def edit(self, layer: int, site: PlaceInStream, mean: float, seed: int = 0) -> Edit:
        """The edit this operation makes at `site` of the output of block `layer`; noise and shuffle draw by `seed`."""
        op = "set" if self.op in ("zero", "mean") else self.op
        value = mean if self.op == "mean" else self.value or 0.0
        return Edit("block_out", layer=layer, position=site.position, dim=site.dim, op=op, value=value, seed=seed)


def parse_sites(text: str) -> list[PlaceInStream]:
    """Reads "POS:DIM,…"; POS is an integer or "delim", the first delimiter of each window.

    Raises:
      ValueError: not of that form; the message says which part.
    """
    sites = []
    for part in text.split(","):
        position, _, dim = part.strip().partition(":")
        if not dim.isdecimal() or not (position.isdecimal() or position in ("delim", FIRST_DELIMITER)):
            raise ValueError(
                f"cannot read the site {part!r}; give POS:DIM,… with POS a token position or 'delim' and DIM a dim, "
                "such as 0:507,0:247; or 'auto'."
            )
        sites.append(PlaceInStream(int(position) if position.isdecimal() else FIRST_DELIMITER, int(dim)))
    if len(set(sites)) < len(sites):
        raise ValueError(f"the sites {text!r} name a place twice.")
    return sites


def hidden_state(model: Model, inputs: np.ndarray, layer: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Output of block `layer`: tokens or images -> float32 [B, T, D] on the host."""
    check_layers([layer], model.config.num_layers, "layer")
    out = model(inputs, mask=mask, capture=Capture("block_out", layers=(layer,)), logits=False)
    return np.asarray(out.intermediates["block_out"][0], np.float32)


def check_sites(model: Model, data: Windows | Images, sites: Sequence[PlaceInStream]) -> None:
    """Nothing where every input has every site; ValueError that names those out of range otherwise."""
    width, mask = model.config.hidden_size, _mask_of(data)
    length = int(data.lengths.min()) if isinstance(data, Windows) else input_length(model, data.inputs)
    bad = [
        s
        for s in sites
        if not (is_index(s.dim) and 0 <= s.dim < width)
        or not (s.position == FIRST_DELIMITER or (is_index(s.position) and 0 <= s.position < length))  # type: ignore[operator]
    ]
    if bad:
        raise ValueError(
            f"site{'s' * (len(bad) > 1)} {', '.join(map(str, bad))} out of range: the inputs have positions 0 to "
            f"{length - 1}, the model dims 0 to {width - 1}."
        )
    at_delimiter = any(isinstance(s.position, str) for s in sites)
    if at_delimiter and isinstance(data, Images):
        raise ValueError("a site is at the first delimiter, which an image does not have.")
    if at_delimiter and not (model.first_delimiter(data.inputs, mask) >= 0).any():
        raise ValueError("a site is at the first delimiter, and no window has one.")


def _mask_of(data: Windows | Images) -> np.ndarray | None:
    """Which tokens are no padding; None for all."""
    return data.mask if isinstance(data, Windows) else None


def site_means(
    model: Model, data: Windows | Images, layer: int, sites: Sequence[PlaceInStream], progress: Progress | None = None
) -> list[float]:
    """Mean over the inputs of the activation at each site of the output of block `layer`, unedited.

    Raises:
      ValueError: a layer, position or dim out of range; a delimiter site in a text without delimiters.
    """
    check_sites(model, data, sites)
    values: list[list[np.ndarray]] = [[] for _ in sites]
    everywhere = _mask_of(data)
    for which, inputs in batches(data.inputs, progress, input_length(model, data.inputs)):
        mask = None if everywhere is None else everywhere[which]
        hidden = hidden_state(model, inputs, layer, mask)
        for found, site in zip(values, sites, strict=True):
            position = model.first_delimiter(inputs, mask) if isinstance(site.position, str) else site.position
            positions = np.broadcast_to(np.asarray(position), len(inputs))
            rows = np.flatnonzero(positions >= 0)
            columns = positions[rows]
            if mask is not None:
                columns = np.asarray([np.flatnonzero(mask[row])[positions[row]] for row in rows], int)
            found.append(hidden[rows, columns, site.dim])
    return [float(np.concatenate(found).mean(dtype=np.float64)) for found in values]


def intervene(
    model: Model,
    data: Windows | Images,
    layer: int,
    sites: Sequence[PlaceInStream],
    operations: Sequence[Operation],
    means: Sequence[float],
    progress: Progress | None = None,
    seed: int = 0,
    measure: Measure | None = None,
) -> dict[str, float]:
    """`measure` under each operation at all of `sites` of the output of block `layer`, by the operation's name.

    The measure is the one of `measure_of` unless given.
    """
    measure = measure or measure_of(model, data)[1]
    return {
        str(operation): measure(
            [operation.edit(layer, site, mean, seed) for site, mean in zip(sites, means, strict=True)], progress
        )
        for operation in operations
    }
