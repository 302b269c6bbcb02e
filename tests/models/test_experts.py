"""Mixture of experts: the tiles, edits of the router, gradients. Parity with torch: tests/zoo/test_mixtral.py, …"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.models import ExpertsConfig
from massive_jax.models.experts import apply_experts
from massive_jax.probe import stack_edits

# (tokens, experts a token, experts)
SIZES = [(1, 1, 1), (1, 2, 8), (3, 4, 64), (40, 2, 4), (40, 1, 7), (9, 5, 5), (700, 2, 3)]


def random_case(tokens, per_token, num_experts, seed=0):
    rng = np.random.default_rng(seed)
    kernels = jnp.asarray(rng.normal(size=(num_experts, 6, 6)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(tokens, 6)), jnp.float32)
    chosen = np.stack([rng.permutation(num_experts)[:per_token] for _ in range(tokens)]).astype(np.int32)
    return kernels, x, jnp.asarray(chosen)


def by_tiles(kernels, x, chosen):
    return apply_experts(lambda e, rows: jnp.tanh(rows @ kernels[e]), x, chosen, len(kernels))


def one_by_one(kernels, x, chosen):
    return jnp.tanh(jnp.einsum("td,txde->txe", x, kernels[chosen]))


@jax.jit
def in_both_ways(kernels, x, chosen):
    return by_tiles(kernels, x, chosen), one_by_one(kernels, x, chosen)


@pytest.mark.parametrize("sizes", SIZES)
def test_every_row_goes_to_its_expert(sizes):
    ours, theirs = in_both_ways(*random_case(*sizes))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("expert", [0, 4, 8])
def test_all_tokens_to_one_expert(expert):
    kernels, x, chosen = random_case(300, 1, 9)
    ours, theirs = in_both_ways(kernels, x, np.full_like(chosen, expert))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "per_token", "num_experts"), [(2048, 2, 8), (2048, 4, 32), (512, 4, 128), (1, 4, 128)]
)
def test_the_work_is_that_of_the_chosen_experts(tokens, per_token, num_experts):
    jaxpr = jax.make_jaxpr(by_tiles)(*random_case(tokens, per_token, num_experts))
    lengths = [eqn.params["length"] for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    out = [eqn.outvars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(lengths) == 1
    rows, chosen = out[0][0] * out[0][1], tokens * per_token
    assert rows <= 1.3 * chosen + 8 * min(chosen, num_experts)
    assert rows < tokens * num_experts


def test_gradients_are_those_of_the_plain_sum():
    kernels, x, chosen = random_case(50, 2, 5)

    @jax.jit
    def gradients(k, x):
        def loss(k, x, way):
            return jnp.sum(way(k, x, chosen) ** 2)

        return [jax.grad(loss, (0, 1))(k, x, way) for way in (by_tiles, one_by_one)]

    ours, theirs = gradients(kernels, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


# The other is gpt-oss's, of another activation: its gradients are quick below, the rest in tests/zoo/test_gpt_oss.py.
@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def model(request, make_model):
    return make_model(num_layers=2, mlp="experts", experts=ExpertsConfig(5, 2, clamped=request.param))


def captured(model, tokens, *sites, edits=None):
    found = model(tokens, capture=mj.Capture(sites), edits=edits).intermediates
    return [np.asarray(found[site]) for site in sites]


def test_router_probabilities_and_weights(model, tiny_tokens):
    probs, weights = captured(model, tiny_tokens, "router_probs", "expert_weights")
    assert probs.shape == weights.shape == (2, 2, 9, 5)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    largest = probs >= np.sort(probs, axis=-1)[..., [-2]]
    np.testing.assert_allclose(
        weights, np.where(largest, probs, 0) / (probs * largest).sum(-1, keepdims=True), atol=1e-6
    )


def test_an_edit_of_the_probabilities_chooses_other_experts(model, tiny_tokens):
    edit = mj.Edit("router_probs", layer=1, position=3, dim=4, op="set", value=5.0)
    before, out_before = captured(model, tiny_tokens, "router_probs", "mlp_out")
    weights, out = captured(model, tiny_tokens, "expert_weights", "mlp_out", edits=edit)
    best = np.sort(np.delete(before[0, :, 3], 4, axis=-1), axis=-1)[:, -1]
    np.testing.assert_allclose(weights[0, :, 3, 4], 5 / (5 + best), atol=1e-6)
    changed = np.abs(out - out_before)[0].max(axis=-1) > 1e-4
    np.testing.assert_array_equal(changed, np.arange(9)[None] == np.full((2, 1), 3))


def test_a_weight_may_be_given_to_any_expert(model, tiny_tokens):
    """With the output of every expert alone, the sum by the edited weights is what comes out."""

    def weights_as(values):
        return [
            mj.Edit("expert_weights", layer=1, dim=expert, op="set", value=float(value))
            for expert, value in enumerate(values)
        ]

    alone = [captured(model, tiny_tokens, "mlp_out", edits=weights_as(row))[0][0] for row in np.eye(5)]
    assert (np.abs(alone).max(axis=-1) > 1e-3).all()  # of those that were not chosen, too
    weights, out = captured(model, tiny_tokens, "expert_weights", "mlp_out")
    np.testing.assert_allclose(np.einsum("btx,xbtd->btd", weights[0], alone), out[0], atol=1e-4)
    given = np.array([0.5, -1.0, 0.0, 2.0, 0.25])
    edited = captured(model, tiny_tokens, "mlp_out", edits=weights_as(given))[0][0]
    np.testing.assert_allclose(edited, np.einsum("x,xbtd->btd", given, alone), atol=1e-4)


def test_edits_under_vmap(model, tiny_tokens):
    """A sweep over experts that are switched off, one at a time."""
    sweep = [
        model.compile_edits(mj.Edit("router_probs", layer=2, dim=expert, op="set", value=0.0), tiny_tokens)
        for expert in range(5)
    ]

    @jax.jit
    def logits(edits):
        return model.module.apply({"params": model.params, "edits": edits}, tiny_tokens)[0]

    together = jax.jit(jax.vmap(logits))(stack_edits(sweep))
    assert len({float(x) for x in jnp.abs(together).sum(axis=(1, 2, 3))}) == 5
    for edits, expected in zip(sweep, together, strict=True):
        np.testing.assert_allclose(logits(edits), expected, atol=2e-4)


@pytest.mark.parametrize("model", [False, True], indirect=True)
def test_gradients_are_finite_and_reach_every_parameter(model, tiny_tokens):
    def loss(params):
        logits, _ = model.module.apply({"params": params}, tiny_tokens)
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(model.params)):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


def test_sites_that_a_model_does_not_have(model, tiny_model, tiny_tokens):
    for which, site in ((model, "mlp_hidden"), (tiny_model, "router_probs"), (tiny_model, "expert_weights")):
        with pytest.raises(ValueError, match=f"this model has no site {site}"):
            which(tiny_tokens, capture=mj.Capture(site))
        with pytest.raises(ValueError, match=f"this model has no site {site}"):
            which(tiny_tokens, edits=mj.Edit(site, layer=1, value=0.0))
