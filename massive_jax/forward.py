"""The forward pass as one compiled program, its `Output`, and what its input has to be.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import several, shown, whole_number
from massive_jax.cards import Card
from massive_jax.models import LanguageModel, Packing, TransformerConfig, VisionConfig, VisionTransformer
from massive_jax.models.vision_config import CHANNELS
from massive_jax.parallel import mesh_of_params, mesh_set, put_batch
from massive_jax.probe import CapturePlan, EditCollection

if TYPE_CHECKING:
    from massive_jax.model import TextModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Output(Card):
    """Holds what a forward pass gives.

    Attributes:
      logits: [B, T, V] float32, of an image [B, V]; None where they were not asked for, or there is no head. Zeros at
        padding, as everywhere.
      last_hidden: [B, T, D], after the final norm, where there is one: Hugging Face's `last_hidden_state`.
      intermediates: site -> tensor or `Stats`; per-layer sites have a leading axis of the layers asked for.
      pooled: an image's one feature [B, W], which a head reads; None of a language model.
    """

    logits: jax.Array | None
    last_hidden: jax.Array
    intermediates: dict[str, Any]
    pooled: jax.Array | None = None


def forward(
    module: LanguageModel | VisionTransformer,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    inputs: Any,
    logits: bool = True,
    positions: Any = None,
    packing: Packing | None = None,
) -> Output:
    """Runs the compiled forward pass: one program a shape of its arguments, whatever edits and layers are.

    `positions`, int [B, T], are those of `own_positions`; None for a batch without padding. `packing` is for rows that
    are several sequences.
    """
    with mesh_set(mesh := mesh_of_params(params, edits, inputs)):
        inputs, positions, packing = put_batch((inputs, positions, packing), mesh)
        return _forward(module, params, edits, plan, inputs, positions, logits, packing)


@functools.partial(jax.jit, static_argnames=("module", "logits"))
def _forward(
    module: LanguageModel | VisionTransformer,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    inputs: jax.Array,
    positions: jax.Array | None,
    logits: bool,
    packing: Packing | None = None,
) -> Output:
    padded: dict[str, Any] = {} if positions is None else {"positions": positions}
    if packing is not None:
        padded["packing"] = packing
    (out, hidden, *pooled), sown = module.apply(
        {"params": params, "edits": edits}, inputs, capture=plan, logits=logits, mutable=["intermediates"], **padded
    )
    return Output(out, hidden, dict(sown.get("intermediates", {})), *pooled)


def left_pad(
    sequences: Sequence[Sequence[int] | np.ndarray], pad: int = 0, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Puts token ids of different lengths into one batch, padded in front.

    Args:
      sequences: token ids, at least one in each.
      pad: the id that pads; it makes no difference.
      length: T; None for that of the longest.

    Returns:
      int32 [B, T] and bool [B, T], False for padding.

    Raises:
      ValueError: no sequences; one that is empty, longer than `length` or not of integers; a `pad` or `length` that is
        no whole number.
    """
    given = several(sequences)
    if given is None:
        raise ValueError(f"sequences is {shown(sequences)}; give a list of the token ids of each.")
    rows = [_array(f"sequence {row}", ids) for row, ids in enumerate(given)]
    for row, ids in enumerate(rows):
        if ids.shape == (0,):
            raise ValueError(f"sequence {row} is empty.")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"sequence {row} is {ids.dtype}{list(ids.shape)}; give integers [position].")
    pad = whole_number("pad", pad, -(1 << 31), (1 << 31) - 1)
    longest = max(map(len, rows), default=0)
    T = longest if length is None else whole_number("length", length, 1)
    if not rows or longest > T:
        raise ValueError(f"{len(rows)} sequences of up to {longest} tokens do not fit a batch of length {T}.")
    tokens, mask = np.full((len(rows), T), pad, np.int32), np.zeros((len(rows), T), bool)
    for row, ids in enumerate(rows):
        tokens[row, T - len(ids) :], mask[row, T - len(ids) :] = ids, True
    return tokens, mask


def own_positions(mask: Any) -> Any:
    """Gives the position of every token in its own sequence: bool mask [B, T] -> int32 [B, T], -1 for padding."""
    xp = jnp if isinstance(mask, jax.Array) else np
    return xp.where(mask, xp.cumsum(mask, axis=1, dtype=np.int32) - 1, np.int32(-1))


def check_mask(mask: Any, shape: tuple[int, ...]) -> tuple[Any, int]:
    """Gives a mask as an array, and the number of tokens of the longest sequence (1 where a jax transform hides it).

    Raises:
      ValueError: a mask that is not bool of `shape` [B, T]; a sequence without tokens.
    """
    if not isinstance(mask, np.ndarray | jax.Array):
        mask = _array("mask", mask)
    if mask.shape != tuple(shape) or mask.dtype != bool:
        raise ValueError(f"mask is {mask.dtype}{list(mask.shape)}; give bool{list(shape)}, as the tokens.")
    if isinstance(mask, jax.core.Tracer):
        return mask, 1
    lengths = np.asarray(mask).sum(axis=1)
    if not lengths.all():
        raise ValueError(f"mask is False in all of sequence {lengths.argmin()}: there is nothing to run.")
    return mask, int(lengths.max())


