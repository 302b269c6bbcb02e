"""A model as an NNX module: the same outputs and gradients, and its parameters back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import massive_jax as mj
from tests.fixtures import families, parity


def assert_same_outputs(model, module, inputs):
    ours, theirs = model(inputs), nnx.jit(lambda m, x: m(x))(module, inputs)
    for name in ("logits", "last_hidden", "pooled"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FIRST)
def test_every_family(tmp_path, family):
    case = families.CASES[families.FIRST[family]]
    case.build(tmp_path / "model")
    model = parity.load(tmp_path / "model")
    module = model.to_nnx()
    assert_same_outputs(model, module, case.inputs)
    parity.assert_same_params(model.from_nnx(module).params, model.params)


def test_outputs_gradients_and_state(tiny_model, tiny_tokens):
    """A step downhill, by NNX, of a module that was split and merged; the model of before is as it was."""
    module = tiny_model.to_nnx()
    graph, state = nnx.split(module)
    module = nnx.merge(graph, state)

    @nnx.jit
    def step(module, tokens):
        def loss(m):
            return jnp.mean(jax.nn.logsumexp(m(tokens).logits, axis=-1))

        value, gradient = nnx.value_and_grad(loss)(module)
        nnx.update(module, jax.tree.map(lambda x, g: x - 0.1 * g, nnx.state(module, nnx.Param), gradient))
        return value, module(tokens), gradient

    value, out, gradient = step(module, tiny_tokens)
    changed = tiny_model.from_nnx(module)
    np.testing.assert_allclose(value, jax.nn.logsumexp(tiny_model(tiny_tokens).logits, axis=-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(changed(tiny_tokens).logits, out.logits, rtol=1e-4, atol=1e-4)
    head, slope = tiny_model.params["head"], gradient["head"][...]
    np.testing.assert_allclose(changed.params["head"], head - 0.1 * slope, rtol=1e-6, atol=1e-7)
    assert float(jnp.abs(slope).max()) > 0
    parity.assert_same_params(tiny_model.from_nnx(tiny_model.to_nnx()).params, tiny_model.params)


@pytest.mark.slow
def test_a_mask(tiny_model, tiny_tokens):
    mask = np.ones(tiny_tokens.shape, bool)
    mask[0, :3] = False
    expected = tiny_model(tiny_tokens, mask=mask).logits[0, 3:]
    np.testing.assert_allclose(tiny_model.to_nnx()(tiny_tokens, mask=mask).logits[0, 3:], expected, atol=1e-5)


def test_what_is_refused(tiny_model, tiny_vision, tiny_tokens):
    with pytest.raises(ValueError, match=r"capture: .*model\.from_nnx"):
        tiny_model.to_nnx()(tiny_tokens, capture=mj.Capture("block_out"))
    with pytest.raises(ValueError, match="not one of this model: class_token"):
        tiny_model.from_nnx(tiny_vision.to_nnx())
    with pytest.raises(ValueError, match="give what `to_nnx` made"):
        tiny_model.from_nnx(tiny_model.params)
