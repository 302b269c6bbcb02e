"""Several models."""

from __future__ import annotations

from absl import flags

from experiments.flags import model

MODELS = flags.DEFINE_list("models", [], "Models, MODEL,MODEL,…: directories, zoo names, files; in place of --model.")


def names() -> list[str]:
    """The models asked for; ValueError where --model is given beside --models, or one twice."""
    found = [name.strip() for name in MODELS.value]
    if found and flags.FLAGS["model"].present:
        raise ValueError("--model has no effect beside --models; leave one of them out.")
    if "" in found or len(set(found)) < len(found):
        raise ValueError(f"--models={','.join(found)} names a model twice, or none between two commas.")
    return found or [model.MODEL.value]
