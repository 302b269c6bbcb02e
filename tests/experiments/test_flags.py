"""Flags of all binaries together: absl keeps one list of a process, so no two may define one name."""

import dataclasses
import importlib
import pkgutil

import jax
import pytest
from absl import flags

import experiments
from massive_jax.models import NormConfig, kernels
from massive_jax.train import OptimizerConfig
from massive_jax.train.presets import PRESETS


def test_every_binary_can_be_imported_beside_the_others():
    names = [module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.ispkg]
    assert {"layerwise", "train_gpt2", "vit_registers", "explicit_bias"} <= set(names)
    for name in names:
        importlib.import_module(f"experiments.{name}")


@pytest.mark.parametrize(
    ("backend", "dtype", "arguments", "tokens", "expected"),
    [
        ("cpu", "bfloat16", [], 1024, "xla"),
        ("gpu", "bfloat16", [], 17, "cudnn"),
        ("gpu", "float32", [], 1024, "xla"),
        ("old gpu", "bfloat16", [], 1024, "xla"),
        ("tpu", "bfloat16", [], 1024, "splash"),
        ("tpu", "float32", ["--attention_bias=kv"], 128, "splash"),
        ("tpu", "float16", [], 1024, "xla"),
        ("tpu", "bfloat16", ["--attention_bias=sigmoid"], 1024, "xla"),
        ("tpu", "bfloat16", [], 17, "xla"),  # which it would compute as 128
    ],
)
def test_the_kernel_is_one_that_the_machine_and_the_model_have(
    monkeypatch, clean_flags, backend, dtype, arguments, tokens, expected
):
    from experiments.flags import training

    monkeypatch.setattr(jax, "default_backend", lambda: backend.split()[-1])
    capabilities = {"gpu": (9, 0), "old gpu": (7, 5)}
    monkeypatch.setattr(kernels, "cuda_capability", lambda: capabilities.get(backend))
    clean_flags()
    flags.FLAGS(["train_gpt2", *arguments])
    assert training.kernel(dtype, tokens) == expected


def test_the_schedule_goes_over_the_preset(clean_flags):
    from experiments.flags import training

    clean_flags()
    flags.FLAGS(["train_gpt2", "--learning_rate=0.01", "--warmup_steps=0", "--decay_steps=7"])
    found = training.optimizer(OptimizerConfig())
    assert found == OptimizerConfig(0.01, 0.001, warmup_steps=0, decay_steps=7)
    clean_flags()
    flags.FLAGS(["train_gpt2", "--learning_rate=0.01", "--final_learning_rate=0.01", "--weight_decay=0"])
    assert training.optimizer(OptimizerConfig()) == OptimizerConfig(0.01, 0.01, weight_decay=0.0)
    clean_flags()
    flags.FLAGS(["train_gpt2", "--optimizer=muon"])
    assert training.optimizer(OptimizerConfig()) == OptimizerConfig(kind="muon")


def test_options_of_the_model_go_over_the_preset(clean_flags):
    from experiments.flags import training

    preset = dataclasses.replace(
        PRESETS["small"], changes={"norm": {"kind": "rms"}, "tie_embeddings": False, "clip_residual": 50.0}
    )

    def model(*arguments):
        clean_flags()
        flags.FLAGS(["train_gpt2", *arguments])
        return preset.model(attention_bias=None, dtype="bfloat16", kernel="xla", **training.model_options())

    plain = model()
    assert plain.norm == NormConfig("rms", 1e-5, bias=False)
    assert (plain.tie_embeddings, plain.clip_residual, plain.dtype) == (False, 50.0, "bfloat16")
    words = ("--norm=dynamic_tanh", "--single_scale", "--norm_placement=output", "--value_scale=learned")
    assert model(*words, "--clip_residual=9") == dataclasses.replace(
        plain,
        norm=NormConfig("dynamic_tanh", 1e-5, bias=False, single_scale=True),
        norm_placement="output",
        value_scale="learned",
        clip_residual=9.0,
    )
    for changes, message in (
        ({"n_layer": 3}, "a TransformerConfig has no field n_layer; it has hidden_size, "),
        ({"norm": {"type": "rms"}}, "a norm has no field type; it has kind, eps"),
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
    ):
        with pytest.raises(ValueError, match=message):
            preset.model(attention_bias=None, dtype="float32", kernel="xla", **changes)