def check_images(config: VisionConfig, images: Any) -> Any:
    """Gives `images` as an array float32 [B, height, width, 3] that a model of `config` can take.

    Raises:
      ValueError: another shape or dtype, values that are not finite, or a size that the model does not take.
    """
    if not isinstance(images, jax.core.Tracer):
        images = _array("images", images)
    if images.ndim != 4 or images.shape[-1] != CHANNELS or images.dtype != np.float32:
        raise ValueError(
            f"images are {images.dtype}{list(images.shape)}; give float32 [batch, height, width, {CHANNELS}], as "
            "`preprocess` makes them."
        )
    (height, width), side = images.shape[1:3], config.patch_size
    native = (height, width) == config.image_size
    if 0 in images.shape:
        raise ValueError(f"images have shape {list(images.shape)}: there is nothing to run.")
    if not native and (height % side or width % side):
        raise ValueError(f"images of {height} × {width} pixels do not divide into patches of {side} × {side}.")
    if not native and config.position == "learned" and config.interpolation is None:
        only = " × ".join(map(str, config.image_size))
        raise ValueError(f"images of {height} × {width} pixels: without interpolation this model takes only {only}.")
    if isinstance(images, np.ndarray) and not np.isfinite(images).all():
        raise ValueError("images hold values that are NaN or infinite.")
    return images


def check_tokens(config: TransformerConfig, tokens: Any, mask: Any = None) -> Any:
    """Gives `tokens` as an array int32 [B, T] that a model of `config` can take, 0 at padding.

    Raises:
      ValueError: tokens that are not int [B, T], empty, longer than the context, or outside the vocabulary; see also
        `check_mask`.
    """
    if not isinstance(tokens, jax.core.Tracer):
        tokens = _array("tokens", tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens are {tokens.dtype}{list(tokens.shape)}; give integers [batch, position].")
    if 0 in tokens.shape:
        raise ValueError(f"tokens have shape {list(tokens.shape)}: there is nothing to run.")
    longest = tokens.shape[1]
    if mask is not None:
        mask, longest = check_mask(mask, tokens.shape)
    if longest > config.context_length:
        raise ValueError(
            f"{longest} tokens are more than the model's context of {config.context_length}; "
            "shorten the text or use windows."
        )
    if isinstance(tokens, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return tokens if mask is None else jnp.where(mask, tokens, 0)
    if mask is not None:
        tokens = np.where(mask, tokens, 0)  # whatever id pads
    return _in_vocabulary(tokens, config.vocab_size)


def check_input(config: TransformerConfig | VisionConfig, inputs: Any) -> Any:
    """Gives tokens or images as a model of `config` can take: `check_tokens` or `check_images`."""
    return check_images(config, inputs) if isinstance(config, VisionConfig) else check_tokens(config, inputs)


def find_ids(model: TextModel, name: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Gives the ids of the tokens that something is asked of, int32 of `shape`: [B], or [B, T].

    Args:
      model: whose tokens they are.
      name: of the argument, for the message.
      given: a token's id, or its text, for all; or one a sequence; or ids of that shape.
      shape: of the result.

    Raises:
      ValueError: something else; a text of several tokens, or none; an id outside the vocabulary.
    """
    texts = (given,) if isinstance(given, str) else several(given) or ()
    if texts and all(isinstance(text, str) for text in texts):
        ids = [_id(model, name, text) for text in texts]
        given = ids[0] if isinstance(given, str) else ids
    try:
        found = np.asarray(given)
    except (TypeError, ValueError):  # rows of different lengths
        found = np.asarray(None)
    forms = dict.fromkeys([(), shape[:1], shape])
    if found.shape not in forms or not np.issubdtype(found.dtype, np.integer):
        wanted = " or ".join(f"int{list(form)}" for form in forms if form)
        raise ValueError(f"{name} is {shown(given)}; give a token's id, its text, or one a sequence: {wanted}.")
    found = _in_vocabulary(found, model.config.vocab_size, f"{name}: ")
    return np.broadcast_to(found.reshape(found.shape + (1,) * (len(shape) - found.ndim)), shape)


def _id(model: TextModel, name: str, text: str) -> int:
    """The one token that a text is."""
    ids = model.encode(text)
    if len(ids) != 1:
        words = ", ".join(map(repr, model.token_texts(np.asarray(ids, int))))
        raise ValueError(f"{name} {text!r} is {len(ids)} tokens ({words}); give a text of one token, or an id.")
    return ids[0]


def _in_vocabulary(ids: np.ndarray, size: int, what: str = "") -> np.ndarray:
    """Token ids as int32; ValueError where one is none of the vocabulary's, `what` in front of the message."""
    if ids.min() < 0 or ids.max() >= size:
        raise ValueError(
            f"{what}token ids from {ids.min()} to {ids.max()} do not fit the vocabulary of {size} "
            f"(ids 0 to {size - 1})."
        )
    return ids.astype(np.int32)


def _array(name: str, given: Any) -> np.ndarray:
    """Gives `given` as an array; ValueError where its rows have different lengths."""
    try:
        return np.asarray(given)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {shown(given)}, which is no array: its rows must have one length.") from None
