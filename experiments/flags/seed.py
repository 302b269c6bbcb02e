"""The seed."""

from absl import flags

SEED = flags.DEFINE_integer("seed", 0, "Of whatever is drawn at random.", lower_bound=0)
