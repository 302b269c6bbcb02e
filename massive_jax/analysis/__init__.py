"""Pure functions on captured arrays: what is massive, where, and what attends to it."""

from massive_jax.analysis.attention import attention_shares, sink_shares
from massive_jax.analysis.emergence import PARAMETERS, EmergenceFit, emergence_curve, fit_emergence
from massive_jax.analysis.massive import (
    DEFINITION,
    FIRST_DELIMITER,
    Location,
    Thresholds,
    find_massive,
    full_size_layer,
    median_places,
    median_sites,
    rank_locations,
)
from massive_jax.analysis.registers import RegisterMeans

__all__ = [
    "DEFINITION",
    "FIRST_DELIMITER",
    "PARAMETERS",
    "EmergenceFit",
    "Location",
    "RegisterMeans",
    "Thresholds",
    "attention_shares",
    "emergence_curve",
    "find_massive",
    "fit_emergence",
    "full_size_layer",
    "median_places",
    "median_sites",
    "rank_locations",
    "sink_shares",
]
