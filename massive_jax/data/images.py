"""The address that `massive_jax.inputs.images` had before; kept for scripts that import from here."""

from massive_jax.inputs.images import BUILT_IN_IMAGE, ImageList, ImageProcessor, list_images, read_image

__all__ = ["BUILT_IN_IMAGE", "ImageList", "ImageProcessor", "list_images", "read_image"]
