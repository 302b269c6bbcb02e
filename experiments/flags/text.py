"""A longer text, and how it is cut into windows."""

from absl import flags

TEXT = flags.DEFINE_string(
    "text",
    "python",
    "A UTF-8 file; 'python' (English prose that CPython ships, no download); or a dataset: wikitext2, c4, pg19 from "
    "the hub, or NAME:DIRECTORY for a local copy in the hub's layout.",
)
CONTEXT = flags.DEFINE_integer("context", 512, "Tokens of text in a window.", lower_bound=1)
WINDOWS = flags.DEFINE_integer(
    "windows",
    None,
    "How many windows of the text, from its start. layerwise: without it, the prompt is run; interventions: 4.",
    lower_bound=1,
)
