"""Several models."""

from __future__ import annotations

from collections.abc import Iterable

from absl import flags

from experiments.flags import model, paths
from massive_jax.loading import check

MODELS = flags.DEFINE_list("models", [], "Models, MODEL,MODEL,…: directories, zoo names, files; in place of --model.")
paths.look_at(MODELS)


def names() -> list[str]:
    """The models asked for.

    Raises:
      ValueError: --model beside --models; one twice; one that cannot be loaded, so far as that shows before the first
        has run.
    """
    found = [name.strip() for name in MODELS.value]
    if found and flags.FLAGS["model"].present:
        raise ValueError("--model has no effect beside --models; leave one of them out.")
    if "" in found or len(set(found)) < len(found):
        raise ValueError(f"--models={','.join(found)} names a model twice, or none between two commas.")
    check_all(found)
    return found or [model.MODEL.value]


def check_all(found: Iterable[str]) -> None:
    """ValueError where one cannot be loaded, so far as that shows before the first has run."""
    for name in found:
        check(name, dtype=model.DTYPE.value, revision=model.REVISION.value)
