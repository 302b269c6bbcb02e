"""The definition of a massive activation."""

from absl import flags

from massive_jax.analysis import DEFINITION, Thresholds

MAGNITUDE = flags.DEFINE_float(
    "massive_magnitude", DEFINITION.magnitude, "Massive: a magnitude above this …", lower_bound=0.0
)
RATIO = flags.DEFINE_float(
    "massive_ratio", DEFINITION.ratio, "… and at least this many times the layer's median.", lower_bound=0.0
)


def thresholds() -> Thresholds:
    """The definition that the flags ask for."""
    return Thresholds(MAGNITUDE.value, RATIO.value)
