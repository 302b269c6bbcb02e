"""One side of `benchmarks.peers`, in a process and environment of its own; tasks come by standard input, a line each.

  python -m benchmarks.peers_worker KIND DIRECTORY

Needs torch and what KIND names only. Every task takes tokens int [B, T] and gives numbers that all sides must agree on.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

LAYER = 12  # of edits and of the one captured layer, 1-based
EDITS = 64  # dims set to zero at position 0, one an edit
_ROWS = 16  # edited at one time where all logits come with them
SWEEP_DIM, SWEEP_VALUE, SWEEP_TOKEN = 5, 30.0, 5  # what is set, to what, and the next token whose logit is the metric


class Ours:
    """This project."""

    def __init__(self, directory: str):
        """Loads the model."""
        import jax

        import massive_jax as mj

        self._mj, self._model = mj, mj.load(directory, progress=False)
        jax.block_until_ready(self._model.params)
        module = self._model.module

        def last_of(params: Any, edits: Any, tokens: Any) -> Any:
            return module.apply({"params": params, "edits": edits}, tokens, logits=False)[1][0, -1]

        self._swept = jax.jit(jax.vmap(last_of, in_axes=(None, 0, None)))

    def statistics(self, tokens: np.ndarray) -> np.ndarray:
        """Gives the largest magnitude and the median of every layer, [L, B, 2]."""
        capture = self._mj.Capture("block_out", top_k=3, median=True)
        stats = self._model(tokens, capture=capture, logits=False).intermediates["block_out"]
        return np.stack([np.abs(stats.top_values[..., 0]), stats.median], axis=-1)

    def layer(self, tokens: np.ndarray) -> np.ndarray:
        """Gives the output of one layer [B, T, D]."""
        capture = self._mj.Capture("block_out", layers=LAYER)
        return np.asarray(self._model(tokens, capture=capture, logits=False).intermediates["block_out"][0])

    def sweep(self, tokens: np.ndarray, layers: list[int], rows: int) -> np.ndarray:
        """Gives the logit of a next token after an edit in each of `layers` at each position: [layers × T].

        The others run `rows` edits of a layer at a time, rows of a batch.
        """
        grid = self._mj.EditGrid("block_out", layers=layers, dims=[SWEEP_DIM], value=SWEEP_VALUE)
        return self._model.sweep(tokens, grid, "logit", data=SWEEP_TOKEN).values.reshape(-1)

    def edits(self, tokens: np.ndarray) -> np.ndarray:
        """Gives the last hidden state of the last token after each edit, [64, D]."""
        from massive_jax.probe import stack_edits

        at = [self._mj.Edit("block_out", layer=LAYER, position=0, dim=dim, value=0.0) for dim in range(EDITS)]
        stacked = stack_edits([self._model.compile_edits(edit, tokens) for edit in at])
        return np.asarray(self._swept(self._model.params, stacked, tokens))


class Hooks:
    """PyTorch with hooks that reduce at once."""

    def __init__(self, directory: str):
        """Loads the model."""
        import torch
        import transformers

        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def _run(self, tokens: np.ndarray, hooks: dict[int, Any]) -> Any:
        handles = [self._model.model.layers[i].register_forward_hook(hook) for i, hook in hooks.items()]
        with self._torch.inference_mode():
            out = self._model.model(self._torch.from_numpy(tokens.astype(np.int64)), use_cache=False)
        for handle in handles:
            handle.remove()
        return out.last_hidden_state

    def statistics(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`."""
        found = []

        def hook(module: Any, inputs: Any, output: Any) -> None:
            found.append(reduced(output))

        self._run(tokens, dict.fromkeys(range(len(self._model.model.layers)), hook))
        return np.stack(found)

    def layer(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`."""
        found = []
        self._run(tokens, {LAYER - 1: lambda module, inputs, output: found.append(output)})
        return found[0].numpy()

    def edits(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`: a row of one batch each."""
        rows = self._torch.arange(EDITS)

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            output = output.clone()
            output[rows, 0, rows] = 0
            return output

        return self._run(np.repeat(tokens, EDITS, axis=0), {LAYER - 1: hook})[:, -1].numpy()

    def sweep(self, tokens: np.ndarray, layers: list[int], rows: int) -> np.ndarray:
        """See `Ours`: of the logits only those of the last tokens are computed."""
        found, head = [], self._model.lm_head.weight[SWEEP_TOKEN]
        for layer, at in _batches(layers, tokens.shape[1], rows):

            def hook(module: Any, inputs: Any, output: Any, at: Any = at) -> Any:
                output = output.clone()
                output[np.arange(len(at)), at, SWEEP_DIM] = SWEEP_VALUE
                return output

            last = self._run(np.repeat(tokens, len(at), axis=0), {layer - 1: hook})[:, -1]
            with self._torch.inference_mode():
                found.append((last @ head).numpy())
        return np.concatenate(found)


class Lens:
    """TransformerLens; a forward pass computes the logits."""

    def __init__(self, directory: str):
        """Loads the model."""
        import torch
        import transformers
        from transformer_lens.model_bridge import TransformerBridge

        self._torch = torch
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        self._bridge = TransformerBridge.boot_transformers(directory, hf_model=model.eval(), device="cpu")
        self._layers = model.config.num_hidden_layers

    def _run(self, tokens: np.ndarray, hooks: list[tuple[str, Any]]) -> None:
        with self._torch.inference_mode():
            ids = self._torch.from_numpy(tokens.astype(np.int64))
            self._bridge.run_with_hooks(ids, return_type="logits", fwd_hooks=hooks)

    def statistics(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`."""
        found = []

        def hook(value: Any, hook: Any) -> None:
            found.append(reduced(value))

        self._run(tokens, [(f"blocks.{i}.hook_out", hook) for i in range(self._layers)])
        return np.stack(found)

    def layer(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`."""
        found = []

        def keep(value: Any, hook: Any) -> None:
            found.append(value)

        self._run(tokens, [(f"blocks.{LAYER - 1}.hook_out", keep)])
        return found[0].numpy()

    def edits(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`: a row of a batch each, as many at one time as there is memory for their logits."""
        found = []
        for first in range(0, EDITS, _ROWS):
            rows = self._torch.arange(_ROWS)

            def zero(value: Any, hook: Any, rows: Any = rows, first: int = first) -> Any:
                value = value.clone()
                value[rows, 0, first + rows] = 0
                return value

            def keep(value: Any, hook: Any) -> None:
                found.append(value[:, -1].numpy())

            hooks = [(f"blocks.{LAYER - 1}.hook_out", zero), ("ln_final.hook_out", keep)]
            self._run(np.repeat(tokens, _ROWS, axis=0), hooks)
        return np.concatenate(found)

    def sweep(self, tokens: np.ndarray, layers: list[int], rows: int) -> np.ndarray:
        """See `Ours`: as many at one time as there is memory for their logits."""
        found = []
        for layer, at in _batches(layers, tokens.shape[1], min(rows, _ROWS)):

            def write(value: Any, hook: Any, at: Any = at) -> Any:
                value = value.clone()
                value[np.arange(len(at)), at, SWEEP_DIM] = SWEEP_VALUE
                return value

            with self._torch.inference_mode():
                ids = self._torch.from_numpy(np.repeat(tokens, len(at), axis=0).astype(np.int64))
                hooks = [(f"blocks.{layer - 1}.hook_out", write)]
                logits = self._bridge.run_with_hooks(ids, return_type="logits", fwd_hooks=hooks)
                found.append(logits[:, -1, SWEEP_TOKEN].numpy())
        return np.concatenate(found)


class Nnsight:
    """Nnsight, around the model without its head."""

    def __init__(self, directory: str):
        """Loads the model."""
        import torch
        import transformers
        from nnsight import NNsight, save

        self._torch, self._save = torch, save
        torch.set_grad_enabled(False)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().model
        model.config.use_cache = False
        self._layers, self._model = len(model.layers), NNsight(model)
        self._embedding = model.embed_tokens.weight  # the head is tied to it

    def statistics(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`."""
        model, ids, save = self._model, self._torch.from_numpy(tokens.astype(np.int64)), self._save
        with model.trace(ids):
            found = save([])
            for layer in model.layers:
                found.append(reduced(layer.output))
        return np.stack(list(found))

    def layer(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`."""
        model, ids, save = self._model, self._torch.from_numpy(tokens.astype(np.int64)), self._save
        with model.trace(ids):
            found = save(model.layers[LAYER - 1].output)
        return found.numpy()

    def edits(self, tokens: np.ndarray) -> np.ndarray:
        """See `Ours`: a row of one batch each."""
        model, rows, save = self._model, self._torch.arange(EDITS), self._save
        ids = self._torch.from_numpy(np.repeat(tokens, EDITS, axis=0).astype(np.int64))
        with model.trace(ids):
            edited = model.layers[LAYER - 1].output.clone()
            edited[rows, 0, rows] = 0
            model.layers[LAYER - 1].output = edited
            found = save(model.norm.output)
        return found[:, -1].numpy()

    def sweep(self, tokens: np.ndarray, layers: list[int], rows: int) -> np.ndarray:
        """See `Ours`: of the logits only those of the last tokens are computed."""
        model, save, kept = self._model, self._save, []
        for layer, at in _batches(layers, tokens.shape[1], rows):
            ids, batch = self._torch.from_numpy(np.repeat(tokens, len(at), axis=0).astype(np.int64)), np.arange(len(at))
            with model.trace(ids):
                edited = model.layers[layer - 1].output.clone()
                edited[batch, at, SWEEP_DIM] = SWEEP_VALUE
                model.layers[layer - 1].output = edited
                found = save(model.norm.output)
            kept.append((found[:, -1] @ self._embedding[SWEEP_TOKEN]).numpy())
        return np.concatenate(kept)


def _batches(layers: list[int], length: int, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each layer, and the positions that are run together."""
    return (
        (layer, np.arange(first, min(first + rows, length))) for layer in layers for first in range(0, length, rows)
    )


def reduced(hidden: Any) -> np.ndarray:
    """Gives the largest magnitude and the median of a torch tensor [B, T, D], [B, 2]; the top three are found."""
    magnitude = hidden.abs().flatten(1)
    return np.stack([magnitude.topk(3).values[:, 0].numpy(), magnitude.median(dim=1).values.numpy()], axis=-1)


KINDS = {"ours": Ours, "torch": Hooks, "transformer_lens": Lens, "nnsight": Nnsight}


def main(kind: str, directory: str) -> None:
    """Loads the model, says how long that took, and does tasks.

    {"task", "tokens"} (and "options") -> {"seconds", "checksum", "peak"} (and "values", of a sweep).
    """
    replies = sys.stdout
    sys.stdout = sys.stderr  # where libraries may print
    started = time.perf_counter()
    side = KINDS[kind](directory)
    print(json.dumps({"seconds": time.perf_counter() - started}), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        tokens = np.asarray(asked["tokens"], np.int32)
        started = time.perf_counter()
        found = getattr(side, asked["task"])(tokens, **asked.get("options", {}))
        seconds = time.perf_counter() - started
        reply: dict[str, Any] = {
            "seconds": seconds,
            "checksum": float(np.abs(found).astype(np.float64).sum()),
            "peak": _peak(),
        }
        if asked["task"] == "sweep":
            reply["values"] = found.tolist()
        print(json.dumps(reply), file=replies, flush=True)


def _peak() -> int | None:
    """Most bytes of memory that this process has held; None where Linux does not say."""
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return None if found is None else 1024 * int(found[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
