"""Registers without training: the neurons that make outlier patches, moved to a token of their own (arXiv 2506.08010).

A few neurons of the MLPs are active on the patches whose norm is far above the others', and make them so. Given one
more token, which starts as zeros, and the activations of those neurons moved there, it takes the outliers' part.
Axis letters: see `massive_jax.probe.sites`; P patches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.analysis import full_size_layer
from massive_jax.arguments import number, whole_number
from massive_jax.evaluate.batches import Progress
from massive_jax.evaluate.images import ImageBatches, ImageOutputs
from massive_jax.forward import forward
from massive_jax.model import ImageModel, Model
from massive_jax.parallel import fetch, mesh_of_params, mesh_set
from massive_jax.probe import Capture, Edit
from massive_jax.probe.sites import check_layers

OUTLIER = 3.0  # a patch is an outlier above this many times the median norm of its image's patches


@dataclasses.dataclass(frozen=True)
class RegisterNeuron:
    """Names a neuron: `dim` of `mlp_hidden` in a 1-based `layer`, with its mean activation on outlier patches."""

    layer: int
    dim: int
    activation: float


@dataclasses.dataclass(frozen=True, eq=False)
class PatchNorms:
    """Holds norms of patches after every block, for each of several images, and what the model says of those.

    Attributes:
      largest: float32 [L, B], of the patch with the largest norm.
      median: float32 [L, B], median over the patches.
      other: float32 [L, B], largest norm of a token that is no patch; 0 where there is none.
      outputs: features and logits.
    """

    largest: np.ndarray
    median: np.ndarray
    other: np.ndarray
    outputs: ImageOutputs


def find_register_neurons(
    model: Model,
    batches: ImageBatches,
    *,
    count: int,
    layer: int | None = None,
    top_layer: int | None = None,
    outlier: float = OUTLIER,
    progress: Progress | None = None,
) -> list[RegisterNeuron]:
    """Finds the neurons most active on outlier patches, averaged over an image's outliers, then over the images.

    Args:
      model: a vision model.
      batches: the images; those without outliers do not count.
      count: how many neurons.
      layer: the layer whose output shows which patches are outliers; None for the last but one.
      top_layer: the last layer whose neurons are considered; None for the one where outliers reach full size.
      outlier: how many times the median norm an outlier exceeds.
      progress: called with the number of images of every batch.

    Returns:
      The neurons, most active first.

    Raises:
      ValueError: no outlier in any image; a layer or count out of range; an MLP of experts, which has no such site.
    """
    config = ImageModel.of(model).config
    L = config.num_layers
    layer = max(1, L - 1) if layer is None else layer
    whole_number("count", count), number("outlier", outlier, 1)
    check_layers([layer, *([] if top_layer is None else [top_layer])], L, "register neurons")
    plan = model.compile_captures(Capture(("block_out", "mlp_hidden")))
    activity, norms, images_with = np.zeros((L, config.intermediate_size)), [], 0
    for _, images in batches:
        images = model.check_images(images)
        with mesh_set(mesh_of_params(model.params)):
            sums, norm, found = fetch(_on_outliers(model.module, model.params, plan, images, layer, outlier))
        activity += sums
        norms.append(norm)
        images_with += int(found)
        if progress is not None:
            progress(len(images))
    if not images_with:
        raise ValueError(
            f"no patch of any image exceeds {outlier:g} times the median norm at the output of block {layer}: there is "
            "nothing to move. Take another layer or a lower factor."
        )
    largest = np.concatenate(norms, axis=1).mean(axis=1)
    last = top_layer or full_size_layer(largest[:layer])
    considered = activity[:last] / images_with
    if not 1 <= count <= considered.size:
        raise ValueError(f"{count} neurons: there are {considered.size} in layers 1 to {last}.")
    order = np.argsort(-considered, axis=None, kind="stable")[:count]
    return [
        RegisterNeuron(int(block) + 1, int(n), float(considered[block, n]))
        for block, n in zip(*np.unravel_index(order, considered.shape), strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("module",))
def _on_outliers(
    module: Any, params: Any, plan: Any, images: jax.Array, layer: jax.Array | int, outlier: jax.Array | float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean activation on an image's outliers, summed over images [L, F]; largest norm [L, B]; images with outliers."""
    sown = forward(module, params, {}, plan, images, logits=False).intermediates
    prefix = module.config.prefix
    norms = _norms(sown["block_out"][:, :, prefix:])
    here = norms[layer - 1]
    outliers = (here > outlier * jnp.median(here, axis=-1, keepdims=True)).astype(jnp.float32)
    weights = outliers / jnp.maximum(outliers.sum(-1, keepdims=True), 1)
    activity = jnp.einsum("LBPF,BP->LF", sown["mlp_hidden"][:, :, prefix:].astype(jnp.float32), weights)
    return activity, norms.max(axis=-1), (outliers.sum(-1) > 0).sum()


