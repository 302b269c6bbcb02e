"""Images, for a vision model."""

from __future__ import annotations

from absl import flags

from experiments.flags import paths

IMAGES = paths.define(
    "images",
    None,
    "An image, a folder of images, a folder with a folder a class, or 'photo', a portrait that matplotlib ships. Needs "
    "a vision --model.",
)
NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    None,
    "How many of them, from the first; by default 16, or all where they are read as they are needed.",
    lower_bound=1,
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images read and run together.", lower_bound=1)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Side in pixels, in place of what the checkpoint's preprocessing gives.", lower_bound=1
)
