"""Pure functions on captured arrays: what is massive, where, and what attends to it."""

from massive_jax.analysis.attention import attention_shares, sink_shares
from massive_jax.analysis.bootstrap import Interval, percentiles, resampled_means
from massive_jax.analysis.census import (
    CLASSES,
    SINK,
    WEAK_WORDS,
    Places,
    Step,
    Sums,
    class_of,
    matrix_entropy,
    null_interval,
    steps,
    uniform_sink_mass,
)
from massive_jax.analysis.effects import carrier, shares_alone
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
    "CLASSES",
    "DEFINITION",
    "FIRST_DELIMITER",
    "PARAMETERS",
    "SINK",
    "WEAK_WORDS",
    "EmergenceFit",
    "Interval",
    "Location",
    "Places",
    "RegisterMeans",
    "Step",
    "Sums",
    "Thresholds",
    "attention_shares",
    "carrier",
    "class_of",
    "emergence_curve",
    "find_massive",
    "fit_emergence",
    "full_size_layer",
    "matrix_entropy",
    "median_places",
    "median_sites",
    "null_interval",
    "percentiles",
    "rank_locations",
    "resampled_means",
    "shares_alone",
    "sink_shares",
    "steps",
    "uniform_sink_mass",
]
