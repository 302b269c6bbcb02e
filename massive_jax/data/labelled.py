"""Labelled images to train on: MNIST's files, class folders, a dataset of the hub. H and W: height and width."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from massive_jax.arguments import shown, whole_number
from massive_jax.files import as_path, is_directory, is_there, local, one_line
from massive_jax.inputs.image_settings import MAX_SIDE
from massive_jax.inputs.images import list_images, read_image

FASHION_MNIST = "fashion_mnist"
_FASHION_HUB = "zalando-datasets/fashion_mnist"
# Where Debian's package dataset-fashion-mnist puts the files.
_FASHION_DIRECTORY = pathlib.Path("/usr/share/datasets/fashion-mnist")
_FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_HELD_OUT = ("test", "val", "validation")  # what a directory or a split of held-out images is called

# Of an IDX file: two zero bytes, 8 for unsigned bytes, the number of axes.
_IDX_TRAIN, _IDX_TEST = "train", "t10k"
_MOST_BYTES = 1 << 33
_IDX = "{part}-{what}-idx{axes}-ubyte"


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Holds images of one size and their classes; `images[indices]` is uint8 [B, H, W, 3].

    Attributes:
      labels: int32 [n], indices into `classes`.
      classes: names of the classes.
      size: H and W, in pixels.
      checksum: of what they are.
      read: indices int [B] -> uint8 [B, H, W, 3].
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    size: tuple[int, int]
    checksum: str
    read: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.read(indices)


def load_labelled(name: str | os.PathLike[str], side: int | None = None) -> tuple[LabelledImages, LabelledImages]:
    """Loads training and held-out images.

    Args:
      name: "fashion_mnist" (from Debian's package dataset-fashion-mnist where it is installed, else from the hub); a
        directory with MNIST's IDX files, gzipped or not; a directory of two class folders, `train` and `test` (or
        `val`, `validation`); or a dataset of the hub with images and labels ("org/name", or "NAME:DIRECTORY" for a
        local copy in its layout).
      side: side in pixels that images of folders and of the hub are cut to; MNIST's files are as they are. None: 28.

    Raises:
      ValueError: nothing of that name; a damaged file; images and labels that differ in number; a label without a
        class; class folders that differ.
    """
    if not isinstance(name, str | os.PathLike) or not isinstance(os.fspath(name), str):
        raise ValueError(f"expected the name of images or the path of a directory, got {shown(name)}.")
    name = os.fspath(name)
    side = None if side is None else whole_number("side", side, 1, MAX_SIDE)
    dataset, _, directory = name.partition(":")
    if name == FASHION_MNIST and _FASHION_DIRECTORY.is_dir():
        found = _from_idx(_FASHION_DIRECTORY, _FASHION_CLASSES)
    elif dataset == FASHION_MNIST or (re.fullmatch(r"[\w-]+/[\w.-]+", dataset) and not is_there(name)):
        found = _from_hub(_FASHION_HUB if dataset == FASHION_MNIST else dataset, directory or None, side or 28)
    else:
        there = as_path(os.path.expanduser(name))
        if not is_directory(there):
            raise ValueError(
                f"no images {name!r}: give {FASHION_MNIST!r}, a directory with MNIST's IDX files or with the class "
                "folders train/ and test/, or a dataset of the hub (org/name)."
            )
        root = local(there)
        found = _from_idx(root) if any(root.glob("*-idx3-ubyte*")) else _from_folders(root, side or 28)
    if side is not None and found[0].size != (side, side):
        raise ValueError(f"the images of {name} have {found[0].size} pixels, and {side} were asked for.")
    return found


def _in_memory(pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> LabelledImages:
    """Of uint8 [n, H, W] or [n, H, W, 3]: grey images get three channels as they are read."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(labels).data)

    def read(indices: np.ndarray) -> np.ndarray:
        chosen = pixels[indices]
        return chosen if chosen.ndim == 4 else np.repeat(chosen[..., None], 3, axis=-1)

    return LabelledImages(labels, classes, (pixels.shape[1], pixels.shape[2]), digest.hexdigest(), read)


def _from_idx(root: pathlib.Path, classes: tuple[str, ...] = ()) -> tuple[LabelledImages, LabelledImages]:
    parts = []
    for part in (_IDX_TRAIN, _IDX_TEST):
        pixels, labels = (
            _read_idx(root, _IDX.format(part=part, what=what, axes=axes), axes)
            for what, axes in (("images", 3), ("labels", 1))
        )
        if len(pixels) != len(labels):
            raise ValueError(f"{root}: {len(pixels)} {part} images and {len(labels)} labels.")
        parts.append((pixels, labels.astype(np.int32)))
    most = max(int(labels.max()) for _, labels in parts) + 1
    if classes and most > len(classes):
        raise ValueError(f"{root}: the label {most - 1} is none of the {len(classes)} classes.")
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        raise ValueError(f"{root}: images of {parts[0][0].shape[1:]} and of {parts[1][0].shape[1:]} pixels.")
    names = classes or tuple(str(i) for i in range(most))
    training, held_out = (_in_memory(pixels, labels, names) for pixels, labels in parts)
    return training, held_out


