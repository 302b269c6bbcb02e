"""Projections: what they compute, and how exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax.models.linear import Projection


@pytest.mark.parametrize(
    ("equation", "shape", "use_bias"),
    [
        ("BTD,DF->BTF", (1536, 24), False),
        ("BTD,DHN->BTHN", (576, 3, 8), True),
        ("BTHN,HND->BTD", (9, 64, 24), False),
        ("BTpqC,DpqC->BTD", (24, 16, 16, 3), True),
        ("BTpqC,DCpq->BTD", (24, 3, 16, 16), False),
        ("BTD,DF->BTF", (257, 24), False),  # a prime: one sum
        ("BTD,DF->BTF", (16, 24), True),
    ],
)
def test_products_and_gradients_are_the_einsums(equation, shape, use_bias):
    rng = np.random.default_rng(0)
    axes, kernel_axes = equation.split("->")[0].split(",")
    sizes = {"B": 2, "T": 5} | dict(zip(kernel_axes, shape, strict=True))
    x = rng.standard_normal([sizes[axis] for axis in axes]).astype(np.float32)
    module = Projection(shape, equation, use_bias)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), params)

    def einsum(params, x):
        return jnp.einsum(equation, x, params["kernel"]) + params.get("bias", 0.0)

    def ours(params, x):
        return module.apply({"params": params}, x)

    weights = rng.standard_normal(jax.eval_shape(einsum, params, x).shape).astype(np.float32)

    @jax.jit
    def products_and_gradients(params, x):
        def loss(params, x, f):
            out = f(params, x)
            return jnp.vdot(weights, out), out

        return [jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x, f) for f in (ours, einsum)]

    (got, product), (expected, its) = products_and_gradients(params, x)
    np.testing.assert_allclose(product, its, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how the CPU backend adds up")
@pytest.mark.parametrize("width", [576, 1536])
def test_a_wide_product_is_as_exact_as_pytorchs(width):
    """One long sum is off by 7 and 12 units in the last place here, PyTorch's product by 4.2 and 4.3."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, width), (width, 576)))
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    got = Projection((width, 576), "TD,DF->TF").apply({"params": {"kernel": kernel}}, x)
    error = np.sqrt(np.mean((np.asarray(got, np.float64) - exact) ** 2) / np.mean(exact**2))
    assert error < 4.5 * 2.0**-24
