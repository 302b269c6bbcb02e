"""The prompt."""

from absl import flags

# The sentence of the paper's figures, for one start token and two delimiters.
DEFAULT_PROMPT = "Summer is warm. Winter is cold.\n"
PROMPT = flags.DEFINE_string("prompt", DEFAULT_PROMPT, "The text to run the model on.")
flags.register_validator(PROMPT, bool, "the prompt has no tokens; give a text that is not empty.")
