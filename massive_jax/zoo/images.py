"""What the vision families share: how their configs say sizes, heads and names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from massive_jax.weights.table import Row
from massive_jax.zoo.fields import Fields

# The projections of an attention under "attention.", as ViT and DINOv2 name them.
PARTS = ("attention.query", "attention.key", "attention.value", "output.dense")
_CLASSIFIER = "ForImageClassification"
MOST_PIXELS = 1 << 16  # of a side
_MOST_PATCHES, MOST_REGISTERS = 1 << 18, 1 << 16


def front_end(fields: Fields, *, image_size: int = 224, patch_size: int = 16) -> dict[str, Any]:
    """Reads `image_size` and `patch_size` of a VisionConfig; the defaults are those of the Hugging Face class."""
    fields.only("num_channels", 3)
    fields.ignore("tie_word_embeddings")  # which full dumps of a config have; an image has no words
    sides: dict[str, tuple[int, int]] = {}
    for name, default in (("image_size", image_size), ("patch_size", patch_size)):
        given = fields.get(name, default)
        both = (default, default) if isinstance(given, list | tuple) else default
        found = fields.sizes(name, both, most=MOST_PIXELS)
        sides[name] = (found[0], found[-1])
    (height, width), (patch, patch_width) = sides["image_size"], sides["patch_size"]
    if patch != patch_width:
        fields.problem(f"patches of {sides['patch_size']} pixels are not square (patch_size)")
    elif (height // patch) * (width // patch) > _MOST_PATCHES:
        fields.problem(f"image_size {[height, width]} in patches of patch_size {patch}: more than {_MOST_PATCHES}")
    return {"image_size": (height, width), "patch_size": patch}


def num_classes(fields: Fields) -> int:
    """Counts the head's classes where the config's `architectures` names a classifier, else 0."""
    if not any(name.endswith(_CLASSIFIER) for name in fields.texts("architectures") or ()):
        return 0
    labels = fields.mapping("id2label")
    # As transformers: 2 where nothing says.
    return fields.integer("num_labels", 2) if labels is None else len(labels)


def backbone_fields(fields: Fields) -> None:
    """Accepts fields that only training, or a backbone's intermediate features, make use of."""
    fields.ignore("drop_path_rate", "layerscale_value", "apply_layernorm", "reshape_hidden_states")
    fields.ignore("out_features", "out_indices", "stage_names")


def linear_rows(name: str, path: str, kernel: str | None, bias: str | None = None) -> Iterator[Row]:
    """Gives the rows of a linear map (or convolution): weight and bias."""
    yield Row(f"{name}.weight", f"{path}/kernel", kernel)
    yield Row(f"{name}.bias", f"{path}/bias", bias)


def norm_rows(names: Mapping[str, str]) -> Iterator[Row]:
    """Gives the rows of layer norms: name -> path."""
    for name, path in names.items():
        yield Row(f"{name}.weight", f"{path}/scale")
        yield Row(f"{name}.bias", f"{path}/bias")


def attention_rows(names: Iterable[str]) -> Iterator[Row]:
    """Gives the rows of an attention's query, key, value and output projections, without grouped queries."""
    *inputs, out = names
    for name, part in zip(inputs, ("query", "key", "value"), strict=True):
        yield from linear_rows(name, f"layers/attn/{part}", "(HN)D->DHN", "(HN)->HN")
    yield from linear_rows(out, "layers/attn/out", "D(HN)->HND")


def mlp_rows(up: str, down: str, path: str = "layers/mlp") -> Iterator[Row]:
    """Gives the rows of a plain MLP."""
    yield from linear_rows(up, f"{path}/up", "FD->DF")
    yield from linear_rows(down, f"{path}/down", "DF->FD")


def gated_mlp_rows(up: str, down: str, path: str = "layers/mlp") -> Iterator[Row]:
    """Gives the rows of a gated MLP whose gate and up are one tensor, in this order."""
    for index, part in enumerate(("gate", "up")):
        yield Row(f"{up}.weight", f"{path}/{part}/kernel", "(UF)D->DF", take=("U", str(index)))
        yield Row(f"{up}.bias", f"{path}/{part}/bias", "(UF)->F", take=("U", str(index)))
    yield from linear_rows(down, f"{path}/down", "DF->FD")


def patch_rows(name: str) -> Iterator[Row]:
    """Gives the rows of the patch embedding, a convolution."""
    yield from linear_rows(name, "patch", "DCIJ->IJCD")


def head_rows(name: str = "classifier") -> Iterator[Row]:
    """Gives the rows of a linear classifier."""
    yield Row(f"{name}.weight", "head")
    yield Row(f"{name}.bias", "head_bias")
