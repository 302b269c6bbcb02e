"""Norms and what is in their place, against their formulas in float64: forward, and gradients by differences."""

import dataclasses

import jax
import numpy as np
import pytest

from massive_jax.models import NormConfig, frozen_norm
from massive_jax.models.mlp_weights import mlp_weights
from massive_jax.models.norms import Norm
from tests.fixtures.tiny import TINY, random_model

KINDS = {
    "dynamic_tanh": NormConfig("dynamic_tanh", alpha=0.8),
    "dynamic_tanh_without_bias": NormConfig("dynamic_tanh", bias=False, unit_offset=True),
    "dynamic_tanh_of_one_scale": NormConfig("dynamic_tanh", single_scale=True),
    "rms_of_one_scale": NormConfig(single_scale=True, unit_offset=True),
    "layer_of_one_scale": NormConfig("layer", single_scale=True),
    "rms": NormConfig(),
    "layer": NormConfig("layer"),
}


def formula(config, x, scale, bias=0.0, alpha=None):
    if config.kind == "dynamic_tanh":
        x = np.tanh(alpha * x)
    else:
        x = x - (x.mean(axis=-1, keepdims=True) if config.kind == "layer" else 0.0)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.eps)
    return x * (scale + config.unit_offset) + bias


@pytest.mark.parametrize("name", KINDS)
def test_formula(name):
    """Value, and the derivative along a direction in input and parameters."""
    config, rng = KINDS[name], np.random.default_rng(0)
    module, x = Norm(config), rng.normal(size=(3, 6)) * [[0.1], [1.0], [30.0]]
    with jax.enable_x64(True):
        start = jax.tree.map(np.asarray, module.init(jax.random.key(0), x)["params"])
        shapes = {"scale": (1,) if config.single_scale else (6,)}
        shapes |= {"bias": (6,)} if config.kind != "rms" and config.bias else {}
        shapes |= {"alpha": (1,)} if config.kind == "dynamic_tanh" else {}
        assert {name: leaf.shape for name, leaf in start.items()} == shapes
        np.testing.assert_allclose(start.get("alpha", config.alpha), config.alpha, rtol=1e-6)
        params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        tangents = x_tangent, params_tangent = rng.normal(size=x.shape), jax.tree.map(np.ones_like, params)
        found, slope = jax.jvp(lambda x, params: module.apply({"params": params}, x), (x, params), tangents)

    def along(step):
        return formula(config, x + step * x_tangent, **{n: v + step * params_tangent[n] for n, v in params.items()})

    np.testing.assert_allclose(found, along(0.0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["dynamic_tanh_of_one_scale", "rms_of_one_scale"])
def test_sixteen_bits_are_computed_in_float32(name):
    module, x = Norm(KINDS[name]), np.linspace(-40, 40, 12, dtype=np.float16).reshape(2, 6)
    params = module.init(jax.random.key(0), x)["params"]
    found = module.apply({"params": params}, x)
    assert found.dtype == np.float16
    exact = formula(KINDS[name], x.astype(np.float64), **{n: np.asarray(v, np.float64) for n, v in params.items()})
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)


def test_weights_of_the_mlp_have_a_scale_for_every_dim():
    model = random_model(dataclasses.replace(TINY, norm=NormConfig(single_scale=True)))
    scale = np.asarray(mlp_weights(model.config, model.params).scale)
    assert scale.shape == (4, 32)
    np.testing.assert_array_equal(scale, np.tile(model.params["layers"]["mlp_norm"]["scale"], 32))


def test_a_dynamic_tanh_on_what_the_mlp_gives_bounds_nothing_by_weights():
    config = dataclasses.replace(TINY, norm=NormConfig("dynamic_tanh"), norm_placement="output")
    with pytest.raises(ValueError, match=r"^a dynamic tanh is on what the MLPs give \(norm_placement 'output'\)"):
        mlp_weights(config, {})


@pytest.mark.parametrize("name", KINDS)
def test_frozen(name):
    """Where it is frozen it is the norm; it is affine, and `back` is its transpose."""
    config, rng = KINDS[name], np.random.default_rng(1)
    module, x, y, direction = Norm(config), *rng.normal(size=(3, 3, 6))
    x[0] *= 1e-3  # where the quotient of a dynamic tanh is 0 / 0, or nearly
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), module.init(jax.random.key(0), x)["params"])
        norm = frozen_norm(config, params, x)
        np.testing.assert_allclose(norm(x), module.apply({"params": params}, x), rtol=1e-6)
        np.testing.assert_allclose(norm(x + y) + norm(0 * x), norm(x) + norm(y), rtol=1e-9, atol=1e-9)
        along = (direction * (norm(y) - norm(0 * y))).sum(axis=-1)
        np.testing.assert_allclose((norm.back(direction) * y).sum(axis=-1), along, rtol=1e-9)
