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

__all__ = [
    "Images",
    "LayerSummary",
    "LayerTable",
    "Operation",
    "PlaceInStream",
    "check_sites",
    "cosine_similarity",
    "features",
    "hidden_state",
    "input_length",
    "intervene",
    "measure_layers",
    "measure_of",
    "parse_sites",
    "perplexity",
    "site_means",
    "token_nll",
]
