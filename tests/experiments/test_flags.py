"""Flags of all binaries together: absl keeps one list of a process, so no two may define one name."""

import importlib
import pkgutil

import jax
import pytest
from absl import flags

import experiments


def test_every_binary_can_be_imported_beside_the_others():
    names = [module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.ispkg]
    assert {"layerwise", "train_gpt2", "vit_registers", "explicit_bias"} <= set(names)
    for name in names:
        importlib.import_module(f"experiments.{name}")


@pytest.mark.parametrize(
    ("backend", "dtype", "arguments", "expected"),
    [
        ("cpu", "bfloat16", [], "xla"),
        ("gpu", "bfloat16", [], "cudnn"),
        ("gpu", "float32", [], "xla"),
        ("tpu", "bfloat16", [], "splash"),
        ("tpu", "float32", ["--attention_bias=kv"], "splash"),
        ("tpu", "float16", [], "xla"),
        ("tpu", "bfloat16", ["--attention_bias=sigmoid"], "xla"),
        ("tpu", "bfloat16", ["--mesh=4,1"], "xla"),
    ],
)
def test_the_kernel_is_one_that_the_machine_and_the_model_have(
    monkeypatch, clean_flags, backend, dtype, arguments, expected
):
    from experiments.flags import training

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    clean_flags()
    flags.FLAGS(["train_gpt2", *arguments])
    assert training.kernel(dtype) == expected
