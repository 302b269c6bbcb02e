"""The sites: the closed list of places in a network that can be read and edited.

Axis letters, here and in every file that names them:
  B batch, T query position, S key position, D width, H heads, K key/value heads, N head width, F MLP width,
  V vocabulary, E experts, L layers; P patches of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from massive_jax.arguments import is_index, shown

# What a person calls an index along each axis (fields of `Edit`, keys of `Stats.top_indices`).
AXIS_NAMES: Mapping[str, str] = {
    "T": "position",
    "P": "position",
    "S": "key",
    "H": "head",
    "K": "head",
    "D": "dim",
    "N": "dim",
    "F": "dim",
    "V": "dim",
    "E": "dim",
}


@dataclasses.dataclass(frozen=True)
class Site:
    """Describes one tappable tensor: its name, its axes, and whether every layer has one."""

    name: str
    axes: str
    per_layer: bool
    meaning: str

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Gives the shape of the tensor, from a size for every axis letter.

        Examples:
          >>> from massive_jax.probe import SITES
          >>> SITES["query"].shape(model.config.sizes(2, 7))  # [B, T, H, N]
          (2, 7, 9, 64)
        """
        return tuple(sizes[axis] for axis in self.axes)

    def axis_of(self, name: str) -> str | None:
        """Gives the axis letter that `name` (position, key, head, dim) indexes at this site, or None."""
        return next((axis for axis in self.axes[1:] if AXIS_NAMES[axis] == name), None)


SITES: Mapping[str, Site] = {
    site.name: site
    for site in (
        Site("embed", "BTD", False, "the input of block 1: the token embedding, `hidden_states[0]`"),
        Site("attn_norm", "BTD", True, "after the norm before attention"),
        Site("query", "BTHN", True, "queries, before the rotary embedding"),
        Site("key", "BTKN", True, "keys, before the rotary embedding"),
        Site("value", "BTKN", True, "values"),
        Site("attn_logits", "BHTS", True, "what enters the softmax, q·k/√d for most models, float32, before the mask"),
        Site("attn_probs", "BHTS", True, "attention probabilities in float32"),
        Site("head_out", "BTHN", True, "per-head mixture of values: what enters the output projection"),
        Site("attn_out", "BTD", True, "attention output, as added to the residual stream"),
        Site("mid", "BTD", True, "residual stream after the attention residual"),
        Site("mlp_norm", "BTD", True, "after the norm before the MLP"),
        Site("mlp_hidden", "BTF", True, "what enters the MLP's down projection"),
        Site("mlp_out", "BTD", True, "MLP output, as added to the residual stream"),
        Site("block_out", "BTD", True, "residual stream after the block: the paper's hidden state"),
        Site("final_norm", "BTD", False, "after the final norm: `last_hidden_state`"),
        Site("logits", "BTV", False, "next-token logits in float32"),
    )
}

# Sites of a vision model; the language models do not have them.
VISION_SITES: Mapping[str, Site] = {
    "patch_embed": Site("patch_embed", "BPD", False, "embedding of the patches alone, before the positions are added"),
}

# Sites of a mixture of experts; the other models do not have them.
EXPERT_SITES: Mapping[str, Site] = {
    site.name: site
    for site in (
        Site("router_probs", "BTE", True, "mixture of experts: the router's probabilities over all experts, float32"),
        Site(
            "expert_weights", "BTE", True, "weight of each expert in a token's output; 0 for those not chosen, float32"
        ),
    )
}
ALL_SITES: Mapping[str, Site] = {**SITES, **EXPERT_SITES, **VISION_SITES}

ATTENTION_SITES = ("attn_logits", "attn_probs")
WIDE_SITES = frozenset({*ATTENTION_SITES, *EXPERT_SITES, "logits"})


def find_site(name: str) -> Site:
    """Finds the site called `name`; ValueError with the whole list where there is none."""
    if not isinstance(name, str) or name not in ALL_SITES:
        raise ValueError(f"unknown site {shown(name)}; the sites are {', '.join(ALL_SITES)}.")
    return ALL_SITES[name]


def check_layers(layers: Iterable[int], num_layers: int, what: str) -> tuple[int, ...]:
    """Gives `layers` as a tuple, each checked to be a 1-based layer of a model with `num_layers` blocks."""
    layers = tuple(layers)
    bad = [layer for layer in layers if not is_index(layer) or not 1 <= layer <= num_layers]
    if bad:
        raise ValueError(
            f"{what}: layer {', '.join(map(shown, bad))} is out of range; this model has layers 1 to {num_layers} "
            "(layer l is the output of block l)."
        )
    return tuple(int(layer) for layer in layers)
