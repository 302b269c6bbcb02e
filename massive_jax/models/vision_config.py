"""The options of a vision transformer: those of its blocks, and how an image becomes tokens and tokens a feature."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from massive_jax.models.config import Activation, BlockConfig, MLPKind, Position
from massive_jax.models.options import Count, Size

Interpolation: TypeAlias = Literal[None, "bicubic", "bicubic_antialias"]
Pooling: TypeAlias = Literal["class", "patch_mean", "class_and_patch_mean", "attention", "all_mean"]
CHANNELS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(BlockConfig):
    """Configures a vision transformer: the options of `BlockConfig`, and what is around the blocks.

    The tokens are the class token, the registers, then the patches row by row. With position "rope" the two halves of a
    head's pairs turn by the patch's row and column, of centres that run from -1 to 1 over the image (DINOv3).
    """

    causal: bool = False
    position: Position = "learned"
    mlp: MLPKind = "plain"
    activation: Activation = "gelu"
    image_size: tuple[Size, Size]
    """Height and width of the images that the position table is for, in pixels."""
    patch_size: Size
    """Side of a patch, in pixels."""
    patch_bias: bool = True
    """Whether there is a bias in the patch embedding."""
    class_token: bool = True
    """Whether there is a class token, the first one."""
    registers: Count = 0
    """Number of register tokens (arXiv 2309.16588)."""
    class_position: bool = True
    """With position "learned", whether the table has a row for the class token, its first one."""
    interpolation: Interpolation = "bicubic"
    """How the table is resized for images of another size: "bicubic" (torch's, without antialiasing),
    "bicubic_antialias" (torch's with it) or None: no other size is taken.
    """
    embed_norm: bool = False
    """Whether there is a norm before the first block (CLIP)."""
    pooling: Pooling = "class"
    """The image's one feature: "class" (the class token), "patch_mean", "class_and_patch_mean" (both, one after the
    other), "all_mean" (all tokens) or "attention" (a learned query attends to all tokens, then an MLP; SigLIP).
    """
    pooled_norm: bool = False
    """Whether there is a norm on that feature (CLIP, whose last hidden state has none)."""
    pooled_dense: bool = False
    """Whether there are a linear map and tanh on it (ViT without a classifier)."""
    num_classes: Count = 0
    """V, classes of the linear head on the feature; 0 for no head."""

    def _inconsistencies(self) -> Iterator[str]:
        """Options that are fine each by itself and not together."""
        yield from super()._inconsistencies()
        if min(self.image_size) < self.patch_size:
            yield f"image_size {self.image_size} must be height and width of at least one patch of {self.patch_size}"
        if self.position not in ("learned", "rope"):
            yield f"position {self.position!r} is not one of an image's: learned, rope"
        if self.position == "rope" and (self.head_dim % 4 or self.rope.rotary_dim or self.rope.kind != "default"):
            yield f"a rope over rows and columns turns whole heads of 4·n dims, unscaled (head_dim {self.head_dim})"
        bias = self.attention_bias
        if bias is not None and (bias.prefix or bias.traits.tokens):
            yield "a prefix and sink tokens are in front of a causal sequence; images have registers"
        if not self.class_token and self.pooling in ("class", "class_and_patch_mean"):
            yield f"pooling {self.pooling!r} needs a class token"
        if self.mlp == "experts" and self.pooling == "attention":
            yield "pooling 'attention' has an MLP of its own, which cannot be one of experts"

    @property
    def prefix(self) -> int:
        """Says how many tokens are before the patches."""
        return self.class_token + self.registers

    @property
    def table_prefix(self) -> int:
        """Says how many rows of the position table are not a patch's."""
        return int(self.class_token and self.class_position)

    @property
    def native_grid(self) -> tuple[int, int]:
        """Gives the rows and columns of patches that the position table is for."""
        return self.grid(*self.image_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Gives the rows and columns of patches of an image; pixels over at the right and the bottom are left out."""
        return height // self.patch_size, width // self.patch_size

    def num_tokens(self, height: int, width: int) -> int:
        """Counts the tokens of an image, T."""
        rows, columns = self.grid(height, width)
        return self.prefix + rows * columns

    def token_names(self, height: int, width: int) -> list[str]:
        """Names the T tokens of an image: CLS, reg1, …, (row,column) of each patch, from 0."""
        rows, columns = self.grid(height, width)
        return [
            *["CLS"] * self.class_token,
            *(f"reg{i}" for i in range(1, self.registers + 1)),
            *(f"({row},{column})" for row in range(rows) for column in range(columns)),
        ]

    @property
    def absent_sites(self) -> frozenset[str]:
        """Names the sites a model of this config lacks: the head reads one feature, so no token has logits."""
        return super().absent_sites | {"logits"}

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Gives the shape and dtype of an input, for shape inference."""
        return jax.ShapeDtypeStruct((1, *self.image_size, CHANNELS), jnp.float32)

    def input_sizes(self, shape: Sequence[int]) -> dict[str, int]:
        """Gives a size for every axis letter, for images of `shape` [B, H, W, 3]."""
        B, height, width, _ = shape
        return self.sizes(B, self.num_tokens(height, width))

    def sizes(self, B: int, T: int, S: int | None = None) -> dict[str, int]:
        """Gives a size for every axis letter of `massive_jax.probe.sites`, for B images of T tokens.

        And for those of `massive_jax.weights.table`: C, I, J, M, W, Z.
        """
        rows, columns = self.native_grid
        return super().sizes(B, T, S) | {
            "P": T - self.prefix,
            "V": self.num_classes,
            "W": self.hidden_size,
            "C": CHANNELS,
            "I": self.patch_size,
            "J": self.patch_size,
            "M": self.table_prefix + rows * columns,
            "Z": self.registers,
        }
