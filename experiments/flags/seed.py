"""The seed."""

from absl import flags

from massive_jax.arguments import SEEDS

SEED = flags.DEFINE_integer("seed", 0, "Of whatever is drawn at random.", lower_bound=0, upper_bound=SEEDS - 1)
