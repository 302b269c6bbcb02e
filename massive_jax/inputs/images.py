"""Image input: files and folders of images, and a checkpoint's own preprocessing.

Axis letters: see `massive_jax.probe.sites`; here H and W are an image's height and width.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_jax.arguments import is_index, shown
from massive_jax.files import as_path, existing_path, listed, one_line, printable, read_json_object
from massive_jax.inputs.image_settings import FILE, MAX_SIDE, TIMM, TYPE, check, from_timm, is_side, kind_of

if TYPE_CHECKING:
    from PIL import Image

BUILT_IN_IMAGE = "photo"  # a portrait that every matplotlib ships: an image that needs no download
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_OWN = ("DINOv3ViTImageProcessor", TIMM)  # in `transforms`; the others are transformers'


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Preprocesses images as a checkpoint describes it: resize, crop, rescale and normalise, with PIL and numpy.

    Attributes:
      options: the fields of a `preprocessor_config.json`, `image_processor_type` among them.

    Raises:
      ValueError: a kind of processor that is not known, or values of wrong types or out of range (sizes: 1 to 8192
        pixels); it names all of them.
    """

    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        check(self.options)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> ImageProcessor | None:
        """Reads the image processor of a Hugging Face directory; None where it has none.

        From `preprocessor_config.json` (or the `image_processor` of `processor_config.json`), or the `pretrained_cfg`
        of a timm `config.json`. Code that a checkpoint brings along is never run.

        Raises:
          ValueError: damaged JSON, or a kind of processor that is not known.
        """
        directory = existing_path(path, "Checkpoint directory", ("*.json",))
        config = read_json_object(directory / "config.json") if (directory / "config.json").is_file() else {}
        nested = directory / "processor_config.json"
        fields = read_json_object(nested).get("image_processor") if nested.is_file() else None
        if fields is None and (directory / FILE).is_file():
            fields = read_json_object(directory / FILE)
        try:
            if fields is not None:
                kind = kind_of(fields, config)
                return cls({**fields, TYPE: kind})
            if isinstance(config.get("pretrained_cfg"), dict):
                return cls(from_timm(config["pretrained_cfg"]))
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from None
        return None

    def to_json(self) -> str:
        """Writes the processor as text, for `from_json`."""
        return json.dumps(dict(self.options))

    @classmethod
    def from_json(cls, text: str) -> ImageProcessor:
        """Reads the processor that `to_json` wrote; ValueError where `text` is not one."""
        try:
            options = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not an image processor: {error}.") from None
        if not isinstance(options, dict):
            raise ValueError(f"not an image processor: expected a JSON object, got {type(options).__name__}.")
        return cls(options)

    def __call__(self, images: Any, size: int | None = None) -> np.ndarray:
        """Makes images ready for a model.

        Args:
          images: one or several of: a path, a PIL image, an array uint8 [H, W], [H, W, 3] or [H, W, 4]; or one array
            uint8 [B, H, W, 3]. Grey, alpha and 16-bit ones are converted as `read_image` says.
          size: side of the square result, in place of the checkpoint's; what it resizes to before cropping changes in
            proportion.

        Returns:
          float32 [B, H, W, 3].

        Raises:
          ValueError: not an image (see `read_image`); float pixels; images that come out in different sizes, or larger
            than memory; a `size` that is not a number of pixels, or that this processor cannot give.
        """
        changes: dict[str, Any] = {} if size is None else self._resized(size)
        pixels = [self._pixels(image, changes) for image in _as_list(images)]
        if not pixels:
            raise ValueError("there are no images to preprocess.")
        out = [
            self._backend(image, input_data_format="channels_last", **changes)["pixel_values"][0] for image in pixels
        ]
        return stack_images([np.moveaxis(x, 0, -1) for x in out])

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """Turns what `__call__` gave into a picture again: float32 [B, H, W, 3] -> uint8 of the same shape."""
        backend = self._backend
        x = images
        if backend.do_normalize:
            x = x * np.asarray(backend.image_std, np.float32) + np.asarray(backend.image_mean, np.float32)
        if backend.do_rescale:
            x = x / backend.rescale_factor
        return np.rint(np.clip(x, 0, 255)).astype(np.uint8)

    @functools.cached_property
    def _backend(self) -> Any:
        """What does the work: transformers' class of that name on PIL and numpy, or one of `transforms`."""
        kind = self.options[TYPE]
        if kind in _OWN:
            from massive_jax.inputs import transforms as module
        else:
            import transformers as module  # type: ignore[no-redef]
        options = {name: value for name, value in self.options.items() if name != TYPE}
        try:
            return getattr(module, f"{kind}Pil")(**options)
        except (TypeError, ValueError) as error:
            given = one_line(self.to_json(), 200)
            raise ValueError(f"{kind}: transformers cannot build it from {given}: {one_line(error)}.") from None

    def _pixels(self, given: Any, changes: Mapping[str, Any]) -> np.ndarray:
        """An image as uint8 [H, W, 3]; ValueError where resizing would give more pixels than the largest square."""
        backend = self._backend
        image = _as_image(given)
        edge = dict(changes.get("size", backend.size or {})).get("shortest_edge")
        if backend.do_resize and edge and edge * edge * max(image.size) > MAX_SIDE * MAX_SIDE * min(image.size):
            raise ValueError(
                f"an image of {image.width} by {image.height} pixels is too long a strip: with a short edge of {edge}"
                f" it would have more than {MAX_SIDE} by {MAX_SIDE} pixels. Crop it first."
            )
        return np.asarray(image)

    def _resized(self, side: int) -> dict[str, Any]:
        """The options that make the result `side` × `side` pixels."""
        if not is_index(side) or not is_side(operator.index(side)):
            raise ValueError(f"an image size of {shown(side)}: give a whole number of pixels, 1 to {MAX_SIDE}.")
        side = operator.index(side)
        backend = self._backend
        if not backend.do_resize:
            raise ValueError("this checkpoint's preprocessing does not resize; leave the size out.")
        resize = {name: pixels for name, pixels in dict(backend.size).items() if pixels is not None}
        if not backend.do_center_crop:
            return {"size": dict.fromkeys(resize, side)}
        crop = backend.crop_size.height
        scaled = {name: max(1, round(pixels * side / crop)) for name, pixels in resize.items()}
        if not all(is_side(pixels) for pixels in scaled.values()):
            raise ValueError(
                f"an image size of {side}: before it is cropped the image would be resized to {max(scaled.values())}"
                f" pixels; at most {MAX_SIDE}."
            )
        return {"size": scaled, "crop_size": {"height": side, "width": side}}


