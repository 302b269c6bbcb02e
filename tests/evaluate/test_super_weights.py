"""Super weights: a planted one is found, and pruning is the model with other parameters."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax.analysis import Thresholds
from massive_jax.data import Windows
from massive_jax.evaluate import measure_super_weights, window_nll
from massive_jax.models import ExpertsConfig, NormConfig
from massive_jax.models.mlp_weights import mlp_weights
from massive_jax.probe import Capture
from tests.fixtures.tiny import BOS, programs

nll_module = sys.modules["massive_jax.evaluate.perplexity"]
LAYER, UNIT, DIM = 2, 5, 7


@pytest.fixture(scope="module")
def windows():
    tokens = np.random.default_rng(3).integers(0, BOS, size=(4, 10), dtype=np.int32)
    tokens[:, 0] = BOS
    return Windows(tokens, 9, True)


def plant(model, weight=300.0):
    """BOS carries a direction of its own, which unit 5 of block 2 alone looks for, and writes to dim 7."""
    direction = np.random.default_rng(9).normal(size=model.config.hidden_size)
    direction = jnp.asarray(direction / np.linalg.norm(direction), jnp.float32)
    params = jax.tree.map(jnp.asarray, model.params)
    params["embedding"] = params["embedding"].at[BOS].set(60 * direction)
    for norm in ("mlp_norm", "attn_norm"):
        if "scale" in params["layers"].get(norm, {}):
            params["layers"][norm]["scale"] = jnp.ones_like(params["layers"][norm]["scale"])
    mlp = params["layers"]["mlp"]
    for name in ("gate", "up"):
        if name in mlp:
            mlp[name]["kernel"] = mlp[name]["kernel"].at[LAYER - 1, :, UNIT].set(2 * direction)
    mlp["down"]["kernel"] = mlp["down"]["kernel"].at[LAYER - 1, UNIT, DIM].set(weight)
    return dataclasses.replace(model, params=params)


@pytest.fixture(scope="module")
def planted(tiny_model):
    return plant(tiny_model)


@pytest.fixture(scope="module")
def found(planted, windows):
    return measure_super_weights(planted, windows, others=20, tested=1)


def test_a_planted_super_weight_is_found(found, planted, windows):
    (weight,) = found.tested
    assert (weight.layer, weight.position, weight.unit, weight.dim) == (LAYER, 0, UNIT, DIM)
    assert (weight.share, weight.value, weight.rank, weight.size) == (1.0, 300.0, 1, 48 * 32)
    kept = planted(windows.tokens, capture=[Capture("mlp_hidden"), Capture("mlp_out")]).intermediates
    assert weight.hidden == pytest.approx(float(kept["mlp_hidden"][LAYER - 1, :, 0, UNIT].mean()), rel=1e-5)
    assert weight.output == pytest.approx(float(kept["mlp_out"][LAYER - 1, :, 0, DIM].mean()), rel=1e-5)
    assert weight.output == pytest.approx(weight.value * weight.hidden, rel=0.05)
    told = found.from_weights
    assert told.gains[LAYER - 1].unit == UNIT
    assert told.gains[LAYER - 1].dim == DIM
    assert (told.largest_layer, told.birth_layer, told.birth_rank, told.names_weight) == (LAYER, LAYER, 1, True)
    assert [signature.layer for signature in found.signatures] == [1, 2, 3, 4]


def test_pruned_is_the_model_with_zeros(found, planted, windows):
    (weight,) = found.tested
    original = window_nll(planted, windows)
    kernel = np.asarray(planted.params["layers"]["mlp"]["down"]["kernel"]).copy()
    kernel[LAYER - 1, UNIT, DIM] = 0
    assert weight.without.perplexity.value == pytest.approx(scores(planted, windows, kernel).value, rel=1e-5)
    kernel = np.asarray(planted.params["layers"]["mlp"]["down"]["kernel"]).copy()
    order = np.argsort(-np.abs(kernel[LAYER - 1]), axis=None)[1:21]
    kernel[LAYER - 1].ravel()[order] = 0
    others = scores(planted, windows, kernel)
    assert weight.without_others.weights == 20
    assert weight.without_others.perplexity.value == pytest.approx(others.value, rel=1e-5)
    assert weight.without_others.nats.value == pytest.approx(others.mean - original.mean, abs=1e-5)
    beyond = weight.without.nats.low > 0 and weight.excess.low > 0
    assert weight.confirmed == (weight.without.nats.value >= 0.1 and beyond)


def scores(model, windows, kernel):
    down = {**model.params["layers"]["mlp"]["down"], "kernel": jnp.asarray(kernel)}
    layers = {**model.params["layers"], "mlp": {**model.params["layers"]["mlp"], "down": down}}
    return window_nll(dataclasses.replace(model, params={**model.params, "layers": layers}), windows)


def test_pruning_compiles_nothing(found, planted, windows):
    before = programs(nll_module._nll)
    measure_super_weights(planted, windows, others=20, tested=2, thresholds=Thresholds(1.0, 1.0))
    assert programs(nll_module._nll) == before


def test_nothing_massive_is_no_super_weight(tiny_model, windows):
    found = measure_super_weights(tiny_model, windows)
    assert found.tested == found.confirmed == ()
    assert len(found.signatures) == 4


PLAIN = {"mlp": "plain", "activation": "gelu", "mlp_bias": True, "norm": NormConfig("layer")}


@pytest.mark.parametrize(
    "changes",
    [
        {**PLAIN, "residual": "parallel_shared_norm"},
        pytest.param({"norm_placement": "pre_and_output"}, marks=pytest.mark.slow),
    ],
    ids=["plain-parallel", "norms-around"],
)
def test_other_blocks(make_model, windows, changes):
    model = plant(make_model(**changes), 3000.0)
    normed = "norm_placement" in changes  # what is added is never massive then, but its direction is
    found = measure_super_weights(model, windows, tested=1, thresholds=Thresholds(1.0, 1.0) if normed else Thresholds())
    signature = found.signatures[LAYER - 1]
    assert (signature.position, signature.unit, signature.dim) == (0, UNIT, DIM)
    gain = found.from_weights.gains[LAYER - 1]
    assert gain.unit == UNIT
    assert gain.dim == DIM
    assert gain.gain * 1.01 >= abs(signature.output)


@pytest.mark.parametrize(
    "changes",
    [
        {"residual": "parallel_shared_norm"},
        {"norm_placement": "after_residual"},
        {"norm_placement": "pre_and_output", "norm": NormConfig(unit_offset=True)},
    ],
    ids=["shared", "after", "around"],
)
def test_the_norm_that_an_mlp_reads_through(make_model, tiny_tokens, changes):
    """What it reads, without the scale, has a mean square of 1."""
    model = make_model(num_layers=2, **changes)
    read = np.asarray(model(tiny_tokens, capture=Capture("mlp_norm"), logits=False).intermediates["mlp_norm"])
    weights = mlp_weights(model.config, model.params)
    plain = read / np.asarray(weights.scale)[:, None, None]
    np.testing.assert_allclose((plain**2).mean(axis=-1), 1, rtol=1e-3)
    assert (weights.out_scale is not None) == (changes.get("norm_placement") == "pre_and_output")


def test_experts_are_refused_by_name(make_model, windows):
    mixture = make_model(mlp="experts", experts=ExpertsConfig(num_experts=3, num_chosen=2))
    with pytest.raises(ValueError, match="tiny: the MLPs are a mixture of 3 experts"):
        measure_super_weights(mixture, windows)


def test_wrong_arguments(tiny_model, tiny_vision, windows):
    for options, message in (
        ({"others": 0}, "others is 0"),
        ({"tested": 1.5}, r"tested is 1\.5"),
        ({"thresholds": (1, 2)}, "give Thresholds"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_super_weights(tiny_model, windows, **options)
    with pytest.raises(ValueError, match="is a vision model"):
        measure_super_weights(tiny_vision, windows)


@pytest.mark.slow
def test_the_default_model(default_model):
    """PAPER.md's numbers for the weight itself; what pruning does, in direction."""
    from massive_jax.data import cut_windows, load_text

    windows = cut_windows(default_model, load_text("python"), windows=16, context=64)
    found = measure_super_weights(default_model, windows)
    first = found.tested[0]
    assert (first.layer, first.unit, first.dim, first.rank, first.size) == (12, 1229, 507, 2, 884_736)
    assert first.value == pytest.approx(5.88, abs=0.01)
    assert [weight.layer for weight in found.confirmed] == [12]
    assert first.without.perplexity.low > 2 * first.without_others.perplexity.value
    told = found.from_weights
    assert (told.birth_layer, told.named_layer, told.largest_layer, told.names_weight) == (12, 12, 29, True)
