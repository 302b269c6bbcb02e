"""Parity with Hugging Face's PyTorch models: a table of every family, made by running the tests that compare them.

  python -m benchmarks.parity --out=benchmarks/PARITY.md

Every case of tests/zoo (tiny random models in usual and unusual settings) is run in float32 and once more in bfloat16
on both sides; the table has the worst relative error (norm of the difference over the norm) at any block's output, at
the logits (of a vision model without a head, the last hidden state), and at any site, over all cases of a family. Some
twenty minutes on two cores; --only="test_clip or test_dinov2 or test_dinov3 or test_vit", the vision families, two.
"""

from __future__ import annotations

import collections
import datetime
import pathlib
import platform
import sys
from typing import Any

import flax
import jax
import pytest
import torch
import transformers
from absl import app, flags

_OUT = flags.DEFINE_string("out", "benchmarks/PARITY.md", "Where to write the table.")
_ONLY = flags.DEFINE_string("only", "", "A pytest -k expression, to run some cases only.")

_TESTS = pathlib.Path(__file__).parents[1] / "tests"
_DTYPES = ("float32", "bfloat16")


class Recorder:
    """A pytest plugin that keeps what `parity.measure` finds, in both dtypes."""

    def __init__(self) -> None:
        self.errors: dict[tuple[str, str], dict[str, float]] = collections.defaultdict(dict)
        self.cases: collections.Counter[str] = collections.Counter()
        self._file: Any = None

    def pytest_collection_finish(self) -> None:
        from tests.fixtures import parity

        measure = parity.measure

        def recording(directory: Any, reference: Any, model: Any, *args: Any) -> Any:
            family = model.config.model_type
            self.cases[family] += 1
            found = measure(directory, reference, model, *args)
            self._keep(family, "float32", found[1])
            half = model.to(torch.bfloat16)
            self._keep(family, "bfloat16", measure(directory, reference, half, *args, dtype="bfloat16")[1])
            model.to(torch.float32)
            return found

        parity.measure = recording

    def pytest_runtest_teardown(self, nextitem: pytest.Item | None) -> None:
        # Every program compiled holds pieces of the address space, of which a process has only so many.
        if nextitem is not None and nextitem.fspath != self._file:
            self._file = nextitem.fspath
            jax.clear_caches()

    def _keep(self, family: str, dtype: str, errors: dict[str, float]) -> None:
        kept = self.errors[family, dtype]
        for site, error in errors.items():
            kept[site] = max(error, kept.get(site, 0.0))


def table(recorder: Recorder) -> str:
    """The table in Markdown, with versions and date."""
    only = f' --only="{_ONLY.value}"' if _ONLY.value else ""
    lines = [
        "# Parity with Hugging Face",
        "",
        f"Made by `python -m benchmarks.parity{only}` on {datetime.date.today().isoformat()}: Python "
        f"{platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}, transformers "
        f"{transformers.__version__}, torch {torch.__version__}, {jax.devices()[0].platform}.",
        "",
        "Worst relative error (‖ours − theirs‖ / ‖theirs‖) over all cases of a family's tests: tiny random models with",
        "perturbed norms and biases, usual and unusual settings. In bfloat16 both sides round, at different places.",
        "",
        "| family | cases | dtype | any block's output | logits or last hidden state | worst site | error there |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: |",
    ]
    for family in sorted(recorder.cases):
        for dtype in _DTYPES:
            errors = recorder.errors[family, dtype]
            site = max(errors, key=lambda name: errors[name])
            end = "logits" if "logits" in errors else "last_hidden"
            block, logits, worst = (f"{errors[name]:.1e}" for name in ("block_out", end, site))
            name = "logits, nothing captured" if site == "fused" else site
            lines.append(f"| {family} | {recorder.cases[family]} | {dtype} | {block} | {logits} | {name} | {worst} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    recorder = Recorder()
    # This process has imported what pytest would rewrite: no news, and no error.
    options = ["-p", "no:cacheprovider", "--timeout=0", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options += ["-m", "", "-k", _ONLY.value]  # the slow ones, too, as most settings of a family are
    status = pytest.main([str(_TESTS / "zoo"), str(_TESTS / "models" / "test_llama_parity.py"), *options], [recorder])
    if status != pytest.ExitCode.OK or not recorder.cases:
        sys.exit(f"the tests failed (status {status}); no table was written.")
    text = table(recorder)
    pathlib.Path(_OUT.value).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main)
