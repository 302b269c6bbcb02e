"""An activation store: sites of a language model over a text, on disk, with exact masks of massive and sink tokens."""

from massive_jax.collect.collecting import collect_activations
from massive_jax.collect.places import KeptSite
from massive_jax.collect.quantiles import QUANTILES
from massive_jax.collect.shards import STORED_DTYPES
from massive_jax.collect.store import WHERE, ActivationStore

__all__ = [
    "QUANTILES",
    "STORED_DTYPES",
    "WHERE",
    "ActivationStore",
    "KeptSite",
    "collect_activations",
]
