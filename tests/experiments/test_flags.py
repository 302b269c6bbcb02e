"""Flags of all binaries together: absl keeps one list of a process, so no two may define one name."""

import importlib
import pkgutil

import experiments


def test_every_binary_can_be_imported_beside_the_others():
    names = [module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.ispkg]
    assert {"layerwise", "train_gpt2", "vit_registers", "explicit_bias"} <= set(names)
    for name in names:
        importlib.import_module(f"experiments.{name}")
