"""What `repr(model)` shows, and the table of a model's sites."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from massive_jax.cards import CardTable, as_html, card
from massive_jax.files import printable
from massive_jax.models import TransformerConfig, VisionConfig
from massive_jax.probe import ALL_SITES

if TYPE_CHECKING:
    from massive_jax.model import Model

_OPEN = "BTSP"  # axes whose size is the input's


class SiteRow(NamedTuple):
    """A site of a model: its name, the axes of what `Capture` gives, their sizes, and what it is."""

    site: str
    axes: str
    shape: str
    meaning: str


def site_table(config: TransformerConfig | VisionConfig) -> CardTable:
    """Gives the sites of a model, in the order of the forward pass.

    A shape has numbers for what the model fixes and letters (`massive_jax.probe.sites`) for what the input does. L is
    the number of layers that are captured, all of them unless told otherwise.
    """
    sizes: dict[str, Any] = config.sizes(1, 1) | {axis: axis for axis in _OPEN}
    return CardTable(
        tuple(
            SiteRow(
                site.name,
                _listed("L" * site.per_layer + site.axes),
                _listed([sizes[axis] for axis in "L" * site.per_layer + site.axes]),
                site.meaning,
            )
            for site in ALL_SITES.values()
            if site.name not in config.absent_sites
        )
    )


def model_card(model: Model) -> str:
    """Gives a model in at most 25 lines: what it is, how large, in which numbers, where, from where, and its sites."""
    config, leaves = model.config, jax.tree.leaves(model.params)
    count, size = sum(math.prod(x.shape) for x in leaves), sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    stored = sorted({str(x.dtype) for x in leaves})
    fields: dict[str, Any] = {
        "source": _source(model),
        "parameters": f"{count:,} in {' and '.join(stored)}, {_bytes(size)}, on {_devices(leaves)}",
        "activations": config.dtype,
        "blocks": _blocks(config),
        "positions": _positions(config),
        "attention bias": None if config.attention_bias is None else repr(config.attention_bias),
        "input": model.input_words(),
    }
    by_shape: dict[str, list[str]] = {}
    for row in site_table(config):
        by_shape.setdefault(row.shape, []).append(row.site)
    sites = {f"sites {shape}": ", ".join(names) for shape, names in by_shape.items()}
    return card(f"{model.title}: {model.kind} ({config.model_type})", fields | sites)


def _source(model: Model) -> str | None:
    if model.origin is None:
        return None
    place, weights = model.origin.place, model.origin.weights
    return printable(place if weights is None else f"{place}; {weights} weights")  # words of a checkpoint's metadata


def _devices(leaves: list[Any]) -> str:
    arrays = [x for x in leaves if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)]
    devices = {str(device) for x in arrays for device in x.sharding.device_set}
    return "the host" if not devices else min(devices) if len(devices) == 1 else f"{len(devices)} devices"


def _blocks(config: TransformerConfig | VisionConfig) -> str:
    heads = f"{config.num_heads} heads of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f" ({config.num_kv_heads} of keys and values)"
    experts = config.experts
    mixture = "" if experts is None else f", {experts.num_experts} experts of which a token takes {experts.num_chosen}"
    clipped = "" if config.clip_residual is None else f"; stream clipped to ± {config.clip_residual:g}"
    return (
        f"{config.num_layers} of width {config.hidden_size:,}: {heads}; {config.mlp} MLP of width "
        f"{config.intermediate_size:,} ({config.activation}){mixture}; {config.norm.kind} norm"
        f"{' of one scale' if config.norm.single_scale else ''}{'; V-scale' if config.value_scale else ''}{clipped}"
    )


def _positions(config: TransformerConfig | VisionConfig) -> str:
    kind: str = config.position
    if kind == "rope":
        kind = f"rotary, base {config.rope.theta:,g}"
        kind += "" if config.rope.kind == "default" else f", {config.rope.kind} scaling"
    window = "" if config.window is None else f"; windows of {config.window:,}"
    return kind + window + (" in some layers" if config.window_layers is not None else "")


def _listed(sizes: Any) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def html_card(model: Model) -> str:
    """Gives the card for a notebook, with the table of sites folded under it."""
    table = site_table(model.config)._repr_html_()
    return f"{as_html(model_card(model))}<details><summary>sites</summary>{table}</details>"
