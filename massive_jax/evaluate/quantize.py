"""What a model's activations cost when they are quantised: each linear map's input, a scale per tensor."""

from __future__ import annotations

from massive_jax.arguments import whole_number
from massive_jax.models import TransformerConfig, VisionConfig
from massive_jax.probe import ALL_SITES, Edit

# What enters a linear map: queries, keys and values; attention's output projection; the MLP's two; the output head.
LINEAR_INPUTS = ("attn_norm", "head_out", "mlp_norm", "mlp_hidden", "final_norm")


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
