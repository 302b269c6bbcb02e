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
from massive_jax.analysis.sinks import SINK_SHARE, SecondarySink, SinkCount, SinkGroup, find_secondary_sinks
from massive_jax.analysis.token_sets import mean_cosine, padded_sets, random_sets, uniform_share

__all__ = [
    "CLASSES",
    "DEFINITION",
    "FIRST_DELIMITER",
    "PARAMETERS",
    "SINK",
    "SINK_SHARE",
    "WEAK_WORDS",
    "EmergenceFit",
    "Interval",
    "Location",
    "Places",
    "RegisterMeans",
    "SecondarySink",
    "SinkCount",
    "SinkGroup",
    "Step",
    "Sums",
    "Thresholds",
    "attention_shares",
    "carrier",
    "class_of",
    "emergence_curve",
    "find_massive",
    "find_secondary_sinks",
    "fit_emergence",
    "full_size_layer",
    "matrix_entropy",
    "mean_cosine",
    "median_places",
    "median_sites",
    "null_interval",
    "padded_sets",
    "percentiles",
    "random_sets",
    "rank_locations",
    "resampled_means",
    "shares_alone",
    "sink_shares",
    "steps",
    "uniform_share",
    "uniform_sink_mass",
]
