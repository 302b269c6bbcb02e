"""Which layer."""

from __future__ import annotations

from absl import flags

LAYER = flags.DEFINE_string(
    "layer",
    "auto",
    "1-based: layer l is the output of block l. 'auto': where the largest activations first appear at full size "
    "(attention_map: the layer after, the first to attend to them). intervene also takes 'all': every layer, at the "
    "places of that one.",
)
flags.register_validator(
    LAYER,
    lambda text: text in ("auto", "all") or (text.isdecimal() and int(text) > 0),
    "give 'auto' or a layer, from 1 on.",
)


def everywhere() -> bool:
    """Whether every layer is asked for."""
    return LAYER.value == "all"


def check_one() -> None:
    """ValueError where every layer is asked for, by who takes one."""
    if everywhere():
        raise ValueError("--layer=all: here it is one layer; give 'auto' or a layer, from 1 on.")


def parse_layer(num_layers: int) -> int | None:
    """The layer asked for; None for auto and for all. ValueError where it is not a layer of the model."""
    if LAYER.value in ("auto", "all"):
        return None
    if int(LAYER.value) > num_layers:
        raise ValueError(f"--layer={LAYER.value}: give 'auto' or a layer of this model, 1 to {num_layers}.")
    return int(LAYER.value)