def stack_images(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks preprocessed images [H, W, 3] as one batch, float32 [B, H, W, 3]; ValueError where sizes differ."""
    shapes = sorted({x.shape[:2] for x in images})
    if len(shapes) > 1:
        raise ValueError(
            f"the images come out in sizes {listed(shapes)}: this checkpoint keeps their proportions. "
            "Run them one at a time, or crop them alike first."
        )
    return np.ascontiguousarray(np.stack(images), np.float32)


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Lists image files, in a fixed order.

    Attributes:
      paths: of the images.
      labels: int32 [B] of a class folder, indices into `classes`; None otherwise.
      classes: names of the classes, sorted; empty where there are no labels.
    """

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def first(self, count: int | None) -> ImageList:
        """Gives the first `count` of them; all for None. The classes stay."""
        labels = None if self.labels is None else self.labels[:count]
        return ImageList(self.paths[:count], labels, self.classes)


def list_images(path: str | os.PathLike[str]) -> ImageList:
    """Lists the images at `path`: a file, a folder of images or of a folder a class (as ImageNet's), or "photo".

    Images of a folder are sorted by name, classes too; those of a class may lie in folders of their own. A file counts
    as an image by its suffix (`SUFFIXES`); hidden files and folders do not count.

    Raises:
      ValueError: nothing is there; no image in the folder, or in one of its classes; images beside folders of images.
    """
    if path == BUILT_IN_IMAGE and not as_path(path).exists():
        import matplotlib

        return ImageList((pathlib.Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg"),))
    root = existing_path(path, "Image file or folder", tuple(f"*{suffix}" for suffix in SUFFIXES))
    if root.is_file():
        return ImageList((root,))
    if not root.is_dir():
        raise ValueError(f"{printable(root)} is neither a file nor a folder; name an image or a folder of images.")
    top = _images_in(root)
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    classes = {folder.name: _images_in(folder, deep=True) for folder in folders}
    if not top and not any(classes.values()):
        raise ValueError(
            f"no images in {printable(root)}: expected files that end in {', '.join(SUFFIXES)}, or a folder a class."
        )
    if top and any(classes.values()):
        raise ValueError(
            f"{printable(root)} has images and folders of images; name one of the folders, or move the images away."
        )
    if top:
        return ImageList(tuple(top))
    empty = [name for name, found in classes.items() if not found]
    if empty:
        raise ValueError(f"{printable(root)}: no images in the class folder{'s' * (len(empty) > 1)} {listed(empty)}.")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(found) for found in classes.values()])
    return ImageList(tuple(p for found in classes.values() for p in found), labels, tuple(classes))


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Reads the image at `path` as RGB, 8 bits a channel, turned upright as its EXIF orientation says.

    Grey becomes three equal channels; transparency is laid on white, as transformers' processors do; 16-bit grey is
    scaled to 8 bits (÷ 257); of an animation the first frame counts.

    Raises:
      ValueError: no such file, not an image, truncated or damaged, or of a kind without a defined range of values.
    """
    from PIL import Image, UnidentifiedImageError

    found = existing_path(path, "Image")
    if found.is_dir():
        raise ValueError(f"{printable(found)} is a folder; name an image, or list the folder with `list_images`.")
    if not found.is_file():  # reading a pipe waits for a writer
        raise ValueError(f"{printable(found)} is no file (a pipe or a device); name an image.")
    try:
        with Image.open(found) as image:
            _check_pixels(image)
            image.load()
            return _to_rgb(image)
    except UnidentifiedImageError:
        raise ValueError(f"{printable(found)} is not an image that Pillow can read.") from None
    except Exception as error:  # decoders raise whatever they stumble on; each means that the image cannot be had
        raise ValueError(
            f"{printable(found)} cannot be read: {one_line(error)}. The file is damaged, truncated or not supported."
        ) from None


def _check_pixels(image: Image.Image) -> None:
    """ValueError for an image without pixels, or with so many that it may be a decompression bomb."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if 0 in image.size or (limit is not None and image.width * image.height > limit):
        raise ValueError(
            f"an image of {image.width} by {image.height} pixels; expected 1 to {limit} pixels"
            " (PIL.Image.MAX_IMAGE_PIXELS)"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """`image` as upright 8-bit RGB; see `read_image`."""
    from PIL import Image, ImageOps

    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PNG"):  # PNG has at most 16 bits
        upright = Image.fromarray(np.rint(np.asarray(upright).astype(np.float32) / 257).astype(np.uint8))
    if upright.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {upright.mode!r} have no fixed range; save the image with 8 or 16 bits")
    if upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(opaque, upright.convert("RGBA"))
    return upright.convert("RGB")


def _as_image(image: Any) -> Image.Image:
    from PIL import Image

    if isinstance(image, Image.Image):
        _check_pixels(image)
        try:
            return _to_rgb(image)
        except Exception as error:  # a lazy image is decoded now
            raise ValueError(f"an image cannot be read: {one_line(error)}.") from None
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    try:
        x = np.asarray(image)
    except Exception:
        x = np.asarray(None)
    if x.dtype != np.uint8 or x.size == 0 or not (x.ndim == 2 or (x.ndim == 3 and x.shape[-1] in (3, 4))):
        given = type(image).__name__ if x.dtype == object else f"{x.dtype}{list(x.shape)}"
        raise ValueError(f"an image is {given}; give a path, a PIL image, or uint8 [height, width, 3], 0 to 255.")
    return _to_rgb(Image.fromarray(x))


def _as_list(images: Any) -> Sequence[Any]:
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return images
    return list(images) if isinstance(images, np.ndarray) and images.ndim == 4 else [images]


def _images_in(folder: pathlib.Path, deep: bool = False) -> list[pathlib.Path]:
    return sorted(
        p
        for p in (folder.rglob("*") if deep else folder.iterdir())
        if p.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        and p.is_file()
    )
