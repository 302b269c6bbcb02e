"""Image processors that transformers has no PIL version of. Channels come first here, as in transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature, BitImageProcessorPil, ViTImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


class DINOv3ViTImageProcessorPil(ViTImageProcessorPil):
    """Preprocesses for DINOv3: rescales to [0, 1] before it resizes, so that nothing is rounded to 8 bits."""

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    def _preprocess(  # type: ignore[override]
        self, images, do_resize, size, resample, do_rescale, rescale_factor, **kwargs
    ) -> BatchFeature:
        floats = []
        for image in images:
            x = np.asarray(image, np.float32) * np.float32(rescale_factor if do_rescale else 1)
            if do_resize:
                planes = [Image.fromarray(plane).resize((size.width, size.height), resample) for plane in x]
                x = np.stack([np.asarray(plane) for plane in planes])
            floats.append(x)
        done: dict[str, Any] = {"do_resize": False, "do_rescale": False}
        return super()._preprocess(
            floats, size=size, resample=resample, rescale_factor=rescale_factor, **done, **kwargs
        )


class TimmImageProcessorPil(BitImageProcessorPil):
    """Preprocesses as timm evaluates, with torchvision: its crop rounds where transformers' rounds down."""

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    def center_crop(self, image, size, **kwargs):  # type: ignore[override]
        top, left = round((image.shape[1] - size.height) / 2), round((image.shape[2] - size.width) / 2)
        return image[:, top : top + size.height, left : left + size.width]
