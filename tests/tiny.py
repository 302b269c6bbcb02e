"""The tiny model that most tests run on; `make_model` in conftest.py fills it with random numbers."""

from massive_jax.models import NormConfig, TransformerConfig
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
BOS = 256
TINY_SITES = tuple(SITES)
