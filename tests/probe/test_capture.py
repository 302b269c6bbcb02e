"""What is kept of a forward pass, against the whole tensors; and what is refused."""

import jax
import numpy as np
import pytest

from massive_jax.probe import SITES, Capture, Edit, Stats, compile_captures
from tests.fixtures.tiny import TINY_SITES

# One of each kind of axes, in every layer and once; the others are the same code.
EACH_KIND = ("embed", "query", "value", "attn_probs", "mlp_hidden", "block_out", "logits")


@pytest.fixture(scope="module", params=[EACH_KIND, pytest.param(TINY_SITES, marks=pytest.mark.slow)], ids=len)
def whole(request, tiny_model, tiny_tokens):
    """Sites whole, in every layer, with every reduction."""
    reductions = dict.fromkeys(("median", "max", "mean", "variance", "kurtosis"), True)
    others = tuple(site for site in request.param if site != "attn_probs")
    capture = [
        Capture(others, top_k=5, **reductions, tensor=True),
        Capture("attn_probs", top_k=5, **reductions, mass=True, tensor=True),
    ]
    return jax.device_get(tiny_model(tiny_tokens, capture=capture).intermediates)


def test_reductions_equal_numpys_of_the_whole_tensor(whole):
    for site, stats in whole.items():
        check_reductions(site, stats, SITES[site].axes)


