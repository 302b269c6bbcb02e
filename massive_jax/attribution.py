"""Direct logit attribution: a logit as the sum of what each part of a language model adds to it.

After the blocks there is a norm and a linear map. With the norm's statistics as they are, a logit is a product of the
residual stream with one direction, and the stream is a sum: the embedding, and what every block's attention and MLP add
(Elhage et al., "A mathematical framework for transformer circuits", 2021).
Axis letters: see `massive_jax.probe.sites`; W width of the embedding, Z the sequences, or sequences and positions.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import yes_or_no
from massive_jax.cards import Card
from massive_jax.dtypes import product_precision, wide
from massive_jax.forward import find_ids
from massive_jax.models import TransformerConfig, frozen_norm, head_of
from massive_jax.parallel import mesh_of_params, mesh_set
from massive_jax.probe import Capture, Edit, EditCollection, Measure, find_position
from massive_jax.probe.places import PositionRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from massive_jax.model import Model, TextModel

_NAME = "logit_attribution"
_NORMS = ("attn_norm", "mlp_norm", "attn_out_norm", "attn_scale")  # what is between a part and the stream


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Attribution(Card):
    """Holds what each part of a model adds to a logit, or to a difference of two.

    Leading axes Z: [B], at one position of each sequence, or [B, T] at all of them, zeros at padding. All float32.

    Attributes:
      ids: int32 Z, the tokens whose logits these are, -1 at padding.
      versus: int32 Z, those whose logits are subtracted; None for none.
      logit: Z, the logit (or the difference) that the model gives, before a softcap.
      embed: Z, of the embedding, learned positions included.
      attn: [L, *Z], of every block's attention.
      mlp: [L, *Z], of every block's MLP, or experts.
      heads: [L, *Z, H], of every head; None unless asked for. What `attn` has besides is of no head: the bias of the
        output projection and of a norm behind it, and edits of attn_out.
      bias: Z, of what is added whatever the text: the biases of the final norm and of the head, and those of norms in
        the stream (post-norm models).
      rest: [L, *Z], what no part added to the stream in a block: edits of mid and block_out, what a clipped stream
        lost, and the rounding of its sums.
      direction: [*Z, D], what block L's output is multiplied by; but for post-norm models, whatever is added to the
        stream adds its product with this: a neuron's output weights, or an SAE's feature.
    """

    ids: jax.Array
    versus: jax.Array | None
    logit: jax.Array
    embed: jax.Array
    attn: jax.Array
    mlp: jax.Array
    heads: jax.Array | None
    bias: jax.Array
    rest: jax.Array
    direction: jax.Array

    def parts(self) -> dict[str, np.ndarray]:
        """Gives every part by its name, from "embed" to "bias", Z each; their sum is `logit`.

        Layer 1 has "attn 1", "mlp 1" and "rest 1"; with heads "attn 1 head 0" and so on too, and "attn 1" is what is of
        none of them.

        Examples:
          >>> tokens = model.tokenize("The capital of France is")
          >>> found = model.logit_attribution(tokens, " Paris", versus=" London", heads=True)
          >>> parts = {name: float(part[0]) for name, part in found.parts().items()}
          >>> max(parts, key=parts.get), abs(sum(parts.values()) - float(found.logit[0])) < 1e-3
          ('attn 24 head 4', True)
        """
        found = {"embed": np.asarray(self.embed)}
        heads = None if self.heads is None else np.asarray(self.heads)
        blocks = map(np.asarray, (self.attn, self.mlp, self.rest))
        for layer, (attn, mlp, rest) in enumerate(zip(*blocks, strict=True), 1):
            if heads is not None:
                its = heads[layer - 1]
                found |= {f"attn {layer} head {head}": its[..., head] for head in range(its.shape[-1])}
                attn = attn - its.sum(axis=-1)
            found |= {f"attn {layer}": attn, f"mlp {layer}": mlp, f"rest {layer}": rest}
        return found | {"bias": np.asarray(self.bias)}


def logit_attribution(
    model: Model,
    tokens: Any,
    target: Any = None,
    *,
    versus: Any = None,
    position: int | str | PositionRule | np.ndarray | None = -1,
    heads: bool = False,
    mask: Any = None,
    edits: Edit | Sequence[Edit] | EditCollection | None = None,
) -> Attribution:
    r"""Splits the logit of a next token into what each part of the model adds to it, directly.

    The final norm's factor of each token, and that of norms on the way to the stream, is taken as it is (a dynamic
    tanh's as one of each element). The parts add up to the logit before a softcap: to rounding in float32, and in 16
    bits to that dtype's. At one position memory is that of L rows of the stream; at all of them that of L streams times
    3 or, with heads, 4.

    Args:
      model: a language model.
      tokens: int [B, T].
      target: whose logit: None for the model's own most likely next token; a token's id, or its text; or several, one
        a sequence, [B]. With position None also [B, T]: `tokens` moved by one are the observed next tokens.
      versus: a target whose logit is subtracted from it: everything is of the difference.
      position: where, as an `Edit` has it: an int, negative from the end of each sequence; an int array [B]; a rule's
        name or a function. None for all.
      heads: splits attention by heads.
      mask: bool [B, T], False for padding; None for none.
      edits: interventions.

    Raises:
      ValueError: as `Model.__call__`; a target that is no token, or a text of several; several positions that are not
        all; an edit of final_norm or logits, which come after the stream.

    Examples:
      >>> tokens = model.tokenize("The capital of France is")
      >>> found = model.logit_attribution(tokens, " Paris", versus=" London", heads=True)
      >>> round(float(found.logit[0]), 2), int(found.heads[:, 0].max(axis=-1).argmax()) + 1  # the layer of one head
      (4.13, 24)
    """
    language = cast("TextModel", model)
    config, rules = language.config, model.rules()
    heads = yes_or_no("heads", heads)
    tokens, positions = model.check_inputs(tokens, mask)
    at = None
    if position is not None:
        at = find_position(position, config.input_sizes(tokens.shape), tokens, mask, rules)
    shape = tokens.shape if at is None else tokens.shape[:1]
    ids: Any = None if target is None else find_ids(language, "target", target, shape)
    minus = None if versus is None else find_ids(language, "versus", versus, shape)
    edits = model.compile_edits(edits, tokens, mask)
    if after := [site for site in ("final_norm", "logits") if site in edits]:
        raise ValueError(f"an edit of {after[0]} is after the stream, whose parts are asked for; leave it out.")

    sites = ["attn_out", "mlp_out", "block_out"]
    sites += ["mid"] if config.norm_placement == "after_residual" else []
    sites += ["head_out"] if heads else []
    captures: Sequence[Capture | Measure] = [Measure(_NAME, sites, _rows, at), Capture("embed")]
    out = model(tokens, mask=mask, capture=captures, edits=edits, logits=False)
    own = np.arange(tokens.shape[1], dtype=np.int32)[None] if positions is None else positions
    around = {"embed": out.intermediates["embed"], "hidden": out.last_hidden, "positions": own}
    with mesh_set(mesh_of_params(model.params)):
        around = _rows(around, at)
        if ids is None:
            ids = jnp.argmax(model.unembed(around["hidden"]), axis=-1).astype(jnp.int32)
        there = None if at is not None or positions is None else jnp.asarray(positions >= 0)
        return Attribution(**_attribution(config, model.params, out.intermediates[_NAME], around, ids, minus, there))


def _rows(tensors: Any, at: Any) -> dict[str, jax.Array]:
    """Of tensors [B, T, …] the rows at a position of each sequence, int [B], or all for None: a measure's function."""
    tensors = dict(tensors)
    positions = tensors.pop("positions")
    if at is None:
        return tensors
    column = jnp.argmax(positions == at[:, None], axis=1)
    return {
        name: jnp.take_along_axis(x, column.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)[:, 0]
        for name, x in tensors.items()
    }


