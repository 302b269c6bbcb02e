"""Which layer."""

from __future__ import annotations

from absl import flags

LAYER = flags.DEFINE_string(
    "layer",
    "auto",
    "1-based layer: layer l is the output of block l. 'auto': where the largest activations first appear at full size.",
)


def parse_layer(num_layers: int) -> int | None:
    """The layer asked for; None for auto. ValueError where it is not a layer of the model."""
    text = LAYER.value
    if text == "auto":
        return None
    if not text.lstrip("-").isdecimal() or not 1 <= int(text) <= num_layers:
        raise ValueError(f"--layer={text}: give 'auto' or a layer of this model, 1 to {num_layers}.")
    return int(text)
