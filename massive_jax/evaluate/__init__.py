"""Measurements on a model: layers, perplexity, interventions."""

from massive_jax.evaluate.agreement import Images, cosine_similarity, features, measure_of
from massive_jax.evaluate.batches import input_length
from massive_jax.evaluate.intervention import (
    Operation,
    PlaceInStream,
    check_sites,
    hidden_state,
    intervene,
    parse_sites,
    site_means,
)
from massive_jax.evaluate.layers import LayerSummary, LayerTable, measure_layers
from massive_jax.evaluate.perplexity import perplexity, token_nll
from massive_jax.evaluate.profile import Profile, measure_profile
from massive_jax.evaluate.quantize import quantized_inputs

__all__ = [
    "Images",
    "LayerSummary",
    "LayerTable",
    "Operation",
    "PlaceInStream",
    "Profile",
    "check_sites",
    "cosine_similarity",
    "features",
    "hidden_state",
    "input_length",
    "intervene",
    "measure_layers",
    "measure_of",
    "measure_profile",
    "parse_sites",
    "perplexity",
    "quantized_inputs",
    "site_means",
    "token_nll",
]
