"""Many images a few at a time: read and preprocessed by grain's threads while the model runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from massive_jax.arguments import several, shown, whole_number
from massive_jax.inputs.images import stack_images

_THREADS = 16  # at most; decoding and resizing run outside Python's lock


def image_batches(
    paths: Sequence[str | os.PathLike[str]],
    processor: Callable[[Any, int | None], np.ndarray],
    batch_size: int,
    *,
    size: int | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Reads the images at `paths`, in order: (which of them, float32 [B, H, W, 3]).

    Every batch has `batch_size` images except a smaller last one, so a model is compiled for two shapes at most.

    Args:
      paths: image files (see `read_image`).
      processor: an `ImageProcessor`, or a model's `preprocess`: (path, size) -> float32 [1, H, W, 3].
      batch_size: images a batch.
      size: side of the images, in place of the checkpoint's.

    Raises:
      ValueError: no paths, a batch size below 1, or an image that cannot be read or does not fit its batch, when its
        turn comes.
    """
    import grain

    batch_size = whole_number("batch_size", batch_size)
    files = several(paths)
    if files is None:
        raise ValueError(f"paths is {shown(paths)}; give a list of image files.")
    if batch_size < 1 or not files:
        raise ValueError(f"{len(files)} images in batches of {batch_size}: at least one of each is needed.")
    options = grain.ReadOptions(num_threads=min(_THREADS, os.cpu_count() or 1), prefetch_buffer_size=2 * batch_size)
    images = grain.MapDataset.source(list(files)).map(lambda path: processor(path, size)[0]).to_iter_dataset(options)
    start = 0
    for batch in images.batch(batch_size, drop_remainder=False, batch_fn=stack_images):
        yield slice(start, start + len(batch)), batch
        start += len(batch)
