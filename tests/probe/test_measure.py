"""Functions of several sites, computed inside the blocks: against the whole tensors, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax.probe import Capture, Edit, Measure

SITES = ("value", "attn_probs", "block_out")


def updates(tensors, data):
    """What one key adds to every head's output, and the rows of the output at its place."""
    probs, value = tensors["attn_probs"], tensors["value"]
    rows = jnp.arange(len(data))
    H, K = probs.shape[1], value.shape[2]
    at = jnp.repeat(value[rows, data], H // K, axis=1)
    return {
        "update": jnp.einsum("BHT,BHN->BTHN", probs[rows, :, :, data], at),
        "row": tensors["block_out"][rows, data],
        "positions": jnp.broadcast_to(tensors["positions"], value.shape[:2]),
    }


@pytest.fixture(scope="module")
def found(tiny_model, tiny_tokens):
    """The measure of layers 3 and 1 in this order, beside whole tensors, with an edit."""
    capture = [
        Measure("updates", SITES, updates, np.array([2, 0], np.int32), layers=(3, 1)),
        Capture(SITES, layers=(3, 1)),
    ]
    edits = Edit("value", layer=3, position=2, dim=1, op="set", value=9.0)
    return jax.device_get(tiny_model(tiny_tokens, capture=capture, edits=edits).intermediates)


def test_it_is_the_function_of_the_tensors_after_edits(found):
    rows, keys = np.arange(2), np.array([2, 0])
    for slot in range(2):
        probs, value = found["attn_probs"][slot], found["value"][slot]
        at = np.repeat(value[rows, keys], probs.shape[1] // value.shape[2], axis=1)
        expected = np.einsum("BHT,BHN->BTHN", probs[rows, :, :, keys], at)
        np.testing.assert_allclose(found["updates"]["update"][slot], expected, rtol=1e-6)
        np.testing.assert_array_equal(found["updates"]["row"][slot], found["block_out"][slot][rows, keys])
    assert (found["value"][0][0, 2, :, 1] == 9.0).all()


def test_other_numbers_and_layers_are_no_other_compilation(tiny_model, tiny_tokens):
    traces = []

    def scaled(tensors, data):
        traces.append(data)
        return tensors["block_out"][:, 0] * data

    found, counts = [], []
    for data, layer in ((1.0, 1), (2.0, 1), (1.0, 4)):
        capture = Measure("m", "block_out", scaled, np.float32(data), layers=layer)
        found.append(tiny_model(tiny_tokens, capture=capture, logits=False).intermediates["m"])
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2]
    np.testing.assert_array_equal(found[1], 2 * found[0])
    assert found[2].shape == (1, 2, 32)
    assert (found[2] != found[0]).all()


def test_a_padded_sequence_gives_what_it_gives_alone(tiny_model, tiny_tokens):
    def measure(tokens, mask, column):
        capture = Measure("updates", SITES, updates, np.full(len(tokens), column, np.int32))
        return tiny_model(tokens, mask=mask, capture=capture, logits=False).intermediates["updates"]

    alone = measure(tiny_tokens[:1], None, 1)
    mask = np.ones((1, 12), bool)
    mask[0, [0, 1, 5]] = False
    tokens = np.zeros((1, 12), np.int32)
    tokens[mask] = tiny_tokens[0]
    padded = measure(tokens, mask, 3)
    np.testing.assert_allclose(padded["update"][:, mask], alone["update"][:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(padded["row"], alone["row"], rtol=1e-4, atol=1e-6)
    assert not np.asarray(padded["update"])[:, ~mask].any()
    np.testing.assert_array_equal(padded["positions"][0][mask], np.arange(9))
    assert (np.asarray(padded["positions"])[:, ~mask] == -1).all()


def test_its_gradient_by_its_data(tiny_model, tiny_tokens):
    plan = tiny_model.compile_captures(Measure("m", "attn_out", lambda tensors, data: tensors["attn_out"] * data, 3.0))

    def total(scale):
        capture = dataclasses.replace(plan, data={"m": scale})
        return tiny_model(tiny_tokens, capture=capture, logits=False).intermediates["m"].sum()

    value, gradient = jax.value_and_grad(total)(jnp.float32(3.0))
    np.testing.assert_allclose(value, 3.0 * gradient, rtol=1e-5)


def test_what_is_no_measure_is_refused(tiny_model, tiny_tokens):
    def refused(words, *, name="m", sites="block_out", fn=updates, data=None, layers=None):
        with pytest.raises(ValueError, match=words):
            tiny_model(tiny_tokens, capture=Measure(name, sites, fn, data, layers))

    refused("is no text, or a site's", name="mid")
    refused("is no text", name=3)
    refused("give a function", fn="mean")
    refused("that every block has", sites="final_norm")
    refused("sites is .*; give one", sites=())
    refused("unknown site 'block'", sites="block")
    refused("no site router_probs", sites="router_probs")
    refused("layer 9 is out of range", layers=9)
    refused(r"gives \[\(32,\)\]; give arrays whose first axis", fn=lambda tensors, data: tensors["block_out"][0, 0])
    refused("gives nothing", fn=lambda tensors, data: ())
    with pytest.raises(ValueError, match="name m is given twice"):
        tiny_model(tiny_tokens, capture=[Measure("m", "mid", updates), Measure("m", "mid", updates)])
    with pytest.raises(ValueError, match="give a Capture or a Measure"):
        tiny_model(tiny_tokens, capture=[updates])


def test_a_plan_for_another_model_is_refused(make_model, tiny_model, tiny_tokens):
    plan = tiny_model.compile_captures(Measure("m", "block_out", lambda tensors, data: tensors["block_out"][:, 0]))
    with pytest.raises(ValueError, match="measure m is of a model with 4 layers"):
        make_model(num_layers=2)(tiny_tokens, capture=plan)


def test_while_generating(tiny_model, tiny_tokens):
    measure = Measure("m", "block_out", lambda tensors, data: tensors["block_out"][:, -1])
    made = tiny_model.generate(tiny_tokens, max_new_tokens=3, capture=[measure, Capture("block_out")])
    np.testing.assert_array_equal(made.prompt.intermediates["m"], made.prompt.intermediates["block_out"][:, :, -1])
    for step in range(2):
        whole = jax.tree.map(lambda a, i=step: a[i], made.steps)
        np.testing.assert_array_equal(whole["m"], whole["block_out"][:, :, -1])
