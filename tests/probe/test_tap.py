"""Every site is read and edited, and an edit reaches exactly what is computed from it.

One program serves all of it: it has an edit at every site, all but one of which add zero.
"""

import jax
import numpy as np
import pytest

from massive_jax.probe import SITES, Capture, Edit, compile_captures, compile_edits
from tests.fixtures.tiny import TINY_SITES

LAYER, POSITION, HEAD, DIM = 2, 3, 1, 1
VALUE = {"set": 7.0, "scale": 3.0, "add": 2.0, "noise": 2.0, "shuffle": 0.0}


def edit_of(site, **changes):
    """An edit of one element of `site`, in the first sequence only, that adds nothing unless changed."""
    axes = SITES[site].axes
    fields = {
        "layer": LAYER if SITES[site].per_layer else None,
        "position": np.array([POSITION, -1]),
        "head": HEAD if set("HK") & set(axes) else None,
        "key" if axes[-1] == "S" else "dim": DIM,
        "op": "add",
        "value": 0.0,
    }
    return Edit(site, **fields | changes)


def element_of(site):
    """Index of that element in the captured array of one layer."""
    by_axis = {"B": 0, "T": POSITION, "H": HEAD, "K": HEAD}
    return tuple(by_axis.get(axis, DIM) for axis in SITES[site].axes)


@pytest.fixture(scope="module")
def run(tiny_model, tiny_tokens):
    """Runs with some of the edits changed: `run(edit, …)` gives site -> array; all sites, all layers."""
    plan = tiny_model.compile_captures(Capture(TINY_SITES))

    def run(*edits):
        changed = {edit.site: edit for edit in edits}
        compiled = tiny_model.compile_edits([changed.get(site, edit_of(site)) for site in TINY_SITES], tiny_tokens)
        out = jax.device_get(tiny_model(tiny_tokens, edits=compiled, capture=plan))
        np.testing.assert_array_equal(out.logits, out.intermediates["logits"])
        np.testing.assert_array_equal(out.last_hidden, out.intermediates["final_norm"])
        return out.intermediates

    return run


@pytest.fixture(scope="module")
def baseline(run):
    return run()


def in_order(found):
    """((layer, site), array [B, …]) in the order of computation."""
    yield (0, "embed"), found["embed"]
    layers = len(found["block_out"])
    for layer in range(1, layers + 1):
        for site in TINY_SITES:
            if SITES[site].per_layer:
                yield (layer, site), found[site][layer - 1]
    yield (layers + 1, "final_norm"), found["final_norm"]
    yield (layers + 1, "logits"), found["logits"]


def where_of(site):
    return next(where for where in PLACES if where[1] == site and where[0] in (0, LAYER, 5))


PLACES = [
    (0, "embed"),
    *((layer, site) for layer in range(1, 5) for site in TINY_SITES if SITES[site].per_layer),
    (5, "final_norm"),
    (5, "logits"),
]


@pytest.mark.parametrize("op", VALUE)
@pytest.mark.parametrize("site", TINY_SITES)
def test_an_edit_changes_its_element_and_only_what_follows(run, baseline, site, op):
    found = run(edit_of(site, op=op, value=VALUE[op]))
    here = PLACES.index(where_of(site))
    element = element_of(site)
    differs = {}
    for place, ((where, before), (_, after)) in enumerate(zip(in_order(baseline), in_order(found), strict=True)):
        assert PLACES[place] == where
        np.testing.assert_array_equal(after[1], before[1], err_msg=f"the other sequence, at {where}")
        differs[where] = not np.array_equal(before, after)
        if place < here:
            assert not differs[where], where
        elif place == here:
            changed = np.zeros(before.shape, bool)
            changed[element] = True
            np.testing.assert_array_equal(before != after, changed)
            check_operation(op, before, after[element], element, SITES[site])
        # Causal: nothing at an earlier position moves. (The logits before the mask look ahead.)
        if where[1] != "attn_logits":
            earlier = [slice(None)] * before.ndim
            earlier[SITES[where[1]].axes.index("T")] = slice(POSITION)
            np.testing.assert_array_equal(after[tuple(earlier)], before[tuple(earlier)])
    downstream = [where for where in PLACES[here + 1 :] if where[1] in ("block_out", "final_norm", "logits")]
    assert all(differs[where] for where in downstream)
    assert len(downstream) == (0 if site == "logits" else 1 if site == "final_norm" else len(downstream))


def check_operation(op, before, new, element, site):
    old = before[element]
    if op == "set":
        assert new == 7.0
    elif op == "scale":
        assert new == np.float32(3) * old
    elif op == "add":
        assert new == old + np.float32(2)
    elif op == "noise":
        assert 0 < abs(new - old) < 2 * 6
    else:
        others = list(element)
        others[site.axes.index("T")] = slice(None)
        column = list(before[tuple(others)])
        assert new in column[:POSITION] + column[POSITION + 1 :]


@pytest.mark.parametrize("site", TINY_SITES)
def test_setting_what_was_read_changes_nothing(run, baseline, site):
    value = dict(in_order(baseline))[where_of(site)][element_of(site)]
    found = run(edit_of(site, op="set", value=value))
    for name in TINY_SITES:
        np.testing.assert_array_equal(found[name], baseline[name])


