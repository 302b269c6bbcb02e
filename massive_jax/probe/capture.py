"""What to keep of a forward pass, and where it is put.

A person writes `Capture`s; `compile_captures` checks them and splits them into what is compiled (which sites, which
reductions, how many layers) and what is data (which layers), so that asking for other layers never retraces.
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from massive_jax.arguments import is_index, several, shown, whole_number, yes_or_no
from massive_jax.probe.reduce import Reductions
from massive_jax.probe.sites import ALL_SITES, check_layers, find_site


@dataclasses.dataclass(frozen=True)
class Capture:
    r"""Asks for a site's tensor, or with any reduction for `Stats` of it.

    Attributes:
      sites: a site's name, or several.
      layers: 1-based layers to keep, in the order wanted; None for all. Memory is that of the layers kept.
      top_k: the k values of largest magnitude of each sequence, with their indices.
      median: exact median magnitude.
      max: largest magnitude.
      mean: mean of the signed values.
      variance: population variance.
      kurtosis: fourth central moment over squared variance.
      mass: share of attention on each key position, averaged over queries (`attn_probs` only).
      tensor: keep the whole tensor; None means "when no reduction is asked for".

    Examples:
      >>> tokens = model.tokenize("Summer is warm. Winter is cold.\n")
      >>> out = model(tokens, capture=mj.Capture("block_out", layers=(2, 12), top_k=1, median=True))
      >>> stats = out.intermediates["block_out"]  # of layers 2 and 12
      >>> stats.top_values[:, 0, 0].round().tolist(), stats.top_dims[:, 0, 0].tolist()
      ([206.0, 23147.0], [507, 507])
    """

    sites: str | Sequence[str]
    layers: Sequence[int] | int | None = None
    top_k: int = 0
    median: bool = False
    max: bool = False
    mean: bool = False
    variance: bool = False
    kurtosis: bool = False
    mass: bool = False
    tensor: bool | None = None


@dataclasses.dataclass(frozen=True)
class Measure:
    r"""Asks for what a function makes of one or more sites of a block, computed inside it: only that is kept.

    Attributes:
      name: what the result is called in `Output.intermediates`; no site's name.
      sites: a site's name, or several, of those that every block has.
      fn: takes `tensors`, site -> its tensor after edits, zeros at padding, and under "positions" int32 [B, T] (or
        [1, T]), each token's place in its sequence, -1 for padding; and `data`. Gives arrays [B, …], in a tuple or a
        dict, say; they come back as [L', B, …]. It is traced once for each function and shape: define it outside of
        loops.
      data: arrays for `fn`, in a tuple or a dict, say; other numbers are not another compilation.
      layers: 1-based layers, in the order wanted; None for all.

    Examples:
      >>> import jax.numpy as jnp
      >>> def sink(tensors, data):  # how much of its attention each head gives to position 0
      ...     return tensors["attn_probs"][..., 0].mean(axis=-1)
      >>> tokens = model.tokenize("Summer is warm. Winter is cold.\n")
      >>> out = model(tokens, capture=mj.Measure("sink", "attn_probs", sink))
      >>> out.intermediates["sink"].shape  # layers, sequences, heads
      (30, 1, 9)
    """

    name: str
    sites: str | Sequence[str]
    fn: Callable[[Mapping[str, Any], Any], Any]
    data: Any = None
    layers: Sequence[int] | int | None = None


@dataclasses.dataclass(frozen=True)
class MeasureSpec:
    """Holds the compiled half of a `Measure`: the sites, the function, the number of layer slots."""

    sites: tuple[str, ...]
    fn: Callable[[Mapping[str, Any], Any], Any]
    num_slots: int


@dataclasses.dataclass(frozen=True)
class SiteSpec:
    """Holds the compiled half of one site's capture: the reductions, the tensor or not, the number of layer slots."""

    reductions: Reductions
    tensor: bool
    num_slots: int | None  # None for a site outside the blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CapturePlan:
    """Holds compiled captures.

    Attributes:
      specs: (site name, SiteSpec) pairs; static.
      slots: name of a site or measure -> int32 [L]: the slot that layer l + 1 is written to; `num_slots` (dropped) if
        not kept.
      measures: (name, MeasureSpec) pairs; static.
      data: name of a measure -> the arrays for its function.
    """

    specs: tuple[tuple[str, SiteSpec], ...] = dataclasses.field(default=(), metadata={"static": True})
    slots: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measures: tuple[tuple[str, MeasureSpec], ...] = dataclasses.field(default=(), metadata={"static": True})
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def spec(self, site: str) -> SiteSpec | None:
        """Gives the spec of `site`, or None when nothing of it is kept."""
        return dict(self.specs).get(site)

    @property
    def measured(self) -> frozenset[str]:
        """Gives the sites that measures read."""
        return frozenset(site for _, spec in self.measures for site in spec.sites)


Captures = Capture | Measure | Sequence[Capture | Measure]
"""What a forward pass may be asked to keep."""


def compile_captures(captures: Captures | None, num_layers: int, absent: Collection[str] = ()) -> CapturePlan:
    """Checks `captures` for a model with `num_layers` blocks that does not have the sites `absent`.

    Raises:
      ValueError: unknown, absent or repeated site, layer out of range or repeated, a negative k, `mass` of another
        site; a measure of no site, or of one outside the blocks, without a function, or with a name that is taken.
    """
    specs: dict[str, SiteSpec] = {}
    slots: dict[str, np.ndarray] = {}
    measures: dict[str, MeasureSpec] = {}
    data: dict[str, Any] = {}
    for capture in as_captures(captures):
        if isinstance(capture, Measure):
            if capture.name in measures:
                raise ValueError(f"Measure: the name {capture.name} is given twice.")
            measures[capture.name], slots[capture.name] = _compile_measure(capture, num_layers, absent)
            data[capture.name] = capture.data
            continue
        names = (capture.sites,) if isinstance(capture.sites, str) else _several("sites", capture.sites)
        whole_number("Capture: top_k", capture.top_k, 0)
        for field in dataclasses.fields(Reductions):
            if field.default is False:
                yes_or_no(f"Capture: {field.name}", getattr(capture, field.name))
        if capture.tensor is not None:
            yes_or_no("Capture: tensor", capture.tensor)
        layers = _layers("Capture", capture.layers, num_layers)
        for name in names:
            site = find_site(name)
            if name in absent:
                raise ValueError(f"Capture: this model has no site {name}.")
            if name in specs:
                raise ValueError(f"Capture: site {name} is asked for twice; merge the two captures.")
            if capture.mass and name != "attn_probs":
                raise ValueError(f"Capture: mass is a reduction of attn_probs, not of {name}.")
            reductions = Reductions(**{f.name: getattr(capture, f.name) for f in dataclasses.fields(Reductions)})
            tensor = not reductions if capture.tensor is None else capture.tensor
            if not tensor and not reductions:
                raise ValueError(f"Capture: {name} with tensor=False and no reduction keeps nothing.")
            specs[name] = SiteSpec(reductions, tensor, len(layers) if site.per_layer else None)
            if site.per_layer:
                slots[name] = _slots(layers, num_layers)
    return CapturePlan(tuple(specs.items()), slots, tuple(measures.items()), data)


def as_captures(captures: Any) -> tuple[Capture | Measure, ...]:
    """Gives `captures`, None, one or several, as a tuple; ValueError where one of them is something else."""
    found = () if captures is None else (captures,) if isinstance(captures, Capture | Measure) else several(captures)
    if found is None or not all(isinstance(capture, Capture | Measure) for capture in found):
        raise ValueError(f"capture is {shown(captures)}; give a Capture or a Measure, several in a list, or None.")
    return found


def _compile_measure(measure: Measure, num_layers: int, absent: Collection[str]) -> tuple[MeasureSpec, np.ndarray]:
    """Checks one measure: its spec and the slots of the layers."""
    if not isinstance(measure.name, str) or not measure.name or measure.name in ALL_SITES:
        raise ValueError(f"Measure: the name {shown(measure.name)} is no text, or a site's; choose another.")
    if not callable(measure.fn):
        raise ValueError(f"Measure {measure.name}: fn is {shown(measure.fn)}; give a function of tensors and data.")
    names = (measure.sites,) if isinstance(measure.sites, str) else _several("sites", measure.sites)
    outside = [name for name in names if not find_site(name).per_layer]
    if outside:
        raise ValueError(
            f"Measure {measure.name}: no block has a site {', '.join(outside)}; give those that every block has."
        )
    if lacking := [name for name in names if name in absent]:
        raise ValueError(f"Measure {measure.name}: this model has no site {', '.join(lacking)}.")
    layers = _layers(f"Measure {measure.name}", measure.layers, num_layers)
    return MeasureSpec(tuple(dict.fromkeys(names)), measure.fn, len(layers)), _slots(layers, num_layers)


def _layers(what: str, given: Any, num_layers: int) -> tuple[int, ...]:
    """The layers asked for, checked; all for None."""
    wanted = range(1, num_layers + 1) if given is None else (given,) if is_index(given) else given
    layers = check_layers(_several("layers", wanted), num_layers, what)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"{what}: layers {list(layers)} must name at least one layer and each only once.")
    return layers


def _slots(layers: Sequence[int], num_layers: int) -> np.ndarray:
    """Of every layer, where among `layers` it is kept: int32 [L]; their number for one that is not."""
    slots = np.full(num_layers, len(layers), np.int32)
    slots[np.asarray(layers) - 1] = np.arange(len(layers), dtype=np.int32)
    return slots


def _several(name: str, given: Any) -> tuple[Any, ...]:
    """Gives `given`, a list, a range or an array of sites or layers, as a tuple."""
    if (found := several(given)) is None or (name == "sites" and not found):
        raise ValueError(f"Capture: {name} is {shown(given)}; give one, or a list of them.")
    return found
