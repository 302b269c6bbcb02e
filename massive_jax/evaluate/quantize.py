"""What a model costs when it is quantised: each linear map's input, and its weights, a scale per tensor."""

from __future__ import annotations

from massive_jax.arguments import whole_number
from massive_jax.model import Model
from massive_jax.models import TransformerConfig, VisionConfig
from massive_jax.probe import ALL_SITES, Edit
from massive_jax.quantize import LINEAR_INPUTS, round_weights


def quantized_inputs(config: TransformerConfig | VisionConfig, bits: int = 8) -> list[Edit]:
    """Makes edits that round every linear map's input to `bits` bits, one scale for a sequence's whole tensor.

    One massive activation sets the scale, and everything else is rounded away: why quantisation methods treat it apart.
    """
    bits = whole_number("bits", bits, 2, 16)
    return [
        Edit(site, layer="all" if ALL_SITES[site].per_layer else None, op="quantize", value=bits)
        for site in LINEAR_INPUTS
        if site not in config.absent_sites
    ]


def quantized_weights(model: Model, bits: int = 8) -> Model:
    """Gives `model` with every linear map's weights rounded to `bits` bits, one scale for a map of a layer.

    As `quantized_inputs` rounds: to the nearest of 2^bits - 1 evenly spaced numbers, up to the largest magnitude. The
    output head is a linear map, also where it is the embedding; tables, norms, biases and slots stay as they are.
    Weights on a mesh stay split as they are.

    Raises:
      ValueError: a number of bits that is not from 2 to 16.
    """
    return round_weights(model, whole_number("bits", bits, 2, 16))
