r"""Massive activations in transformers: a Flax model zoo with taps, edits and explicit attention bias.

    import massive_jax as mj

    model = mj.load("smollm2_135m")
    tokens = model.tokenize("Summer is warm. Winter is cold.\n")
    out = model(tokens, capture=mj.Capture("block_out", layers=(12,), top_k=3, median=True))

See arXiv 2402.17762 for the phenomenon and README.md for the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from massive_jax import bias, zoo
    from massive_jax.compile_cache import keep_compiled
    from massive_jax.exporting import export
    from massive_jax.forward import Output
    from massive_jax.generate import generate
    from massive_jax.loading import convert, load, save
    from massive_jax.model import ImageModel, Model, TextModel
    from massive_jax.probe import Capture, Edit, Measure, PerToken, Stats
    from massive_jax.random_models import init
    from massive_jax.sweep import EditGrid, Sweep

__version__ = "0.1.0"
__all__ = [
    "Capture",
    "Edit",
    "EditGrid",
    "ImageModel",
    "Measure",
    "Model",
    "Output",
    "PerToken",
    "Stats",
    "Sweep",
    "TextModel",
    "bias",
    "convert",
    "export",
    "generate",
    "init",
    "keep_compiled",
    "load",
    "save",
    "zoo",
]

# Where each public name lives. Resolved on first use, so that `import massive_jax` costs next to nothing.
_HOMES = {
    "Capture": "massive_jax.probe",
    "Edit": "massive_jax.probe",
    "EditGrid": "massive_jax.sweep",
    "ImageModel": "massive_jax.model",
    "Measure": "massive_jax.probe",
    "Model": "massive_jax.model",
    "Output": "massive_jax.forward",
    "PerToken": "massive_jax.probe",
    "Stats": "massive_jax.probe",
    "Sweep": "massive_jax.sweep",
    "TextModel": "massive_jax.model",
    "convert": "massive_jax.loading",
    "export": "massive_jax.exporting",
    "init": "massive_jax.random_models",
    "keep_compiled": "massive_jax.compile_cache",
    "load": "massive_jax.loading",
    "save": "massive_jax.loading",
}
_ROOMS = (
    "analysis",
    "bias",
    "collect",
    "data",
    "evaluate",
    "files",
    "generate",  # can be called
    "inputs",
    "loading",
    "models",
    "parallel",
    "probe",
    "report",
    "sweep",
    "train",
    "weights",
    "zoo",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"massive_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
