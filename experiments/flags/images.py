"""Images, for a vision model."""

from __future__ import annotations

from absl import flags

IMAGES = flags.DEFINE_string(
    "images", None, "An image, a folder of images, or a folder with a folder a class. Needs a vision --model."
)
NUM_IMAGES = flags.DEFINE_integer("num_images", 16, "How many of them, from the first.", lower_bound=1)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Side in pixels, in place of what the checkpoint's preprocessing gives.", lower_bound=1
)