@functools.partial(jax.jit, static_argnames="config")
def _attribution(
    config: TransformerConfig, params: Any, blocks: Any, around: Any, ids: Any, minus: Any, there: Any
) -> dict[str, Any]:
    """The fields of an `Attribution`, from site -> [L, *Z, …] and [*Z, …], and which of Z are no padding."""
    dtype = wide(config.jnp_dtype)
    cast = functools.partial(jax.tree.map, lambda x: x.astype(dtype))
    blocks, around, layers = cast(blocks), cast(around), cast(_between(params["layers"], blocks))
    with product_precision(dtype):
        direction, constant = _head_row(config, params, ids)
        if minus is not None:
            other, its_constant = _head_row(config, params, minus)
            direction, constant = direction - other, constant - its_constant
        logit = _dot(direction, around["hidden"]) + constant
        if config.embedding_size is not None:
            direction = direction @ params["project_out"]["kernel"].astype(dtype).T
        if config.final_norm:
            norm = frozen_norm(config.norm, params.get("norm", {}), blocks["block_out"][-1])
            constant, direction = constant + _dot(direction, norm.bias), norm.back(direction)

        before = jnp.concatenate([around["embed"][None], blocks["block_out"][:-1]])
        scanned, last = (layers, blocks | {"before": before}), direction
        direction, parts = jax.lax.scan(functools.partial(_block, config), direction, scanned, reverse=True)
    found = parts | {
        "logit": logit,
        "direction": last,
        "embed": _dot(direction, around["embed"]),
        "bias": constant + jnp.sum(parts["bias"], axis=0),
    }
    if there is not None:
        wider = ("heads", "direction")
        found = {name: jnp.where(there[..., None] if name in wider else there, x, 0) for name, x in found.items()}
        ids, minus = (None if x is None else jnp.where(there, x, -1) for x in (ids, minus))
    return {"ids": ids, "versus": minus, "heads": None} | found


