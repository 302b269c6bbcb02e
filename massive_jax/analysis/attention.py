"""What attends to massive activations (paper, section 4).

Axis letters: see `massive_jax.probe.sites`; L' layers kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def attention_shares(mass: np.ndarray, keys: Sequence[int]) -> np.ndarray:
    """Share of attention that lands on the key positions `keys`, per layer.

    Args:
      mass: [L', B, H, S], from `Capture("attn_probs", mass=True)`: the probability of each key, averaged over queries.
      keys: key positions, the same in every sequence.

    Returns:
      [L'] averaged over heads and sequences.
    """
    mass = np.asarray(mass, np.float32)
    return mass[..., np.asarray(keys, int)].sum(axis=-1).mean(axis=(1, 2))
