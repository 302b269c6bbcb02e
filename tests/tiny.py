"""The tiny model that most tests run on; `make_model` in conftest.py fills it with random numbers."""

from massive_jax.models import NormConfig, TransformerConfig, VisionConfig
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
