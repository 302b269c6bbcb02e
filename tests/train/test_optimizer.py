"""The recipe: what decays, by how much, under which learning rate."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from massive_jax.models import AttentionBias, LanguageModel
from massive_jax.train import OptimizerConfig, decayed, make_optimizer
from tests.fixtures.train_shapes import BIASED, GPT, RECIPE


def test_decay_mask_is_nanogpts():
    """Matrices and embeddings decay; norms, stacked over layers [L, D], and biases, [L, H, N] among them, do not."""
    tree = decayed(LanguageModel(BIASED))
    mask = {"/".join(k.key for k in path): bool(m) for path, m in jax.tree.leaves_with_path(tree)}
    assert {name for name, decays in mask.items() if decays} == {
        "embedding",
        "position_embedding",
        *(f"layers/attn/{name}/kernel" for name in ("query", "key", "value", "out")),
        *(f"layers/mlp/{name}/kernel" for name in ("up", "down")),
    }
    assert len(mask) == 8 + 6 + 3 * 2


def test_extra_keys_and_values_decay_and_a_logit_a_head_does_not():
    found = decayed(LanguageModel(dataclasses.replace(GPT, attention_bias=AttentionBias("kv", offset=True))))
    assert found["layers"]["attn"]["slots"] == {"key": True, "value": True, "logit": False}


def test_schedule():
    recipe = OptimizerConfig()
    at = {step: float(recipe.schedule(step)) for step in (0, 1999, 2000, 301_000, 600_000, 700_000)}
    assert at[0] == pytest.approx(6e-4 / 2001)
    assert at[1999] == pytest.approx(6e-4 * 2000 / 2001)
    assert at[2000] == pytest.approx(6e-4)
    assert at[301_000] == pytest.approx((6e-4 + 6e-5) / 2)
    assert at[600_000] == at[700_000] == pytest.approx(6e-5)


def test_one_step_by_hand():
    """Adam's first step is the sign of the gradient; decay comes on top, for what decays, times the learning rate."""
    params = {"embedding": np.full((2, 2), 2.0, np.float32), "norm": {"scale": np.ones(2, np.float32)}}
    grads = jax.tree.map(lambda p: np.full_like(p, 5.0), params)
    optimizer = make_optimizer(RECIPE, {"embedding": True, "norm": {"scale": False}})
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    rate = 1e-2 / 4
    np.testing.assert_allclose(updates["embedding"], -rate * (1 + 0.1 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(updates["norm"]["scale"], -rate, rtol=1e-5)


def test_gradients_are_clipped_together():
    """Of a small gradient after a large clipped one, Adam sees both at their clipped size."""
    params = {"embedding": np.zeros((1, 1), np.float32)}
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, decay_steps=10), {"embedding": True})
    state = optimizer.init(params)
    _, state = optimizer.update({"embedding": np.full((1, 1), 100.0, np.float32)}, state, params)
    adam = optax.tree.get(state, "mu")
    assert float(adam["embedding"][0, 0]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0, "final_learning_rate": 0.0}, "give a positive one"),
        ({"final_learning_rate": 1.0}, "no larger"),
        ({"warmup_steps": 600_000}, "the warm-up must end first"),
        ({"clip": 0.0}, "positive norm"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)
    assert math.isfinite(OptimizerConfig().clip)
