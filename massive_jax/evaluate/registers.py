"""Register tokens of a vision model: their mean features at every block. Axis letters: `massive_jax.probe.sites`; R
registers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.analysis.registers import RegisterMeans
from massive_jax.evaluate.batches import Progress
from massive_jax.evaluate.images import ImageBatches
from massive_jax.forward import forward
from massive_jax.model import ImageModel, Model
from massive_jax.models import VisionConfig
from massive_jax.parallel import fetch, mesh_of_params, mesh_set
from massive_jax.probe import Capture


def register_shape(model: Model) -> tuple[int, int, int]:
    """Gives [L, R, D] of the model's register means; ValueError where it has no registers."""
    config = ImageModel.of(model).config
    if not config.registers:
        raise ValueError(f"{model.name} has no register tokens; DINOv2 with registers has, say.")
    return config.num_layers, config.registers, config.hidden_size


def mean_registers(model: Model, batches: ImageBatches, progress: Progress | None = None) -> RegisterMeans:
    """Averages over images the register features at the input of every block.

    Args:
      model: a vision model with registers.
      batches: the images.
      progress: called with the number of images of every batch.

    Raises:
      ValueError: no registers; no images.
    """
    total, count = np.zeros(register_shape(model)), 0
    layers = range(1, model.config.num_layers)
    plan = model.compile_captures(
        [Capture("embed"), Capture("block_out", layers=layers)] if layers else Capture("embed")
    )
    for _, images in batches:
        images = model.check_images(images)
        with mesh_set(mesh_of_params(model.params)):
            total += fetch(_summed(model.module, model.params, plan, images))
        count += len(images)
        if progress is not None:
            progress(len(images))
    if not count:
        raise ValueError("there are no images to average over.")
    return RegisterMeans((total / count).astype(np.float32))


@functools.partial(jax.jit, static_argnames=("module",))
def _summed(module: Any, params: Any, plan: Any, images: jax.Array) -> jax.Array:
    """Register features at the input of every block, summed over the images: float32 [L, R, D]."""
    config: VisionConfig = module.config
    sown = forward(module, params, {}, plan, images, logits=False).intermediates
    states = [sown["embed"][None], *([sown["block_out"]] if "block_out" in sown else [])]
    registers = slice(config.prefix - config.registers, config.prefix)
    return jnp.concatenate([jnp.sum(x[:, :, registers].astype(jnp.float32), axis=1) for x in states])
