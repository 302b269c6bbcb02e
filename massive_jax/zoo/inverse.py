"""Writing a Hugging Face config: what the readers of `Fields` read, the other way round.

A family's `fields_of` says what transformers' class of it can say of a config, and no more: reading that back gives the
config again where it can say all, and another one where it cannot, which is how `massive_jax.zoo.target` tells.
Rotary settings are written as before transformers 5 (`rope_theta`, `rope_scaling`), which all its releases read.
"""

from __future__ import annotations

import math
from typing import Any

from massive_jax.models.config import BlockConfig, RopeConfig, TransformerConfig
from massive_jax.models.vision_config import VisionConfig
from massive_jax.zoo.fields import ACTIVATIONS, ROPE_SETTINGS

_TANH = "gelu_pytorch_tanh"  # of its three names the one that all families know


def blocks(
    config: BlockConfig,
    width: str = "hidden_size",
    layers: str = "num_hidden_layers",
    heads: str = "num_attention_heads",
    *,
    kv_heads: str | None = None,
    head_dim: str | None = None,
) -> dict[str, Any]:
    """Gives the fields that `Fields.blocks` reads."""
    found = {width: config.hidden_size, layers: config.num_layers, heads: config.num_heads}
    if kv_heads is not None:
        found[kv_heads] = config.num_kv_heads
    if head_dim is not None:
        found[head_dim] = config.head_dim
    return found


def activation(config: BlockConfig, field: str = "hidden_act") -> dict[str, Any]:
    """Gives the field of the MLP's activation; none for one that transformers has no name for."""
    names = [name for name, ours in ACTIVATIONS.items() if ours == config.activation]
    return {field: _TANH if _TANH in names else names[0]} if names else {}


def rope(
    config: TransformerConfig,
    *,
    theta_field: str = "rope_theta",
    partial_field: str | None = None,
) -> dict[str, Any]:
    """Gives the fields that `Fields.rope` reads; `partial_field` of a family that can turn a part of a head."""
    if config.position != "rope":
        return {}
    found: dict[str, Any] = {theta_field: config.rope.theta}
    if partial_field is not None:
        found[partial_field] = _partial(config.rope.rotary_dim or config.head_dim, config.head_dim)
    if config.rope.kind not in ("default", "factors"):  # the latter is of GGUF files
        found["rope_scaling"] = _scaling(config.rope)
    return found


def _scaling(rope: RopeConfig) -> dict[str, Any]:
    settings = {name: value for name in ROPE_SETTINGS[rope.kind] if (value := getattr(rope, name)) is not None}
    if rope.kind in ("llama3", "yarn"):
        settings["original_max_position_embeddings"] = rope.original_max_position
    return {"rope_type": rope.kind, **settings}


def _partial(rotary_dim: int, head_dim: int) -> float:
    """The factor that, times `head_dim` and rounded down, is `rotary_dim`."""
    factor = rotary_dim / head_dim
    return factor if int(head_dim * factor) == rotary_dim else math.nextafter(factor, 1.0)


def windows(config: BlockConfig) -> dict[str, Any]:
    """Gives the fields that `Fields.windows` reads; without a window, the class has one and no use for it."""
    kinds = {True: "sliding_attention", False: "full_attention"}
    types = {"layer_types": [kinds[windowed] for windowed in config.windowed_layers]}
    return types if config.window is None else {"sliding_window": config.window, **types}


def front_end(config: VisionConfig) -> dict[str, Any]:
    """Gives the fields that `massive_jax.zoo.images.front_end` reads."""
    height, width = config.image_size
    return {"image_size": height if height == width else [height, width], "patch_size": config.patch_size}


def labels(config: VisionConfig) -> dict[str, Any]:
    """Gives the labels of a classifier, which have no names here."""
    names = {str(i): f"LABEL_{i}" for i in range(config.num_classes)}
    return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
