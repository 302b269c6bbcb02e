"""What attends to massive activations (paper, section 4).

Axis letters: see `massive_jax.probe.sites`; L' layers kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from massive_jax.arguments import whole_number


def attention_shares(mass: np.ndarray, keys: Sequence[int]) -> np.ndarray:
    """Gives the share of attention that lands on the key positions `keys`, per layer.

    Args:
      mass: [L', B, H, S], from `Capture("attn_probs", mass=True)`: the probability of each key, averaged over queries.
      keys: key positions, the same in every sequence.

    Returns:
      [L'] averaged over heads and sequences.

    Raises:
      ValueError: a key that is not there; a negative one would be counted from the end.
    """
    mass = np.asarray(mass, np.float32)
    for key in keys:
        whole_number("key", key, 0, mass.shape[-1] - 1)
    return mass[..., np.asarray(keys, int)].sum(axis=-1).mean(axis=(1, 2))


def sink_shares(mass: np.ndarray, length: int, *, causal: bool) -> np.ndarray:
    """Gives the share of attention on its sink, per layer.

    The sink is position 0 of a causal sequence, and else each one's most attended token.

    Args:
      mass: as for `attention_shares`.
      length: T; keys from there on are slots of an attention bias and do not count.
      causal: whether the model is.

    Returns:
      [L'] averaged over heads and sequences.
    """
    if causal:
        return attention_shares(mass, [0])
    by_token = np.asarray(mass, np.float32)[..., :length].mean(axis=2)  # [L', B, T]
    return by_token.max(axis=-1).mean(axis=-1)
