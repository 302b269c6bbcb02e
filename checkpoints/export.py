"""Writes a model as Hugging Face's transformers has it: config.json, safetensors, tokenizer or image processor.

  python -m checkpoints.export --model=smollm2_135m --out=smollm2_hf
  python -m checkpoints.export --model=RUN_DIRECTORY/model --dtype=bfloat16 --out=my_model

`AutoModelForCausalLM.from_pretrained("smollm2_hf")` computes the same. What transformers has no class for is refused.
The default model takes about 5 s and 540 MB on disk.
"""

from __future__ import annotations

import time

from absl import flags

from experiments import common
from experiments.flags import model, paths
from massive_jax.exporting import check_directory, export
from massive_jax.loading import load

_OUT = paths.define("out", None, "Where to write: a directory or gs://…; nothing may be there.", required=True)

if __name__ == "__main__":
    for name in ("model", "revision", "dtype", "allow_nonfinite", "traceback"):
        flags.declare_key_flag(name)


def main() -> None:
    """Runs the binary."""
    started = time.monotonic()
    common.check_device()
    check_directory(_OUT.value)
    found = load(
        model.MODEL.value,
        dtype=model.DTYPE.value,
        revision=model.REVISION.value,
        allow_nonfinite=model.ALLOW_NONFINITE.value,
    )
    out = export(found, _OUT.value, allow_nonfinite=model.ALLOW_NONFINITE.value)
    print(f"wrote {out} in {time.monotonic() - started:.0f} s; transformers and --model={out} load it")


if __name__ == "__main__":
    common.run_experiment(main)
