"""Single-place edits by layer and position: this project, PyTorch with hooks, TransformerLens and nnsight, in turn.

  python -m benchmarks.sweep --environment=~/.cache/massive_jax/peers --repeats=3

Default model, 64 tokens, one dim of block_out set to a number, the metric a logit of the next token. Ours measures the
whole grid, layers × positions; the others, whose time for an edit is the same wherever it is, the layers --layers of
it. By hand they are made to run --rows positions of a layer in one batch (TransformerLens, which computes all logits,
16 at most); with --rows=1 one at a time, as their own patching loops do. All sides are processes with the same weights,
and take turns. Prints edits a minute, median over the repeats, and how far the
values are apart. See `benchmarks.peers` for the environment; needs 3 GB of memory a side.
"""

from __future__ import annotations

import contextlib
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.peers import Side, python_of

_TOKENS = flags.DEFINE_integer("tokens", 64, "Tokens of the prompt.", lower_bound=2)
_ROWS = flags.DEFINE_integer("rows", 64, "Edits that the peers run at one time.", lower_bound=1)
_LAYERS = flags.DEFINE_list("layers", ["8", "23"], "Of the peers' edits.")


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    layers = [int(layer) for layer in _LAYERS.value]
    python = python_of(pathlib.Path(flags.FLAGS.environment).expanduser())
    import massive_jax as mj
    from benchmarks.peer import torch_llama
    from massive_jax.data import cut_windows, load_text

    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        model = mj.load("smollm2_135m", progress=False)
        torch_llama(model).save_pretrained(directory)
        assert model.tokenizer is not None
        model.tokenizer.save(pathlib.Path(directory) / "tokenizer.json")
        tokens = cut_windows(model, load_text(), context=_TOKENS.value, windows=1).tokens
        every = list(range(1, model.config.num_layers + 1))
        del model
        sides: dict[str, Side] = {}
        for kind in flags.FLAGS.sides:
            side = Side(kind, pathlib.Path(directory), sys.executable if kind == "ours" else python)
            stack.callback(side.close)
            sides[kind] = side
        rates: dict[str, list[float]] = {kind: [] for kind in sides}
        values: dict[str, Any] = {}
        for repeat in range(flags.FLAGS.repeats + 1):
            for kind, side in sides.items():
                its = every if kind == "ours" else layers
                its = its if repeat or kind == "ours" else its[:1]
                seconds, _ = side.run("sweep", tokens, layers=its, rows=_ROWS.value)
                found = np.reshape(side.values, (len(its), -1))
                if repeat:
                    rates[kind].append(60 * found.size / seconds)
                    values[kind] = found[[layer - 1 for layer in layers]] if kind == "ours" else found
                print(f"{time.strftime('%H:%M:%S')} {kind}: {found.size} edits in {seconds:.1f} s", flush=True)
        print(f"\n{'':18}{'edits a minute':>16}{'all runs':>30}{'ours / its':>12}{'apart':>10}")
        ours = statistics.median(rates["ours"]) if "ours" in rates else float("nan")
        for kind, found in rates.items():
            rate, runs = statistics.median(found), ", ".join(f"{one:.0f}" for one in found)
            apart = np.abs(values[kind] - values.get("ours", values[kind])).max()
            print(f"{kind:18}{rate:16,.0f}{runs:>30}{ours / rate:12.2f}{apart:10.1e}")


if __name__ == "__main__":
    for name in ("environment", "repeats", "sides"):
        flags.declare_key_flag(name)
    app.run(main)