def _between(layers: Any, blocks: Any) -> dict[str, Any]:
    """The parameters of blocks between their parts and the stream."""
    found = {name: layers[name] for name in _NORMS if name in layers}
    return found | ({"out": layers["attn"]["out"]} if "head_out" in blocks else {})


def _head_row(config: TransformerConfig, params: Any, ids: Any) -> tuple[jax.Array, jax.Array]:
    """What the logits of tokens are products with, [*Z, W], and what is added to them, Z."""
    head, scale = head_of(config, params), 1.0 if config.logit_scale is None else config.logit_scale
    row = head.kernel[ids].astype(wide(config.jnp_dtype)) * scale
    return row, jnp.zeros_like(row[..., 0]) if head.bias is None else head.bias[ids].astype(row.dtype) * scale


def _dot(direction: jax.Array, x: Any) -> jax.Array:
    """Products over the last axis, Z; numbers added up in pairs, which a matrix product's are not."""
    return jnp.sum(direction * x, axis=-1)


def _block(config: TransformerConfig, direction: jax.Array, scanned: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the parts of a block add, along a direction of the stream after it, and that direction before the block."""
    params, x = scanned
    constant = jnp.zeros_like(direction[..., 0])
    if config.norm_placement == "after_residual":
        added = x["mid"] + x["mlp_out"]
        norm = frozen_norm(config.norm, params.get("mlp_norm", {}), added)
        rest, constant = _dot(direction, x["block_out"] - norm(added)), _dot(direction, norm.bias)
        direction = norm.back(direction)
        mlp = _dot(direction, x["mlp_out"])
        added = x["before"] + x["attn_out"]
        norm = frozen_norm(config.norm, params.get("attn_norm", {}), added)
        rest, constant = rest + _dot(direction, x["mid"] - norm(added)), constant + _dot(direction, norm.bias)
        direction = norm.back(direction)
    else:
        mlp = _dot(direction, x["mlp_out"])
        rest = _dot(direction, x["block_out"] - x["before"] - x["attn_out"] - x["mlp_out"])
    parts = {"attn": _dot(direction, x["attn_out"]), "mlp": mlp, "rest": rest, "bias": constant}
    if "head_out" in x:
        parts["heads"] = _heads(config, params, direction, x["head_out"])
    return direction, parts


def _heads(config: TransformerConfig, params: Any, direction: jax.Array, head_out: jax.Array) -> jax.Array:
    """What the heads' outputs [*Z, H, N] add along a direction of the attention's output: [*Z, H]."""
    kernel = params["out"]["kernel"]
    if config.layer_scale:
        direction = direction * params["attn_scale"]
    if config.norm_placement in ("output", "pre_and_output"):
        out = jnp.einsum("...HN,HND->...D", head_out, kernel)
        if config.out_bias:
            out = out + params["out"]["bias"]
        direction = frozen_norm(config.norm, params.get("attn_out_norm", {}), out).back(direction)
    return jnp.einsum("...D,HND,...HN->...H", direction, kernel, head_out)
