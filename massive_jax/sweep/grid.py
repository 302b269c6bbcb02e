"""A grid of edits, written compactly. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from massive_jax.arguments import is_index, several, shown
from massive_jax.files import listed
from massive_jax.probe import Edit
from massive_jax.probe.sites import Site, find_site
from massive_jax.sweep.units import check_finite

EVERY = "every"
_AXES = {"layers": "layer", "positions": "position", "heads": "head", "keys": "key", "dims": "dim"}


@dataclasses.dataclass(frozen=True, eq=False)
class EditGrid:
    """Describes one edit in each cell of a grid of places: layers × positions × heads × keys × dims.

    Along each axis: "every" place there is; several, in a list; or None, for an axis that every edit covers whole.

    Attributes:
      site: where.
      layers: 1-based; left out for a site outside the blocks.
      positions: in a sequence's own tokens, negative ones from the end; rules by name. "every" is those that all
        sequences have.
      heads: of a site that has heads.
      keys: of attn_logits and attn_probs.
      dims: along the last axis.
      op: as of an `Edit`.
      value: as of an `Edit`, the same for each; or a capture's tensor with an axis of the grid's layers in front, each
        of which gives the value of its own layer.
      seed: as of an `Edit`.

    Examples:
      >>> mj.EditGrid("attn_out", positions=[0, 1, -1], value=0.0).positions
      [0, 1, -1]
    """

    site: str
    layers: Any = EVERY
    positions: Any = EVERY
    heads: Any = None
    keys: Any = None
    dims: Any = None
    op: Any = "set"
    value: Any = 0.0
    seed: int = 0

    def axes(self, sizes: Mapping[str, int], longest: int) -> dict[str, tuple[Any, ...]]:
        """Gives the places along each axis of the grid, by the name that an `Edit` has for it.

        Args:
          sizes: a size for every axis letter, and "L".
          longest: how many positions all sequences have.

        Raises:
          ValueError: an axis that the site does not have, or that is neither "every" nor several places; a place named
            twice, or out of range.
        """
        site, found = find_site(self.site), {}
        for plural, name in _AXES.items():
            given = getattr(self, plural)
            every = isinstance(given, str) and given == EVERY
            if plural == "layers" and every and not site.per_layer:
                continue
            if given is None:
                if plural == "layers" and site.per_layer:
                    raise ValueError(f"EditGrid: {site.name} is in every block; give layers, or 'every'.")
                continue
            if every:
                found[name] = self._every(site, name, sizes, longest)
                continue
            places = (given,) if is_index(given) or isinstance(given, str) else several(given)
            if not places or not all(is_index(place) or isinstance(place, str) for place in places):
                raise ValueError(f"EditGrid: {plural} is {shown(given)}; give 'every', several in a list, or None.")
            places = tuple(int(place) if is_index(place) else place for place in places)
            if twice := sorted({str(place) for place in places if places.count(place) > 1}):
                raise ValueError(f"EditGrid: {plural} names {', '.join(twice)} twice.")
            self._check_range(site, name, places, sizes, longest)
            found[name] = places
        return found

    def cells(self, axes: Mapping[str, tuple[Any, ...]]) -> Iterator[Edit]:
        """Gives the edit of each cell, the last axis first; `axes` as the method of that name gives.

        Raises:
          ValueError: a value with an axis in front that is not the grid's layers, or that is not finite.
        """
        check_finite(self.value, "EditGrid")
        values = self._values(axes)
        for places in itertools.product(*axes.values()):
            named = dict(zip(axes, places, strict=True))
            value = values[axes["layer"].index(named["layer"])] if isinstance(values, list) else values
            yield Edit(self.site, op=self.op, value=value, seed=self.seed, **named)

    def _every(self, site: Site, name: str, sizes: Mapping[str, int], longest: int) -> tuple[int, ...]:
        """All places along an axis."""
        if name == "layer":
            return tuple(range(1, sizes["L"] + 1)) if site.per_layer else ()
        axis = site.axis_of(name)
        if axis is None:
            raise ValueError(f"EditGrid: {site.name} has axes {site.axes} and no {name}; leave it out.")
        return tuple(range(longest if name == "position" else sizes[axis]))

    def _check_range(
        self, site: Site, name: str, places: Sequence[Any], sizes: Mapping[str, int], longest: int
    ) -> None:
        """ValueError of one line where numbers are out of range, which every cell of them would be."""
        every = self._every(site, name, sizes, longest)
        if not every:
            raise ValueError(f"EditGrid: {site.name} is outside the blocks: leave layers out.")
        least = -len(every) if name in ("position", "key") else every[0]
        if bad := [place for place in places if is_index(place) and not least <= place <= every[-1]]:
            there = {"position": "there are positions", "layer": "this model has layers"}
            words = there.get(name, f"{site.name} has {name}")
            raise ValueError(f"EditGrid: {name} {listed(bad)} is out of range; {words} {every[0]} to {every[-1]}.")

    def _values(self, axes: Mapping[str, tuple[Any, ...]]) -> Any:
        """The value of every cell; of every layer in a list where they differ."""
        value, site = self.value, find_site(self.site)
        if isinstance(value, np.ndarray | jax.Array):
            value = np.asarray(value)
            if site.per_layer and value.ndim == len(site.axes) + 1 and isinstance(self.op, str):
                if len(value) != len(axes["layer"]):
                    raise ValueError(
                        f"EditGrid: value has shape {value.shape}, of {len(value)} layers; the grid has "
                        f"{len(axes['layer'])}."
                    )
                return list(value)
        return value


EditUnits: TypeAlias = Sequence[Edit | Sequence[Edit]] | EditGrid
