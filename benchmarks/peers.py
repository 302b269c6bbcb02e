"""This project, PyTorch with careful hooks, TransformerLens and nnsight on the same work, in turn, default model.

  python -m benchmarks.peers --environment=~/.cache/massive_jax/peers --repeats=5

The peers run in an environment of their own, made in --environment by the first run (it installs torch,
transformer_lens and nnsight from the package index); each side is a process that loads the same Hugging Face directory,
written from the default model, and stays. Prints a line a task with the median seconds of each side, and how far their
results are apart; then the seconds of loading and the peak of memory. Tasks: the three largest magnitudes and the
median of every layer; one layer's output; 64 edits of one activation each. TransformerLens computes logits with each.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import venv
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.peers_worker import EDITS, KINDS, LAYER

_ENVIRONMENT = flags.DEFINE_string("environment", "~/.cache/massive_jax/peers", "Where the peers are installed.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each, after one that is not.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 4, "Sequences of the first two tasks.")
_CONTEXT = flags.DEFINE_integer("context", 512, "Their tokens.")
_SIDES = flags.DEFINE_list("sides", list(KINDS), "Which to run.")

_PACKAGES = ("torch==2.13.0", "transformers>=5.9", "transformer_lens>=4", "nnsight>=0.8")


class Side:
    """A process with a model."""

    def __init__(self, kind: str, directory: pathlib.Path, python: str):
        """Starts it, and waits until the model is loaded."""
        # Nothing is to be looked up on a hub.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers_worker", kind, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if kind != "ours" else None,
            text=True,
            env=environment,
        )
        self.load_seconds: float = self._reply()["seconds"]
        self.peak: int | None = None
        self.values: list[float] | None = None  # of a sweep

    def run(self, task: str, tokens: np.ndarray, **options: Any) -> tuple[float, float]:
        """Does a task: seconds and checksum."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, "tokens": tokens.tolist(), "options": options}) + "\n")
        self._process.stdin.flush()
        reply = self._reply()
        self.peak, self.values = reply["peak"], reply.get("values")
        return reply["seconds"], reply["checksum"]

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        said = self._process.communicate()[1] or "see above"
        raise RuntimeError(f"{self._process.args[3]} ended: {said.strip().splitlines()[-1]}")  # type: ignore[index]


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    if unknown := [kind for kind in _SIDES.value if kind not in KINDS]:
        raise app.UsageError(f"--sides has {', '.join(unknown)}; known: {', '.join(KINDS)}.")
    python = python_of(pathlib.Path(_ENVIRONMENT.value).expanduser())
    import massive_jax as mj
    from benchmarks.peer import torch_llama
    from massive_jax.data import cut_windows, load_text

    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        model = mj.load("smollm2_135m", progress=False)
        torch_llama(model).save_pretrained(directory)
        assert model.tokenizer is not None
        model.tokenizer.save(pathlib.Path(directory) / "tokenizer.json")  # TransformerLens wants one
        tokens = cut_windows(model, load_text(), context=_CONTEXT.value, windows=_BATCH.value).tokens
        short = tokens[:1, : min(64, _CONTEXT.value)]
        del model
        sides: dict[str, Side] = {}
        for kind in _SIDES.value:
            try:
                side = Side(kind, pathlib.Path(directory), sys.executable if kind == "ours" else python)
            except RuntimeError as error:
                print(error)
                continue
            stack.callback(side.close)
            sides[kind] = side
        tasks = {
            f"top-3 and median, all layers, {_BATCH.value} × {_CONTEXT.value}": ("statistics", tokens),
            f"output of layer {LAYER}, {_BATCH.value} × {_CONTEXT.value}": ("layer", tokens),
            f"{EDITS} edits, {short.shape[0]} × {short.shape[1]}": ("edits", short),
        }
        print(f"{'seconds':42}" + "".join(f"{kind:>18}" for kind in sides) + f"{'apart':>10}")
        for words, (task, given) in tasks.items():
            found: dict[str, list[float]] = {kind: [] for kind in sides}
            sums: dict[str, float] = {}
            for repeat in range(_REPEATS.value + 1):
                for kind, side in list(sides.items()):
                    seconds, sums[kind] = side.run(task, given)
                    if repeat:
                        found[kind].append(seconds)
            apart = (max(sums.values()) - min(sums.values())) / max(sums.values())
            print(f"{words:42}" + "".join(f"{statistics.median(s):18.3f}" for s in found.values()) + f"{apart:10.1e}")
        print(f"{'loading':42}" + "".join(f"{side.load_seconds:18.2f}" for side in sides.values()))
        peaks = ("?" if side.peak is None else f"{side.peak / 2**20:,.0f}" for side in sides.values())
        print(f"{'peak memory, MiB':42}" + "".join(f"{peak:>18}" for peak in peaks))


def python_of(directory: pathlib.Path) -> str:
    """The interpreter of the peers' environment, made if need be."""
    python, done = directory / "bin" / "python", directory / "installed"
    if not done.is_file() or done.read_text() != " ".join(_PACKAGES):
        print(f"Installing {', '.join(_PACKAGES)} in {directory}.", flush=True)
        venv.create(directory, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *_PACKAGES], check=True)
        done.write_text(" ".join(_PACKAGES))
    return str(python)


if __name__ == "__main__":
    app.run(main)
