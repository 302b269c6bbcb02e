"""The prompt, or several."""

from __future__ import annotations

from absl import flags

# The sentence of the paper's figures, for one start token and two delimiters.
DEFAULT_PROMPT = "Summer is warm. Winter is cold.\n"
PROMPT = flags.DEFINE_multi_string(
    "prompt", [DEFAULT_PROMPT], "The text to run the model on; layerwise takes several, each with its own --prompt."
)
flags.register_validator(PROMPT, lambda texts: all(texts), "the prompt has no tokens; give a text that is not empty.")
flags.register_validator(PROMPT, lambda texts: len({*texts}) == len(texts), "names a text twice.")


def one() -> str:
    """The prompt; ValueError where there are several."""
    if len(PROMPT.value) > 1:
        raise ValueError(f"--prompt is given {len(PROMPT.value)} times; this experiment takes one (layerwise several).")
    return str(PROMPT.value[0])
