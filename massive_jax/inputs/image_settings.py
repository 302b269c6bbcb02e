"""What a preprocessor_config.json says: the kinds of image processors, timm's in the same words, and checks of values.

Values are checked before anything is built from them: a size in a file decides how much memory an image takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from massive_jax.arguments import shown
from massive_jax.files import listed

FILE = "preprocessor_config.json"
TYPE = "image_processor_type"
TIMM = "TimmImageProcessor"
# Image processors whose result is one image of three channels, which is what the zoo's models take.
TYPES = (
    "BitImageProcessor",
    "CLIPImageProcessor",
    "DeiTImageProcessor",
    "DINOv3ViTImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
    TIMM,
)
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # as PIL numbers them
MAX_SIDE = 8192  # pixels; an image of this square is 768 MiB in float32


def check(options: Mapping[str, Any]) -> None:
    """Raises a ValueError that names every value which is of a wrong type or out of range, and what is allowed."""
    if not isinstance(options, Mapping):
        raise ValueError(f"an image processor's options are {type(options).__name__}; expected a JSON object.")
    kind = options.get(TYPE)
    if kind not in TYPES:
        raise ValueError(f"unknown image processor {kind!r}; known: {', '.join(TYPES)}.")
    wrong = [
        f"{name} is {shown(value)} (expected {expected})"
        for name, value, good, expected in _values(options)
        if not good
    ]
    if wrong:
        raise ValueError(f"{kind}: {listed(wrong, 6)}. Copy {FILE} again from the model's page, or mend it.")


def is_side(value: object) -> bool:
    """Tells whether a value is the side of an image, in pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def kind_of(fields: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Gives the type that a preprocessor config names, or else the one of its model type."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"image_processor is {shown(fields)}; expected a JSON object.")
    name = fields.get(TYPE) or fields.get("feature_extractor_type")
    if name is None:
        from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES as NAMES

        model_type = str(config.get("model_type"))
        name = (NAMES.get(model_type) or {}).get("torchvision")
        if name is None:
            raise ValueError(f"{FILE} names no {TYPE}, and model type {model_type!r} implies none; add it.")
    return str(name).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")


def from_timm(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a `preprocessor_config.json` that says what timm's evaluation transform does.

    Args:
      fields: the `pretrained_cfg` of a timm config.json.
    """
    size = fields.get("input_size", (3, 224, 224))
    interpolation, mode = fields.get("interpolation") or "bicubic", fields.get("crop_mode") or "center"
    share = fields.get("crop_pct") or 0.875
    square = isinstance(size, list | tuple) and len(size) == 3 and size[0] == 3 and size[1] == size[2]
    known = str(interpolation) in RESAMPLE and mode in ("center", "squash")
    if not (square and is_side(size[1]) and known and _is_number(share) and 0 < share <= 1):
        raise ValueError(
            f"pretrained_cfg asks for input_size {shown(size)}, interpolation {shown(interpolation)}, "
            f"crop_mode {shown(mode)} and crop_pct {shown(share)}; known are square RGB of 1 to {MAX_SIDE} pixels, "
            f"{', '.join(RESAMPLE)}, center or squash, and a crop_pct above 0, up to 1."
        )
    height = size[1]
    side = math.floor(min(height / share, 2 * MAX_SIDE))  # a side too long is for `check` to refuse
    options = {
        TYPE: TIMM,
        "size": {"shortest_edge": side} if mode == "center" else {"height": side, "width": side},
        "crop_size": {"height": height, "width": height},
        "resample": RESAMPLE[interpolation],
    }
    moments = {"image_mean": fields.get("mean"), "image_std": fields.get("std")}
    return options | {
        name: list(values) if isinstance(values, tuple) else values
        for name, values in moments.items()
        if values is not None and values != []
    }


def to_timm(options: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the fields of a `pretrained_cfg` that `from_timm` reads as `options`."""
    size, height = dict(options["size"]), options["crop_size"]["height"]
    side = size.get("shortest_edge") or size["height"]
    share = height / side
    if math.floor(height / share) != side:
        share = height / (side + 0.5)
    found = {
        "input_size": [3, height, height],
        "interpolation": next(name for name, number in RESAMPLE.items() if number == options["resample"]),
        "crop_mode": "center" if "shortest_edge" in size else "squash",
        "crop_pct": share,
    }
    moments = {"mean": options.get("image_mean"), "std": options.get("image_std")}
    return found | {name: list(values) for name, values in moments.items() if values is not None}


def _values(options: Mapping[str, Any]) -> Iterator[tuple[str, object, bool, str]]:
    """(name, value, whether it is right, what is allowed) of the options that have a rule; null is as not given."""
    for name, value in options.items():
        if value is None:
            continue
        if name in ("size", "crop_size", "pad_size"):
            yield from _sides(name, value)
        elif name in ("image_mean", "image_std"):
            numbers = value if isinstance(value, list | tuple) and len(value) == 3 else [value]
            good = all(_is_number(x) and (x > 0 or name == "image_mean") for x in numbers)
            yield name, value, good, "three finite numbers" + (" above 0" if name == "image_std" else "")
        elif name == "rescale_factor":
            yield name, value, _is_number(value) and value > 0, "a finite number above 0"
        elif name == "resample":
            good = isinstance(value, int) and not isinstance(value, bool) and value in RESAMPLE.values()
            yield name, value, good, f"0 to {max(RESAMPLE.values())}, as PIL numbers them"
        elif name.startswith("do_"):
            yield name, value, isinstance(value, bool), "true or false"


def _sides(name: str, value: object) -> Iterator[tuple[str, object, bool, str]]:
    expected = f"a whole number of pixels from 1 to {MAX_SIDE}"
    if isinstance(value, Mapping):
        for key, side in value.items():
            if side is not None:
                yield f"{name}.{key}", side, is_side(side), expected
    elif isinstance(value, list | tuple):
        yield name, value, len(value) == 2 and all(is_side(side) for side in value), f"two of {expected}"
    else:
        yield name, value, is_side(value), expected


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
