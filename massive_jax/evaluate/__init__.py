"""Measurements on a model: layers, perplexity, interventions."""

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
    "LayerSummary",
    "LayerTable",
    "Operation",
    "PlaceInStream",
    "check_sites",
    "hidden_state",
    "intervene",
    "measure_layers",
    "parse_sites",
    "perplexity",
    "site_means",
    "token_nll",
]
