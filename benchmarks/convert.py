"""Converting a Llama-2-7B-shaped bfloat16 checkpoint (random weights), against copying its files.

  python -m benchmarks.convert --directory=/tmp/convert_benchmark

Needs 3 × 13.5 GB of disk, and Linux. Prints the seconds of copying the files and of converting them, both until the
data is on the disk, and the peak memory of the converting process above that of an interpreter that has imported all.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

_DIRECTORY = flags.DEFINE_string("directory", None, "Where to work; must not exist, is removed.", required=True)
_LAYERS = flags.DEFINE_integer("layers", 32, "Layers of the model.")
_WIDTH = flags.DEFINE_integer("width", 4096, "Width; a multiple of 128.")

_CONVERT = r"""
import pathlib, re, sys
import jax, orbax.checkpoint, massive_jax.loading as loading
from orbax.checkpoint import v1
from absl import logging
logging.set_verbosity(logging.ERROR)
jax.numpy.zeros(1).block_until_ready()

def peak():  # of this program: getrusage's began with that of the process that started it
    return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

before = peak()
loading.convert(sys.argv[1], sys.argv[2], dtype="bfloat16", progress=False)
print(before, peak())
"""


def write_model(directory: pathlib.Path, layers: int, width: int) -> None:
    """A Hugging Face directory with random bfloat16 weights: a shard for four layers."""
    hidden, vocabulary = width * 43 // 16, 32000
    random = np.random.default_rng(0).standard_normal(1 << 22, np.float32) / 50

    def tensor(*shape: int) -> np.ndarray:
        return np.resize(random, shape).astype(ml_dtypes.bfloat16)

    index: dict[str, str] = {}

    def flush(number: int, tensors: dict[str, np.ndarray]) -> None:
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, directory / name)
        index.update(dict.fromkeys(tensors, name))

    flush(0, {"model.embed_tokens.weight": tensor(vocabulary, width), "lm_head.weight": tensor(vocabulary, width)})
    flush(1, {"model.norm.weight": tensor(width)})
    for first in range(0, layers, 4):
        tensors = {}
        for layer in range(first, min(first + 4, layers)):
            here = f"model.layers.{layer}."
            for name in "qkvo":
                tensors[f"{here}self_attn.{name}_proj.weight"] = tensor(width, width)
            for name in ("gate", "up"):
                tensors[f"{here}mlp.{name}_proj.weight"] = tensor(hidden, width)
            tensors[f"{here}mlp.down_proj.weight"] = tensor(width, hidden)
            for name in ("input", "post_attention"):
                tensors[f"{here}{name}_layernorm.weight"] = tensor(width)
        flush(2 + first // 4, tensors)
    config = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 128,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    root = pathlib.Path(_DIRECTORY.value)
    source = root / "source"
    source.mkdir(parents=True)
    try:
        write_model(source, _LAYERS.value, _WIDTH.value)
        gigabytes = sum(f.stat().st_size for f in source.iterdir()) / 1e9
        os.sync()
        started = time.perf_counter()
        shutil.copytree(source, root / "copy")
        os.sync()
        copying = time.perf_counter() - started
        shutil.rmtree(root / "copy")
        os.sync()
        started = time.perf_counter()
        command = [sys.executable, "-c", _CONVERT, str(source), str(root / "converted")]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        os.sync()
        converting = time.perf_counter() - started
        before, peak = (int(kib) / 2**20 for kib in printed.split()[-2:])
        print(f"{gigabytes:.1f} GB: copied in {copying:.1f} s, converted in {converting:.1f} s", end="")
        print(f" ({converting / copying:.2f} times as long)")
        print(f"peak memory {peak:.2f} GiB, {peak - before:.2f} GiB above the interpreter's {before:.2f}")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    app.run(main)