def check_reductions(site, stats, axes):
    x = stats.tensor.astype(np.float64)
    lead = x.ndim - len(axes) + 1  # [L, B], or [B]
    flat = x.reshape(*x.shape[:lead], -1)
    magnitude = np.abs(flat)
    order = np.argsort(-magnitude, axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(stats.top_values, np.take_along_axis(flat, order, axis=-1), site)
    expected = np.unravel_index(order, x.shape[lead:])
    names = {"T": "position", "S": "key", "H": "head", "K": "head"}
    for axis, indices in zip(axes[1:], expected, strict=True):
        np.testing.assert_array_equal(stats.top_indices[names.get(axis, "dim")], indices, site)
    assert len(stats.top_indices) == len(axes) - 1
    np.testing.assert_array_equal(stats.median, np.sort(magnitude, axis=-1)[..., (flat.shape[-1] - 1) // 2], site)
    np.testing.assert_array_equal(stats.max, magnitude.max(axis=-1), site)
    centred = flat - flat.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(stats.mean, flat.mean(axis=-1), rtol=1e-4, atol=1e-6, err_msg=site)
    np.testing.assert_allclose(stats.variance, flat.var(axis=-1), rtol=1e-5, err_msg=site)
    kurtosis = (centred**4).mean(axis=-1) / flat.var(axis=-1) ** 2
    np.testing.assert_allclose(stats.kurtosis, kurtosis, rtol=1e-4, err_msg=site)
    assert (stats.mass is None) == (site != "attn_probs"), site


def test_mass_is_the_mean_over_queries(whole):
    stats = whole["attn_probs"]
    np.testing.assert_allclose(stats.mass, stats.tensor.mean(axis=3), rtol=1e-5)
    np.testing.assert_allclose(stats.mass.sum(axis=-1), 1.0, rtol=1e-5)


def test_shapes(whole, tiny_model, tiny_tokens):
    sizes = tiny_model.config.sizes(*tiny_tokens.shape)
    for name in whole:
        site = SITES[name]
        lead = (sizes["L"],) if site.per_layer else ()
        assert whole[name].tensor.shape == lead + site.shape(sizes)
        assert whole[name].top_values.shape == (*lead, sizes["B"], 5)
        assert whole[name].median.shape == (*lead, sizes["B"])
    assert whole["attn_probs"].mass.shape == (4, 2, sizes["H"], sizes["T"])


@pytest.mark.parametrize("layers", [(3,), (2, 4), (4, 1, 3), 2, np.array([1, 2]), np.int64(4)])
def test_some_layers_are_a_slice_of_all(tiny_model, tiny_tokens, whole, layers):
    """In the order asked for, tensors and statistics alike."""
    capture = [
        Capture(("block_out", "query"), layers=layers),
        Capture("mlp_hidden", layers=layers, top_k=5, median=True, max=True),
        Capture("attn_probs", layers=layers, mass=True, tensor=True),
    ]
    found = tiny_model(tiny_tokens, capture=capture).intermediates
    rows = np.atleast_1d(layers) - 1
    close = {"rtol": 1e-4, "atol": 1e-5}  # another program: its sums may round otherwise
    for site in ("block_out", "query"):
        np.testing.assert_allclose(found[site], whole[site].tensor[rows], **close)
    np.testing.assert_allclose(found["mlp_hidden"].top_values, whole["mlp_hidden"].top_values[rows], **close)
    np.testing.assert_array_equal(found["mlp_hidden"].top_dims, whole["mlp_hidden"].top_dims[rows])
    np.testing.assert_allclose(found["mlp_hidden"].median, whole["mlp_hidden"].median[rows], **close)
    np.testing.assert_allclose(found["attn_probs"].mass, whole["attn_probs"].mass[rows], **close)
    np.testing.assert_allclose(found["attn_probs"].tensor, whole["attn_probs"].tensor[rows], **close)


def test_capturing_does_not_change_the_logits(tiny_model, tiny_tokens, whole):
    out = tiny_model(tiny_tokens)
    assert out.intermediates == {}
    np.testing.assert_allclose(out.logits, whole["logits"].tensor, rtol=1e-4, atol=1e-5)
    assert tiny_model(tiny_tokens, logits=False).logits is None


def test_the_logits_can_be_captured_without_being_returned(tiny_model, tiny_tokens, whole):
    found = tiny_model(tiny_tokens, capture=Capture("logits", max=True), logits=False).intermediates["logits"]
    np.testing.assert_allclose(found.max, whole["logits"].max, rtol=1e-5)


def test_what_comes_back_is_what_was_asked_for():
    plan = compile_captures([Capture("mid"), Capture("key", median=True), Capture("embed", max=True, tensor=True)], 4)
    kept = {site: (bool(spec.reductions), spec.tensor, spec.num_slots) for site, spec in plan.specs}
    assert kept == {"mid": (False, True, 4), "key": (True, False, 4), "embed": (True, True, None)}
    assert plan.spec("query") is None
    assert Stats().top_positions is None


def test_the_slots_of_the_layers_are_data():
    plan = compile_captures(Capture("mid", layers=(3, 1)), 4)
    assert plan.slots["mid"].tolist() == [1, 2, 0, 2]  # 2: one past the end, dropped
    assert jax.tree.structure(plan) == jax.tree.structure(compile_captures(Capture("mid", layers=(2, 4)), 4))


REFUSED = {
    "site": (Capture("blok_out"), "unknown site 'blok_out'"),
    "one of several sites": (Capture(("mid", "blok_out")), "unknown site 'blok_out'"),
    "layer 0": (Capture("mid", layers=0), "Capture: layer 0 is out of range; this model has layers 1 to 4"),
    "layer L + 1": (Capture("mid", layers=(1, 5, 6)), "layer 5, 6 is out of range"),
    "layer -1": (Capture("mid", layers=(-1,)), "layer -1 is out of range"),
    "layer True": (Capture("mid", layers=(True,)), "layer True is out of range"),
    "layer 1.5": (Capture("mid", layers=(1.5,)), "layer 1.5 is out of range"),
    "no layers": (Capture("mid", layers=()), "must name at least one layer"),
    "layer twice": (Capture("mid", layers=(2, 2)), "each only once"),
    "site twice": ([Capture("mid"), Capture(("key", "mid"), max=True)], "mid is asked for twice"),
    "site twice in one": (Capture(("mid", "mid")), "mid is asked for twice"),
    "k -1": (Capture("mid", top_k=-1), "top_k is -1"),
    "k 1.0": (Capture("mid", top_k=1.0), "top_k is 1.0"),
    "k True": (Capture("mid", top_k=True), "top_k is True"),
    "layers in words": (Capture("mid", layers="all"), "layers is 'all'"),
    "layers 1.5": (Capture("mid", layers=1.5), r"layers is 1\.5"),
    "sites 5": (Capture(5), "sites is 5"),
    "no sites": (Capture(()), r"sites is \(\)"),
    "a site of another type": (Capture([["mid"]]), r"unknown site \['mid'\]"),
    "median in words": (Capture("mid", median="yes"), "median is 'yes'; give True or False"),
    "tensor 1": (Capture("mid", tensor=1), "tensor is 1"),
    "mass": (Capture("attn_logits", mass=True), "mass is a reduction of attn_probs, not of attn_logits"),
    "nothing": (Capture("mid", tensor=False), "keeps nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    capture, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        compile_captures(capture, 4)


def test_a_site_this_model_does_not_have_is_refused(tiny_model, tiny_tokens):
    with pytest.raises(ValueError, match="this model has no site router_probs"):
        tiny_model(tiny_tokens, capture=Capture("router_probs"))
    with pytest.raises(ValueError, match="this model has no site expert_weights"):
        tiny_model(tiny_tokens, edits=Edit("expert_weights", layer=1))
