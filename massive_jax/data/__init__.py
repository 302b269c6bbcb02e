"""Text and image input: sources, windows, preprocessing."""

from massive_jax.data.image_batches import image_batches
from massive_jax.data.labelled import FASHION_MNIST, LabelledImages, load_labelled
from massive_jax.data.text import BUILT_IN, DATASETS, load_text, text_name
from massive_jax.data.windows import Windows, cut_windows, text_windows
from massive_jax.inputs.images import BUILT_IN_IMAGE, ImageList, ImageProcessor, list_images, read_image

__all__ = [
    "BUILT_IN",
    "BUILT_IN_IMAGE",
    "DATASETS",
    "FASHION_MNIST",
    "ImageList",
    "ImageProcessor",
    "LabelledImages",
    "Windows",
    "cut_windows",
    "image_batches",
    "list_images",
    "load_labelled",
    "load_text",
    "read_image",
    "text_name",
    "text_windows",
]
