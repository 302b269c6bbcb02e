"""What becomes of an image's features and its classification. Axis letters: `massive_jax.probe.sites`; W width of a
model's one feature of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from massive_jax.evaluate.agreement import cosine_similarity
from massive_jax.evaluate.batches import Progress, edits_for
from massive_jax.inputs.images import ImageList
from massive_jax.model import ImageModel, Model
from massive_jax.parallel import fetch
from massive_jax.probe import Edit
from massive_jax.weights.linear_head import LinearHead

ImageBatches = Iterable[tuple[slice, np.ndarray]]
"""(which images, float32 [B, height, width, 3]), as `massive_jax.data.image_batches` gives."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageOutputs:
    """Holds what a model says of each of several images.

    Attributes:
      features: float32 [B, W], its one feature of each.
      logits: float32 [B, V]; None where it has no head.
    """

    features: np.ndarray
    logits: np.ndarray | None

    def top1(self, labels: np.ndarray) -> float:
        """Gives the fraction of the images whose largest logit is that of their label, int [B]."""
        if self.logits is None:
            raise ValueError("top-1 accuracy needs a model with a head.")
        labels = np.asarray(labels)
        if labels.shape != self.logits.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels are {labels.dtype}{list(labels.shape)}; give int[{len(self.logits)}], one an image."
            )
        return float(np.mean(self.logits.argmax(axis=-1) == labels))

    def cosine(self, other: ImageOutputs) -> float:
        """Averages over the images the cosine similarity of their features to `other`'s."""
        return float(cosine_similarity(self.features, other.features).mean())


def run_images(
    model: Model, batches: ImageBatches, edits: Edit | Sequence[Edit] | None = None, progress: Progress | None = None
) -> ImageOutputs:
    """Computes features and logits of all images under `edits`; `progress` gets every batch's number of images."""
    vision, features, logits = ImageModel.of(model), [], []
    for rows, images in batches:
        out = vision(images, edits=edits_for(edits, rows))
        features.append(np.asarray(fetch(out.pooled), np.float32))
        if out.logits is not None:
            logits.append(fetch(out.logits))
        if progress is not None:
            progress(len(images))
    if not features:
        raise ValueError("there are no images to run.")
    return ImageOutputs(np.concatenate(features), np.concatenate(logits) if logits else None)


def check_classes(model: Model, images: ImageList) -> None:
    """Raises a ValueError unless the images have as many classes as the model's head."""
    classes = ImageModel.of(model).config.num_classes
    if classes != len(images.classes):
        raise ValueError(
            f"the images have {len(images.classes)} classes, the model's head {classes or 'none'}: give a folder with "
            "one folder a class, sorted in the order of the head's classes."
        )


def attach_head(model: Model, head: LinearHead) -> ImageModel:
    """Gives `model` a linear classifier on its one feature.

    A head of width 2·D reads the class token and the mean of the patches after the final norm (DINOv2's); one of width
    D the feature that the model has already.

    Raises:
      ValueError: a head of another width.
    """
    vision = ImageModel.of(model)
    config = vision.config
    width, D = head.weight.shape[1], config.hidden_size
    if width == 2 * D and config.class_token:
        config = dataclasses.replace(config, pooling="class_and_patch_mean")
    elif width != D or config.pooling == "class_and_patch_mean":
        raise ValueError(
            f"the head reads features of width {width}; this model's tokens have width {D}: another model's."
        )
    config = dataclasses.replace(config, num_classes=len(head.bias))
    params = {**model.params, "head": jnp.asarray(head.weight), "head_bias": jnp.asarray(head.bias)}
    return vision.with_params(config, params)
