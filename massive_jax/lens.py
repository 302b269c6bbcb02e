"""The way from the residual stream to the vocabulary, at the end and at every layer; and what heads attend to.

Axis letters: see `massive_jax.probe.sites`; W width of the embedding, k tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import shown, whole_number, yes_or_no
from massive_jax.cards import Card
from massive_jax.dtypes import product_precision
from massive_jax.models import BlockConfig, TransformerConfig, head_logits, head_of
from massive_jax.models.linear import Projection
from massive_jax.models.norms import Norm
from massive_jax.parallel import mesh_of_params, mesh_set
from massive_jax.parallel import top_k as largest
from massive_jax.probe import Edit, EditCollection, Measure, find_heads

if TYPE_CHECKING:
    from massive_jax.model import Model

_NAME, _PATTERNS = "logit_lens", "head_patterns"
_PARAMS = ("norm", "project_out", "embedding", "head", "head_bias")  # all there is after the blocks


@dataclasses.dataclass(frozen=True, repr=False)
class Lens(Card):
    """Holds what a logit lens shows.

    Attributes:
      ids: int32 [L', B, T, k], the most likely next tokens by each layer kept, -1 at padding.
      log_probs: float32 [L', B, T, k], theirs, 0 at padding.
      logits: float32 [L', B, T, V]; None unless asked for.
    """

    ids: jax.Array
    log_probs: jax.Array
    logits: jax.Array | None


def final_norm(config: BlockConfig, params: Any, x: Any) -> jax.Array:
    """Gives what a model's final norm makes of a residual stream: [..., D] -> [..., D], of its dtype.

    A model without one gives the stream.

    Raises:
      ValueError: an x that is no stream of the model.
    """
    x = _floats(x, (config.hidden_size,), "the residual stream (block_out)")
    with mesh_set(mesh_of_params(params)):
        return _final_norm(config, _after_blocks(params), x)


def unembed(config: TransformerConfig, params: Any, x: Any) -> jax.Array:
    """Gives the logits that a model's head makes of what its final norm gave: [..., D] -> float32 [..., V].

    With all that is done to them: bias, scale, softcap. Where the embedding is narrower than the stream, x may also be
    [..., W], as `Output.last_hidden` is.

    Raises:
      ValueError: an x that is neither.
    """
    x = _floats(x, (config.hidden_size, config.embedding_size or config.hidden_size), "the final norm's output")
    with mesh_set(mesh_of_params(params)):
        return _unembed(config, _after_blocks(params), x)


def logit_lens(
    model: Model,
    tokens: Any,
    *,
    mask: Any = None,
    layers: Sequence[int] | int | None = None,
    edits: Edit | Sequence[Edit] | EditCollection | None = None,
    top_k: int = 5,
    logits: bool = False,
) -> Lens:
    r"""Reads every layer's residual stream through the final norm and the head, inside the blocks.

    So the memory is that of what is kept, and one layer's logits. The last layer's are the model's own
    (nostalgebraist, "interpreting GPT: the logit lens", 2020).

    Args:
      model: a language model.
      tokens: int [B, T].
      mask: bool [B, T], False for padding; None for none.
      layers: 1-based layers, in the order wanted; None for all.
      edits: interventions.
      top_k: k, how many tokens to keep.
      logits: keeps the logits whole.

    Raises:
      ValueError: as `Model.__call__` and `Capture`; a k that is none from 1 to V.

    Examples:
      >>> tokens = model.tokenize("The capital of France is")
      >>> lens = model.logit_lens(tokens, layers=(10, 20, 30))
      >>> [model.tokenizer.decode(ids[:1]) for ids in np.asarray(lens.ids[:, 0, -1])][-1]
      ' Paris'
    """
    config = cast("TransformerConfig", model.config)
    top_k = whole_number("top_k", top_k, 1, config.vocab_size)
    fn = _lens(config, top_k, yes_or_no("logits", logits))
    measure = Measure(_NAME, "block_out", fn, _after_blocks(model.params), layers)
    found = model(tokens, mask=mask, capture=measure, edits=edits, logits=False).intermediates[_NAME]
    return Lens(found["ids"], found["log_probs"], found.get("logits"))


def head_patterns(
    model: Model,
    inputs: Any,
    *,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | slice | int | None = None,
    mask: Any = None,
    edits: Edit | Sequence[Edit] | EditCollection | None = None,
) -> jax.Array:
    r"""Gives what heads attend to: float32 [L', B, H', T, S], zeros at padding.

    These are Hugging Face's `attentions`, of the layers and heads asked for; memory is that of them, and of one layer
    with all heads. After a sequence's keys come the slots of an attention bias.

    Args:
      model: a language or vision model.
      inputs: tokens, int [B, T], or images.
      layers: 1-based layers, in the order wanted; None for all.
      heads: from 0, a number, a list or a slice; None for all.
      mask: bool [B, T], False for padding; None for none.
      edits: interventions.

    Raises:
      ValueError: as `Model.__call__` and `Capture`; a head that is not there.
    """
    found = find_heads(slice(None) if heads is None else heads, model.config.num_heads)
    measure = Measure(_PATTERNS, "attn_probs", _of_heads, found, layers)
    return model(inputs, mask=mask, capture=measure, edits=edits, logits=False).intermediates[_PATTERNS]


def _of_heads(tensors: Any, heads: Any) -> jax.Array:
    """The function of a measure: the probabilities of some heads."""
    return jnp.take(tensors["attn_probs"], heads, axis=1)


@functools.lru_cache(maxsize=64)  # one function, so one program
def _lens(config: TransformerConfig, top_k: int, whole: bool) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """The function of a measure: the most likely tokens of a layer."""

    def lens(tensors: Any, params: Any) -> dict[str, jax.Array]:
        logits = _unembed(config, params, _final_norm(config, params, tensors["block_out"]))
        own = (tensors["positions"] >= 0)[..., None]
        log_probs, ids = largest(jax.nn.log_softmax(logits, axis=-1), top_k, "BTV")
        found = {"ids": jnp.where(own, ids, -1), "log_probs": jnp.where(own, log_probs, 0)}
        return found | ({"logits": jnp.where(own, logits, 0)} if whole else {})

    return lens


@functools.partial(jax.jit, static_argnames="config")
def _final_norm(config: BlockConfig, params: Any, x: jax.Array) -> jax.Array:
    norm: Any = Norm(config.norm)
    return norm.apply({"params": params.get("norm", {})}, x) if config.final_norm else x


@functools.partial(jax.jit, static_argnames="config")
def _unembed(config: TransformerConfig, params: Any, x: jax.Array) -> jax.Array:
    D, W = config.hidden_size, config.embedding_size
    with product_precision(config.dtype):
        if W is not None and x.shape[-1] == D:
            narrowing: Any = Projection((D, W), "BTD,DW->BTW")
            narrow = narrowing.apply({"params": params["project_out"]}, x.reshape(1, -1, D))
            x = narrow.reshape(*x.shape[:-1], W)
        return head_logits(config, x, head_of(config, params))


def _after_blocks(params: Any) -> dict[str, Any]:
    return {name: params[name] for name in _PARAMS if name in params}


def _floats(x: Any, widths: tuple[int, ...], what: str) -> Any:
    """`x` as an array [..., width] of floating-point numbers."""
    if not isinstance(x, jax.Array):
        try:
            x = np.asarray(x)
        except ValueError:
            raise ValueError(f"x is {shown(x)}, which is no array.") from None
    if not x.ndim or x.shape[-1] not in widths or not jnp.issubdtype(x.dtype, jnp.floating):
        width = " or ".join(str(width) for width in dict.fromkeys(widths))
        raise ValueError(f"x is {x.dtype}{list(x.shape)}; give {what}, floats [..., {width}].")
    return x