@pytest.mark.parametrize("op", VALUE)
def test_position_minus_one_is_no_edit(run, baseline, op):
    found = run(*(edit_of(site, op=op, value=9.0, position=np.array([-1, -1])) for site in TINY_SITES))
    for name in TINY_SITES:
        np.testing.assert_array_equal(found[name], baseline[name])


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_an_edit_is_at_its_layer(run, baseline, layer):
    found = run(edit_of("block_out", layer=layer, op="set", value=50.0))
    changed = [not np.array_equal(a, b) for a, b in zip(found["block_out"], baseline["block_out"], strict=True)]
    assert changed == [number >= layer for number in (1, 2, 3, 4)]
    assert found["block_out"][layer - 1][element_of("block_out")] == 50.0


def test_edits_of_two_sites_act_together(run):
    """What the second site captures is the first one's effect and its own edit."""
    first, second = edit_of("mlp_out", op="add", value=4.0), edit_of("block_out", op="scale", value=2.0)
    alone, both = run(first), run(first, second)
    element = element_of("block_out")
    assert both["block_out"][LAYER - 1][element] == 2 * alone["block_out"][LAYER - 1][element]


def test_the_sites_are_tied_to_each_other_as_the_architecture_says(tiny_model, tiny_tokens, baseline):
    got, params = baseline, tiny_model.params
    np.testing.assert_array_equal(got["embed"], np.asarray(params["embedding"])[tiny_tokens])
    inputs = np.concatenate([got["embed"][None], got["block_out"][:-1]])
    np.testing.assert_array_equal(got["mid"], inputs + got["attn_out"])
    np.testing.assert_array_equal(got["block_out"], got["mid"] + got["mlp_out"])
    mean_square = np.mean(np.square(inputs), axis=-1, keepdims=True) + 1e-5
    scale = np.asarray(params["layers"]["attn_norm"]["scale"])[:, None, None]
    np.testing.assert_allclose(got["attn_norm"], inputs / np.sqrt(mean_square) * scale, rtol=1e-5)


def test_attention_probabilities(baseline):
    probs, logits = baseline["attn_probs"], baseline["attn_logits"]
    np.testing.assert_allclose(probs.sum(axis=-1), 1.0, rtol=1e-6)
    future = np.triu(np.ones(probs.shape[-2:], bool), k=1)
    assert not probs[..., future].any()
    assert np.isfinite(logits).all()  # they are from before the mask
    masked = np.where(future, -np.inf, logits)
    weights = np.exp(masked - masked.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(probs, weights / weights.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-7)
    # Every query head h reads the value head h // 2.
    values = np.repeat(baseline["value"], 2, axis=3)
    np.testing.assert_allclose(baseline["head_out"], np.einsum("LBHTS,LBSHN->LBTHN", probs, values), atol=1e-5)


def test_edits_that_act_under_bfloat16(make_model, tiny_tokens):
    """The value is rounded to the model's dtype; the statistics and probabilities stay float32."""
    model = make_model(dtype="bfloat16")
    edit = Edit("block_out", layer=2, position=3, dim=5, value=1.00390625)  # between two bfloat16 numbers
    capture = [Capture("block_out", layers=2), Capture("mid", layers=2, median=True)]
    out = model(tiny_tokens, edits=edit, capture=capture)
    kept = out.intermediates["block_out"]
    assert kept.dtype == "bfloat16"
    assert kept[0, :, 3, 5].tolist() == [1.0, 1.0]
    assert out.intermediates["mid"].median.dtype == np.float32
    assert out.logits.dtype == np.float32


def test_compiled_edits_are_the_edits_collection_of_the_module(tiny_model, tiny_tokens):
    """The promise of `massive_jax.model`: everything can be had from `module.apply`."""
    edits = [Edit("block_out", layer=2, position=0, dim=5, value=40.0)]
    capture = Capture("block_out", top_k=3, median=True)
    expected = tiny_model(tiny_tokens, edits=edits, capture=capture)
    plan = compile_captures(capture, tiny_model.config.num_layers)
    collection = compile_edits(edits, tiny_model.config.sizes(*tiny_tokens.shape))
    apply = jax.jit(tiny_model.module.apply, static_argnames=("mutable",))
    (logits, hidden), sown = apply(
        {"params": tiny_model.params, "edits": collection}, tiny_tokens, capture=plan, mutable=("intermediates",)
    )
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hidden, expected.last_hidden, rtol=1e-5, atol=1e-5)
    stats, wanted = sown["intermediates"]["block_out"], expected.intermediates["block_out"]
    np.testing.assert_array_equal(stats.top_dims, wanted.top_dims)
    np.testing.assert_allclose(stats.median, wanted.median, rtol=1e-5)


def test_no_capture_keeps_nothing_in_the_model_as_in_the_module(tiny_model, tiny_tokens, tiny_vision, tiny_images):
    for model, inputs in ((tiny_model, tiny_tokens), (tiny_vision, tiny_images)):
        apply = jax.jit(lambda p, x, m=model.module: m.apply({"params": p}, x, capture=None, mutable=["intermediates"]))
        _, sown = apply(model.params, inputs)
        assert sown.get("intermediates", {}) == model(inputs, capture=None).intermediates == {}
