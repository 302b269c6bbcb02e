"""What to keep of a forward pass, and where it is put.

A person writes `Capture`s; `compile_captures` checks them and splits them into what is compiled (which sites, which
reductions, how many layers) and what is data (which layers), so that asking for other layers never retraces.
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from massive_jax.probe.reduce import Reductions
from massive_jax.probe.sites import check_layers, find_site, is_index


@dataclasses.dataclass(frozen=True)
class Capture:
    """Asks for a site's tensor, or with any reduction for `Stats` of it.

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
class SiteSpec:
    """The compiled half of a capture of one site: the reductions, the tensor or not, the number of layer slots."""

    reductions: Reductions
    tensor: bool
    num_slots: int | None  # None for a site outside the blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CapturePlan:
    """Compiled captures.

    Attributes:
      specs: (site name, SiteSpec) pairs; static.
      slots: site name -> int32 [L]: the slot that layer l + 1 is written to; `num_slots` (dropped) if not kept.
    """

    specs: tuple[tuple[str, SiteSpec], ...] = dataclasses.field(default=(), metadata={"static": True})
    slots: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def spec(self, site: str) -> SiteSpec | None:
        """The spec of `site`, or None when nothing of it is kept."""
        return dict(self.specs).get(site)


def compile_captures(
    captures: Capture | Sequence[Capture] | None, num_layers: int, absent: Collection[str] = ()
) -> CapturePlan:
    """Checks `captures` for a model with `num_layers` blocks that does not have the sites `absent`.

    Raises:
      ValueError: unknown, absent or repeated site, layer out of range or repeated, a negative k, `mass` of another
        site.
    """
    captures = () if captures is None else (captures,) if isinstance(captures, Capture) else tuple(captures)
    specs: dict[str, SiteSpec] = {}
    slots: dict[str, np.ndarray] = {}
    for capture in captures:
        names = (capture.sites,) if isinstance(capture.sites, str) else tuple(capture.sites)
        if not is_index(capture.top_k) or capture.top_k < 0:
            raise ValueError(f"top_k is {capture.top_k!r}; give a number of values to keep, 0 or more.")
        given: Any = capture.layers
        wanted = range(1, num_layers + 1) if given is None else (given,) if is_index(given) else given
        layers = check_layers(wanted, num_layers, "Capture")
        if not layers or len(set(layers)) < len(layers):
            raise ValueError(f"Capture: layers {list(layers)} must name at least one layer and each only once.")
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
                slots[name] = np.full(num_layers, len(layers), np.int32)
                slots[name][np.asarray(layers) - 1] = np.arange(len(layers), dtype=np.int32)
    return CapturePlan(tuple(specs.items()), slots)
