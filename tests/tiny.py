"""The tiny models that most tests run on, and what fills them with random numbers."""

import jax
import numpy as np

import massive_jax as mj
from massive_jax.models import NormConfig, TransformerConfig, VisionConfig, build
from massive_jax.probe import SITES

TINY = TransformerConfig(
    vocab_size=260,  # the 256 bytes, BOS, and three rows of padding
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position=96,
    norm=NormConfig(eps=1e-5),
)
TINY_VISION = VisionConfig(
    image_size=(28, 28),
    patch_size=7,
    registers=2,
    num_classes=5,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    intermediate_size=48,
    norm=NormConfig("layer"),
    qkv_bias=True,
    layer_scale=True,
)
BOS = 256
TINY_SITES = tuple(SITES)


def random_model(config, seed: int = 0, **parts) -> mj.Model:
    """A model of `config` whose every parameter is away from its default."""
    module = build(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), config.example)["params"]
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name == "scale":
            value = 1 + 0.3 * rng.normal(size=leaf.shape)
        elif name == "kernel":
            # The contracted axes come first, after the layers' own: one for most, H and N for "out".
            fan_in = leaf.shape[1] * (leaf.shape[2] if path[-2].key == "out" else 1)
            value = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        else:
            value = 0.5 * rng.normal(size=leaf.shape)
        return jax.numpy.asarray(value, config.jnp_dtype)

    return mj.Model(module, jax.tree_util.tree_map_with_path(fill, shapes), config, name="tiny", **parts)
