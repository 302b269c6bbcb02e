"""The lm-evaluation-harness's tasks on the default model: ours against the harness's own `hf` model, in one run.

  python -m benchmarks.harness --items=48 --repeats=3

Questions of four answers, paragraphs, and texts to be continued, all made of the text that CPython ships. Both sides
answer the same requests in float32 from the same weights, in turn; first once unmeasured, which for ours compiles.
Prints seconds (median over repeats; wall and of the processor), the ratios, how long the unmeasured run of ours took,
and how far the log-likelihoods are apart. `hf` takes --hf_batch sequences at a time, of the sizes it is given the best.
One more side, for the numbers and not for the time, is `hf` with its softmax in float64.
Needs `pip install -e '.[test-all]'`.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
import torch
from absl import app, flags

import massive_jax as mj
from benchmarks.peer import torch_llama
from tests.fixtures.harness_tasks import NAMES, write_tasks

EXACT = "hf, exact softmax"  # in float64: torch's in float32 adds 1e-5 to every token

_ITEMS = flags.DEFINE_integer("items", 48, "Questions; a quarter as many paragraphs and texts.", lower_bound=4)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each side.")
_BATCH = flags.DEFINE_list("hf_batch", ["8", "32"], "Batch sizes of `hf`.")


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from massive_jax.evaluate.lm_eval import HarnessLM, task_manager

    model = mj.load("smollm2_135m", progress=False)
    assert model.tokenizer is not None
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        torch_llama(model).save_pretrained(root / "peer")
        model.tokenizer.save_directory(root / "peer")
        names, manager = task_manager(NAMES, str(write_tasks(root / "tasks", _ITEMS.value, _ITEMS.value // 4)))
        peer = {"pretrained": str(root / "peer"), "device": "cpu", "dtype": "float32"}
        sides: dict[str, Any] = {"ours": HarnessLM(model)}
        sides |= {f"hf, {size} at a time": HFLM(**peer, batch_size=int(size)) for size in _BATCH.value}
        sides[EXACT] = HFLM(**peer, batch_size=8, softmax_dtype="float64")
        requests: dict[str, list[Any]] = {}
        for name, task in manager.load(names)["tasks"].items():
            task.build_all_requests()
            requests[name] = task.instances
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, lm_eval {lm_eval.__version__}, {jax.devices()[0]}, "
        f"{torch.get_num_threads()} threads; {time.strftime('%Y-%m-%d')}"
    )
    for name, its in requests.items():
        kind = its[0].request_type
        seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        answers: dict[str, Any] = {}
        for run in range(_REPEATS.value + 1):
            for side, lm in sides.items():
                if side == EXACT and run:
                    continue
                wall, processor = time.perf_counter(), time.process_time()
                answers[side] = getattr(lm, kind)(its, disable_tqdm=True)
                seconds[side].append((time.perf_counter() - wall, time.process_time() - processor))
        print(f"\n{name}: {len(its)} requests; ours with compiling {seconds['ours'][0][0]:.1f} s")
        print(f"{'':22}{'wall':>8}{'processor':>11}{'its / ours':>12}{'by run':>22}{'of processor':>14}{'apart':>10}")
        print(f"{EXACT:22}{_apart(answers[EXACT], answers['ours']):>77}", flush=True)
        for side, found in seconds.items():
            if side == EXACT:
                continue
            medians = [statistics.median(run[which] for run in found[1:]) for which in (0, 1)]
            both = [zip(one, ours, strict=True) for one, ours in zip(found[1:], seconds["ours"][1:], strict=True)]
            ratios, of_processor = np.array([[its / ours for its, ours in pairs] for pairs in both]).T
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            apart = _apart(answers[side], answers["ours"])
            print(
                f"{side:22}{medians[0]:8.1f}{medians[1]:11.1f}{np.median(ratios):12.2f}{each:>22}"
                f"{np.median(of_processor):14.2f}{apart:>10}",
                flush=True,
            )


def _apart(one: list[Any], other: list[Any]) -> str:
    """How far answers are apart: the largest difference of log-likelihoods, or how many texts differ."""
    if isinstance(one[0], str):
        return f"{sum(a != b for a, b in zip(one, other, strict=True))} texts"
    return f"{max(np.abs(np.subtract(a, b)).max() for a, b in zip(one, other, strict=True)):.1e}"


if __name__ == "__main__":
    app.run(main)
