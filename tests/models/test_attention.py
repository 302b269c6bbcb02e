"""Causal attention, some rows of it at a time, against all of it at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax.models import attention
from massive_jax.models.attention import Surroundings, attend, causal_mask
from tests.fixtures.tiny import TINY

B, H, K, N = 2, 4, 2, 8


@pytest.mark.parametrize(
    ("T", "window", "bias", "softcap", "rows"),
    [
        (1, None, None, None, 1),
        (7, None, "keys", None, 2),
        (40, None, "queries and keys", 3.0, 10),
        (40, 1, None, None, 9),
        (39, 5, "keys", None, 3),
        (21, 50, "queries and keys", None, 20),
    ],
)
def test_rows_at_a_time_equal_all_at_once(T, window, bias, softcap, rows):
    cfg = dataclasses.replace(TINY, window=window, attention_softcap=softcap)
    rng = np.random.default_rng(T)
    query, key, value = (jnp.asarray(rng.normal(size=(B, T, heads, N)), jnp.float32) for heads in (H, K, K))
    shape = {None: None, "keys": (1, H, 1, T), "queries and keys": (B, H, T, T)}[bias]
    added = None if shape is None else jnp.asarray(rng.normal(size=shape), jnp.float32)

    @jax.jit
    def both(query, key, value, added):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(attention, "_ROWS", rows)
            got = attend(cfg, query, key, value, Surroundings(None, None, added, None))
        # A mask that is given says nothing of what can be left out.
        return got, attend(cfg, query, key, value, Surroundings(None, None, added, causal_mask(T, window)[None]))

    got, expected = both(query, key, value, added)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
