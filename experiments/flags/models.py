"""Several models at once."""

from absl import flags

MODELS = flags.DEFINE_list("models", [], "Models, MODEL,MODEL,…: directories, zoo names, files.")
