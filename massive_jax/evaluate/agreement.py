"""What an intervention does to a vision model: how far its outputs stay those of the unedited one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import shown
from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import Progress, batches, checked_inputs, edits_for, input_length
from massive_jax.evaluate.perplexity import check_windows, window_nll
from massive_jax.evaluate.scores import Scores
from massive_jax.model import ImageModel, Model
from massive_jax.parallel import fetch
from massive_jax.probe import Edit

Measure = Callable[[Sequence[Edit], Progress | None], float]
"""Edits and progress -> a number."""
Scorer = Callable[[Sequence[Edit] | None, Progress | None], Scores]
"""Edits and progress -> what every window or image scores."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Holds preprocessed images.

    Attributes:
      inputs: float32 [B, height, width, 3].
      names: of the B images.
    """

    inputs: np.ndarray
    names: tuple[str, ...]


NOTICEABLE = 1e-4  # of their norm: a difference of logits above this is counted


@dataclasses.dataclass(frozen=True)
class LogitsAgreement:
    """Says how far the logits of one model are from another's.

    Attributes:
      largest_difference: of any logit at any position.
      relative_difference: the largest of any position, of its logits' norm.
      positions: how many were compared.
      beyond: how many of them differ by more than `NOTICEABLE` of their norm.
    """

    largest_difference: float
    relative_difference: float
    positions: int
    beyond: int


def measure_of(model: Model, data: Windows | Images, progress: Progress | None = None) -> tuple[str, Measure]:
    """Gives what interventions are judged by, and its name.

    Of a text "perplexity". Of images a comparison with the unedited model, from -1 or 0 to 1: with a head
    "top1_agreement", the share of images whose most likely class stays, otherwise "cosine_similarity" of the pooled
    features, averaged over the images. The unedited model is run here.
    """
    metric, scorer = scorer_of(model, data, progress)
    return metric, lambda edits, progress: scorer(edits, progress).value


def scorer_of(model: Model, data: Windows | Images, progress: Progress | None = None) -> tuple[str, Scorer]:
    """Gives what `measure_of` does, as what every window or image scores."""
    check_data(model, data)
    if isinstance(data, Windows):
        return "perplexity", lambda edits, progress: window_nll(model, data, edits, progress)
    reference = features(model, data.inputs, progress=progress)
    metric = "top1_agreement" if ImageModel.of(model).config.num_classes else "cosine_similarity"

    def score(edits: Sequence[Edit] | None, progress: Progress | None) -> Scores:
        found = features(model, data.inputs, edits, progress)
        if metric == "top1_agreement":
            agreement = np.asarray(found.argmax(axis=-1) == reference.argmax(axis=-1), np.float64)
        else:
            agreement = cosine_similarity(found, reference)
        return Scores(metric, agreement, np.ones(len(agreement), int))

    return metric, score


def check_data(model: Model, data: Windows | Images) -> None:
    """Raises a ValueError where `data` is neither windows nor images, or nothing that `model` can take."""
    if isinstance(data, Windows):
        check_windows(model, data)
    elif isinstance(data, Images):
        checked_inputs(ImageModel.of(model), data.inputs)
    else:
        raise ValueError(f"data is {shown(data)}; give Windows, as `cut_windows` makes, or Images.")


def features(
    model: Model, images: np.ndarray, edits: Sequence[Edit] | None = None, progress: Progress | None = None
) -> np.ndarray:
    """Computes float32 logits [B, V] of images [B, height, width, 3]; without a head, pooled features [B, W]."""
    images, found = checked_inputs(ImageModel.of(model), images), []
    for rows, batch in batches(images, progress, input_length(model, images)):
        out = model(batch, edits=edits_for(edits, rows))
        found.append(np.asarray(fetch(out.pooled if out.logits is None else out.logits), np.float32))
    return np.concatenate(found)


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compares the rows of two arrays: [B, W], [B, W] -> [B]; NaN where a row is all zeros, without direction.

    Examples:
      >>> from massive_jax.evaluate import cosine_similarity
      >>> cosine_similarity(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 0.0], [0.0, 3.0]])).round(3).tolist()
      [1.0, 0.707]
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim < 1:
        raise ValueError(f"features {list(a.shape)} beside {list(b.shape)}: give as many of one width.")
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.sum(a * b, axis=-1) / np.where(norms > 0, norms, np.nan)


def compare_logits(
    model: Model, behind: np.ndarray, explicit: Model, tokens: np.ndarray, progress: Progress | None = None
) -> LogitsAgreement:
    """Measures how far the logits of `explicit` on tokens [W, T] are from the model's on [W, prefix + T], at all T."""
    largest, relative = [], []
    for i in range(len(tokens)):  # one window at a time: logits are the vocabulary's width
        ours = jnp.asarray(explicit(tokens[i : i + 1]).logits)[0]
        expected = jnp.asarray(model(behind[i : i + 1]).logits)[0, -len(ours) :]
        difference = ours - expected  # reduced where they are: only a number a position comes to the host
        largest.append(float(jnp.abs(difference).max()))
        relative.append(fetch(jnp.linalg.norm(difference, axis=-1) / jnp.linalg.norm(expected, axis=-1)))
        if progress is not None:
            progress(len(ours) + behind.shape[1])
    by_position = np.concatenate(relative)
    return LogitsAgreement(
        max(largest), float(by_position.max()), by_position.size, int(np.sum(by_position > NOTICEABLE))
    )
