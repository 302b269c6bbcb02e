"""Which sites and layers a store keeps, and the model that has no more blocks than that takes.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from massive_jax.arguments import shown
from massive_jax.model import Model
from massive_jax.probe import ALL_SITES, Capture, Captures


@dataclasses.dataclass(frozen=True)
class KeptSite:
    """Names a site that a store keeps a row of for every token.

    Attributes:
      site: its name.
      layer: 1-based; None for a site outside the blocks.
      shape: of a row: the site's axes without batch and position.
    """

    site: str
    layer: int | None
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Gives what its rows are called in a store: "block_out.12", or "embed"."""
        return self.site if self.layer is None else f"{self.site}.{self.layer}"

    def rows(self, tensor: np.ndarray) -> np.ndarray:
        """Gives a row a token, in order: the site's tensor [B, …] -> [B·T, …]."""
        moved = np.moveaxis(tensor, ALL_SITES[self.site].axes.index("T"), 1)
        return moved.reshape(-1, *moved.shape[2:])


def kept_sites(model: Model, captures: Captures, T: int) -> tuple[KeptSite, ...]:
    """Gives the sites that `captures` ask for, layer by layer.

    Raises:
      ValueError: no captures, a reduction or a `Measure` among them; see also `massive_jax.probe.compile_captures`.
    """
    plan = model.compile_captures(captures)
    if plan.measures or any(spec.reductions for _, spec in plan.specs) or not plan.specs:
        raise ValueError(
            f"captures is {shown(captures)}; a store keeps whole tensors: give Capture(site, layers=…), without "
            "reductions, one or several in a list."
        )
    sizes, found = model.config.input_sizes((1, T)), []
    for name, spec in plan.specs:
        axes = ALL_SITES[name].axes
        shape = tuple(sizes[axis] for axis in axes if axis not in "BT")
        if spec.num_slots is None:
            found.append(KeptSite(name, None, shape))
        else:
            layers = np.flatnonzero(plan.slots[name] < spec.num_slots) + 1
            found += [KeptSite(name, int(layer), shape) for layer in layers]
    return tuple(found)


def masked_layers(kept: Sequence[KeptSite], num_layers: int) -> tuple[int, ...]:
    """Gives the layers whose massive and sink tokens are marked: those kept; block 1 for what is before the blocks."""
    outside = {"embed": 1}
    return tuple(sorted({site.layer or outside.get(site.site, num_layers) for site in kept}))


def captures_of(kept: Sequence[KeptSite]) -> list[Capture]:
    """Gives one `Capture` a site, its layers in ascending order."""
    layers: dict[str, list[int]] = {}
    for site in kept:
        layers.setdefault(site.site, []).extend([] if site.layer is None else [site.layer])
    return [Capture(name, layers=sorted(its) or None) for name, its in layers.items()]


def shortened(model: Model, num_layers: int) -> Model:
    """Gives the model of the first blocks only, whose parameters are copied: what comes after them is not computed."""
    config = model.config
    if num_layers == config.num_layers:
        return model
    windowed = None if config.window_layers is None else config.window_layers[:num_layers]
    first = dataclasses.replace(config, num_layers=num_layers, window_layers=windowed)
    return model.with_params(first, {**model.params, "layers": _first(model.params["layers"], num_layers)})


@functools.partial(jax.jit, static_argnames=("num_layers",))
def _first(layers: Any, num_layers: int) -> Any:
    return jax.tree.map(lambda a: a[:num_layers], layers)
