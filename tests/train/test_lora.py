"""LoRA: adapters of any family's kernels, which start without effect, and are trained alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.models import ExpertsConfig
from massive_jax.train import lora_init, lora_merge
from tests.fixtures import parity


def test_it_is_a_product_of_low_rank_and_starts_at_nothing(tiny_model):
    adapters, merge = lora_init(tiny_model, rank=2, where="layers/attn/(query|out)/kernel"), jax.jit(lora_merge)
    parity.assert_same_params(merge(tiny_model.params, adapters, 0.5), tiny_model.params)
    shapes = {path.split("/")[2]: {name: x.shape for name, x in it.items()} for path, it in adapters.items()}
    assert shapes["query"] == {"down": (4, 32, 2), "up": (4, 2, 4, 8)}
    assert shapes["out"] == {"down": (4, 4, 8, 2), "up": (4, 2, 32)}
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), adapters)
    merged = merge(tiny_model.params, adapters, 0.5)
    before, after = (jax.device_get(params["layers"]["attn"]) for params in (tiny_model.params, merged))
    for part in ("query", "out"):
        it = adapters[f"layers/attn/{part}/kernel"]
        change = 0.5 * it["down"][1].reshape(32, 2) @ it["up"][1].reshape(2, 32)
        difference = after[part]["kernel"][1] - before[part]["kernel"][1]
        np.testing.assert_allclose(difference.reshape(32, 32), change, atol=1e-5)
    np.testing.assert_array_equal(after["key"]["kernel"], before["key"]["kernel"])


def test_every_kernel_of_a_mixture_of_experts(make_model):
    """Each expert has its own."""
    model = make_model(mlp="experts", experts=ExpertsConfig(3, 2), num_layers=2)
    adapters = lora_init(model, rank=1, where="layers/.*")
    assert adapters["layers/experts/gate"]["down"].shape == (2, 3, 32, 1)
    assert adapters["layers/experts/down"]["up"].shape == (2, 3, 1, 32)
    merged = jax.eval_shape(lora_merge, model.params, adapters)
    assert jax.tree.map(lambda x: x.shape, merged) == jax.tree.map(lambda x: x.shape, model.params)


def test_what_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"no kernel has a path that 'mlp' matches; there are .*layers/mlp/up/kernel"):
        lora_init(tiny_model, where="mlp")
    with pytest.raises(ValueError, match="rank"):
        lora_init(tiny_model, rank=0)
    with pytest.raises(ValueError, match="give a Model"):
        lora_init(tiny_model.params)
    for where, message in (("(", r"where is '\(', no regular expression: "), (3, "where is 3, no regular expression")):
        with pytest.raises(ValueError, match=message):
            lora_init(tiny_model, where=where)
    adapters = lora_init(tiny_model, rank=1)
    with pytest.raises(ValueError, match="there is no kernel layers/attn/.*: it is another model's"):
        lora_merge({"layers": {}}, adapters)
    for wrong in ([1], {"layers/attn/query/kernel": {"down": np.zeros(1)}}):
        with pytest.raises(ValueError, match="adapters is .*; give what lora_init made"):
            lora_merge(tiny_model.params, wrong)
    fewer = jax.tree.map(lambda leaf: leaf[:2], dict(tiny_model.params))
    with pytest.raises(ValueError, match=r"kernel is \[2, 32, .*\], its adapter \[4, 32, .*\]: another model's"):
        lora_merge(fewer, adapters)


@pytest.mark.slow
def test_trained_saved_and_exported(tmp_path, tiny_model, tiny_tokens):
    """The result is a model like any other."""
    adapters = lora_init(tiny_model, rank=2)

    def loss(adapters):
        model = tiny_model.with_params(tiny_model.config, lora_merge(tiny_model.params, adapters))
        return jnp.mean(jax.nn.logsumexp(model(tiny_tokens).logits, axis=-1))

    before, gradient = jax.value_and_grad(loss)(adapters)
    adapters = jax.tree.map(lambda x, g: x - 0.5 * g, adapters, gradient)
    assert float(loss(adapters)) < float(before)
    tuned = tiny_model.with_params(tiny_model.config, lora_merge(tiny_model.params, adapters))
    mj.save(tuned, tmp_path / "saved")
    parity.assert_same_params(mj.load(tmp_path / "saved").params, tuned.params)
    parity.assert_same_params(parity.load(mj.export(tuned, tmp_path / "out")).params, tuned.params)
