"""Compiled edits and captures of another model or of other inputs are refused; JAX would drop them silently."""

import dataclasses

import jax
import numpy as np
import pytest

from massive_jax.probe import Capture, Edit, compile_captures, compile_edits

EDIT = Edit("block_out", layer=2, position=3, dim=5, value=1.0)


def changed(collection, **fields):
    """The one site's rows with other arrays."""
    ((site, (rows,)),) = collection.items()
    return {site: (dataclasses.replace(rows, **fields),)}


def of_axis(axis, index):
    """A change of the index along one axis."""
    return lambda c: changed(c, index={**c["block_out"][0].index, axis: index})


WRONG = {
    "a layer beyond the model's": (lambda c: changed(c, layer=np.full(4, 5, np.int32)), "layer 5 is out of range"),
    "a layer of 0 in a block": (lambda c: changed(c, layer=np.zeros(4, np.int32)), "layer 0 is out of range"),
    "a position beyond the sequence": (of_axis("T", np.full((4, 2), 9, np.int32)), "index T 9 is out of range"),
    "a dim beyond the width": (of_axis("D", np.full(4, 32, np.int32)), "index D 32 is out of range"),
    "a negative dim": (of_axis("D", np.full(4, -1, np.int32)), "index D -1 is out of range"),
    "a fractional dim": (of_axis("D", np.full(4, 1.5)), "index D is float64"),
    "an axis that is not there": (of_axis("H", np.zeros(4, np.int32)), "there is no axis 'H'"),
    "positions of another batch": (of_axis("T", np.zeros((4, 3), np.int32)), r"index T has shape \(4, 3\)"),
    "an operation that is not there": (lambda c: changed(c, op=np.full(4, 7, np.int32)), "op 7 is out of range"),
    "values of another number": (lambda c: changed(c, value=np.zeros(3)), r"value has shape \(3,\), not \(4,\)"),
    "a site that is not there": (lambda c: {"blokc_out": c["block_out"]}, "unknown site 'blokc_out'"),
    "a site this model lacks": (lambda c: {"router_probs": c["block_out"]}, "this model has no site router_probs"),
    "rows without their tuple": (lambda c: {"block_out": c["block_out"][0]}, "no tuple of `EditRows`"),
    "something else": (lambda c: {"block_out": ("set",)}, "no tuple of `EditRows`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(tiny_model, tiny_tokens, compilations, case):
    change, message = WRONG[case]
    compiled = tiny_model.compile_edits(EDIT, tiny_tokens)
    with pytest.raises(ValueError, match=message) as caught:
        tiny_model(tiny_tokens, edits=change(compiled))
    assert "\n" not in str(caught.value)
    assert compilations() == 0


def test_edits_of_longer_inputs_and_of_a_wider_model_are_refused(tiny_model, tiny_tokens):
    sizes = tiny_model.config.sizes(2, 20) | {"D": 64}
    for edit, message in (
        (dataclasses.replace(EDIT, position=9), "index T 9 is out of range"),
        (dataclasses.replace(EDIT, dim=40), "index D 40 is out of range"),
        (dataclasses.replace(EDIT, dim=None), r"value has shape \(4, 64\), not \(4, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_model(tiny_tokens, edits=compile_edits(edit, sizes))


@pytest.mark.parametrize(
    "edit",
    [
        EDIT,
        Edit("block_out", layer="all", op="scale", value=2.0),
        Edit("embed", position=np.array([-1, 8]), value=np.ones(32)),
        Edit("attn_probs", layer=1, head=3, key=0),
        Edit("logits", dim=259),
    ],
)
def test_what_was_compiled_for_these_inputs_passes(tiny_model, tiny_tokens, edit):
    compiled = tiny_model.compile_edits(edit, tiny_tokens)
    assert tiny_model.compile_edits(compiled, tiny_tokens) is compiled
    on_device = jax.tree.map(jax.numpy.asarray, compiled)
    assert tiny_model.compile_edits(on_device, tiny_tokens) is on_device
    # Traced, only shapes can be looked at.
    assert jax.eval_shape(lambda c: tiny_model.compile_edits(c, tiny_tokens), compiled) is not None


def test_captures_of_another_model_are_refused(tiny_model, tiny_tokens):
    for capture, layers, message in (
        (Capture("block_out"), 6, "block_out is of a model with 6 layers, this one has 4"),
        (Capture("router_probs"), 4, "this model has no site router_probs"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_model(tiny_tokens, capture=compile_captures(capture, layers))
    plan = tiny_model.compile_captures(Capture(("embed", "block_out"), layers=2))
    assert tiny_model.compile_captures(plan) is plan