def add_register(model: Model) -> ImageModel:
    """Gives `model` one more token of zeros, after its class token and registers and before the patches."""
    vision = ImageModel.of(model)
    config = dataclasses.replace(vision.config, registers=vision.config.registers + 1)
    new = jnp.zeros((1, config.hidden_size), config.jnp_dtype)
    old = [model.params["registers"]] if config.registers > 1 else []
    params = {**model.params, "registers": jnp.concatenate([*old, new])}
    return vision.with_params(config, params)


def move_neurons(model: Model, neurons: Sequence[RegisterNeuron]) -> list[Edit]:
    """Makes edits that move the activations of `neurons` to the last register of `model` (see `add_register`).

    The register takes the largest activation of the other tokens, which become 0.
    """
    register = ImageModel.of(model).config.prefix - 1
    return [Edit("mlp_hidden", layer=n.layer, dim=n.dim, op="move", value=register) for n in neurons]


def patch_norms(
    model: Model, batches: ImageBatches, edits: Sequence[Edit] = (), progress: Progress | None = None
) -> PatchNorms:
    """Measures norms of patches and of the other tokens after every block, and the model's outputs, under `edits`."""
    plan = ImageModel.of(model).compile_captures(Capture("block_out"))
    found = []
    for _, images in batches:
        images = model.check_images(images)
        compiled = model.compile_edits(edits, images)
        with mesh_set(mesh_of_params(model.params)):
            found.append(fetch(_summary(model.module, model.params, compiled, plan, images)))
        if progress is not None:
            progress(len(images))
    largest, median, other = (np.concatenate([norms[i] for norms, *_ in found], axis=1) for i in range(3))
    features = np.concatenate([features for _, features, _ in found])
    logits = None if found[0][2] is None else np.concatenate([logits for *_, logits in found])
    return PatchNorms(largest, median, other, ImageOutputs(features, logits))


@functools.partial(jax.jit, static_argnames=("module",))
def _summary(module: Any, params: Any, edits: Any, plan: Any, images: jax.Array) -> Any:
    """(largest and median patch, largest other token, each [L, B]), features [B, W], logits [B, V] or None."""
    out = forward(module, params, edits, plan, images)
    norms, prefix = _norms(out.intermediates["block_out"]), module.config.prefix
    patches, others = norms[..., prefix:], norms[..., :prefix]
    summary = patches.max(axis=-1), jnp.median(patches, axis=-1), jnp.max(others, axis=-1, initial=0.0)
    assert out.pooled is not None  # it is a vision model
    return summary, out.pooled.astype(jnp.float32), out.logits


def patch_maps(
    model: Model, image: np.ndarray, layer: int, edits: Sequence[Edit] = ()
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draws up two maps over the patches of an image, for a picture.

    Args:
      model: a vision model.
      image: float32 [1, height, width, 3].
      layer: after which block norms are taken.
      edits: interventions.

    Returns:
      The patches' norms, and the class token's attention in the last block, mean over heads (None where there is no
      class token), each [rows, columns].
    """
    config = ImageModel.of(model).config
    grid = config.grid(*image.shape[1:3])
    captures = [Capture("block_out", layers=(layer,)), Capture("attn_probs", layers=(config.num_layers,))]
    kept = model(image, capture=captures, edits=edits, logits=False).intermediates
    norms = fetch(_norms(kept["block_out"][0, 0, config.prefix :])).reshape(grid)
    # After the patches come the slots of an attention bias.
    patches = slice(config.prefix, config.num_tokens(*image.shape[1:3]))
    attention = fetch(kept["attn_probs"][0, 0, :, 0, patches]).mean(axis=0).reshape(grid)
    return norms, attention if config.class_token else None


def _norms(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
