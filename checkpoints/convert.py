"""Converts a model once into an Orbax checkpoint that loads fast, onto one device or a mesh.

  python -m checkpoints.convert --model=smollm2_135m --out=checkpoints/smollm2_135m
  python -m checkpoints.convert --model=meta-llama/Llama-2-7b-hf --dtype=bfloat16 --out=gs://BUCKET/llama2_7b

Streams: little more than one layer is in memory at a time. Killed half-way, it leaves nothing that loads; run it again.
The default model takes about 5 s and 540 MB on disk.
"""

from __future__ import annotations

import time

from absl import flags

from experiments import common
from experiments.flags import model, paths
from experiments.flags.processes import NAMES as PROCESSES
from massive_jax.loading import convert

_OUT = paths.define("out", None, "Where to write: a directory or gs://…; nothing may be there.", required=True)

if __name__ == "__main__":
    for name in ("model", "revision", "dtype", "allow_nonfinite", "traceback", *PROCESSES):
        flags.declare_key_flag(name)


def main() -> None:
    """Runs the binary."""
    started = time.monotonic()
    common.check_device()
    convert(
        model.MODEL.value,
        _OUT.value,
        dtype=model.DTYPE.value,
        revision=model.REVISION.value,
        allow_nonfinite=model.ALLOW_NONFINITE.value,
    )
    print(f"wrote {_OUT.value} in {time.monotonic() - started:.0f} s; load it with --model={_OUT.value}")


if __name__ == "__main__":
    common.run_experiment(main)
