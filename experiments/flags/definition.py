"""The definition of a massive activation."""

import math

from absl import flags

from massive_jax.analysis import DEFINITION, Thresholds

MAGNITUDE = flags.DEFINE_float(
    "massive_magnitude", DEFINITION.magnitude, "Massive: a magnitude above this and …", lower_bound=0.0
)
RATIO = flags.DEFINE_float(
    "massive_ratio", DEFINITION.ratio, "… above this many times the median magnitude of its layer.", lower_bound=0.0
)
for flag in (MAGNITUDE, RATIO):
    flags.register_validator(flag, math.isfinite, "give a finite number.")


def thresholds() -> Thresholds:
    """The definition that the flags ask for."""
    return Thresholds(MAGNITUDE.value, RATIO.value)