def _read_idx(root: pathlib.Path, name: str, axes: int) -> np.ndarray:
    """The array in an IDX file: uint8, big-endian sizes after the magic number."""
    path = next((p for p in (root / name, root / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ValueError(f"{root}: there is no {name} or {name}.gz.")
    start = 4 * (1 + axes)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            head = file.read(start)
            header = [int(n) for n in np.frombuffer(head, ">u4")] if len(head) == start else [0]
            if header[0] != 0x0800 + axes or 0 in header[1:]:
                raise ValueError(f"{path} is no IDX file of {axes} axes of bytes.")
            shape, size = header[1:], math.prod(header[1:])
            if size > _MOST_BYTES:
                raise ValueError(f"{path} says that it holds {shape} bytes; at most {_MOST_BYTES:,} are read.")
            data = file.read(size + 1)  # no more, however much a damaged or hostile file unpacks to
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}. Fetch it again.") from None
    if len(data) != size:
        found = len(data) if len(data) < size else f"more than {size}"
        raise ValueError(f"{path} has {found} bytes for {shape}: it is truncated or damaged. Fetch it again.")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _from_folders(root: pathlib.Path, side: int) -> tuple[LabelledImages, LabelledImages]:
    training = root / "train"
    held_out = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
    if not training.is_dir() or held_out is None:
        raise ValueError(f"{root}: expected the folders train/ and test/ (or val/), each with a folder a class.")
    found = []
    for folder in (training, held_out):
        listed = list_images(folder)
        if listed.labels is None:
            raise ValueError(f"{folder}: expected a folder a class.")
        names = "\n".join(f"{p.relative_to(folder)} {p.stat().st_size}" for p in listed.paths)
        checksum = hashlib.sha256(f"{side}\n{names}".encode()).hexdigest()
        paths = np.asarray(listed.paths, object)

        def read(indices: np.ndarray, paths: np.ndarray = paths) -> np.ndarray:
            return np.stack([_square(read_image(path), side) for path in paths[indices]])

        found.append(LabelledImages(listed.labels, listed.classes, (side, side), checksum, read))
    if found[0].classes != found[1].classes:
        differing = sorted(set(found[0].classes) ^ set(found[1].classes))
        raise ValueError(f"{root}: {training.name} and {held_out.name} have other classes: {', '.join(differing)}.")
    return found[0], found[1]


def _square(image: Any, side: int) -> np.ndarray:
    """uint8 [side, side, 3]: the middle of the image, its shorter side resized."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC))


def _from_hub(hub_id: str, directory: str | None, side: int) -> tuple[LabelledImages, LabelledImages]:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"the images {hub_id!r} need the package 'datasets': pip install massive_jax[data]. Fashion-MNIST comes "
            "with Debian's package dataset-fashion-mnist too."
        ) from None
    if directory is not None and not is_directory(as_path(os.path.expanduser(directory))):
        raise ValueError(f"no directory {directory!r} with a copy of {hub_id}.")
    location = str(local(os.path.expanduser(directory))) if directory else hub_id
    try:
        splits: Mapping[str, Any] = datasets.load_dataset(location)
    except Exception as error:  # `datasets` raises dozens of types; each of them means the images cannot be had
        raise ValueError(
            f"the images {hub_id!r} ({location}) cannot be loaded: {type(error).__name__}: {one_line(error)}."
            " With no network, give a directory (see --help), or for Fashion-MNIST install Debian's package"
            " dataset-fashion-mnist."
        ) from None
    held_out = next((name for name in _HELD_OUT if name in splits), None)
    if "train" not in splits or held_out is None:
        raise ValueError(f"{hub_id} has the splits {', '.join(splits)}; expected train and test (or validation).")
    training, test = (_of_split(splits[name], hub_id, side) for name in ("train", held_out))
    return training, test


def _of_split(rows: Any, hub_id: str, side: int) -> LabelledImages:
    import datasets

    features = rows.features
    image = next((name for name, kind in features.items() if isinstance(kind, datasets.Image)), None)
    label = next((name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise ValueError(f"{hub_id} has the columns {', '.join(features)}; expected one of images and one of classes.")
    labels = np.asarray(rows[label], np.int32)
    if labels.min() < 0:
        raise ValueError(f"{hub_id}: {int((labels < 0).sum())} images have no label.")
    pixels = np.stack([_square(found, side) for found in rows[image]])
    return _in_memory(pixels, labels, tuple(features[label].names))
