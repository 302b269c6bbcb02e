"""Quantised by qwix, which steps in at a model's einsums, and by our own rounding: slow."""

import jax
import numpy as np
import pytest

from massive_jax.quantize import input_edits, round_weights

MAPS = "layers/.*(query|key|value|out|up|gate|down)"
TOKENS = np.random.default_rng(0).integers(0, 256, (1, 48), dtype=np.int32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'VariableState' was removed:DeprecationWarning")  # qwix asks flax for it
@pytest.mark.parametrize("bits", [8, 0], ids=["W8A8", "W8A16"])
def test_qwix_and_our_own_rounding(make_model, bits):
    """Weights are within a step of each other, and the logits' errors of one size: steps are 2/255 and 1/127."""
    qwix = pytest.importorskip("qwix")
    from qwix._src.core import qarray

    model = make_model(tie_embeddings=False)
    rule = qwix.QuantizationRule(module_path=MAPS, weight_qtype="int8", act_qtype="int8" if bits else None)
    quantised = qwix.quantize_model(model.module, qwix.PtqProvider([rule]))
    shapes = jax.eval_shape(quantised.init, jax.random.key(0), TOKENS)["params"]
    a_layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes["layers"])
    layers = jax.vmap(lambda layer: qwix.quantize_params(layer, a_layer))(model.params["layers"])
    logits, *_ = quantised.apply({"params": {**model.params, "layers": layers}}, TOKENS)
    theirs = np.asarray(logits)

    ours = round_weights(model, 8, "token")
    ours = ours.with_params(model.config, {**ours.params, "head": model.params["head"]})
    for room, name, inputs in (("attn", "query", (1,)), ("attn", "out", (1, 2)), ("mlp", "down", (1,))):
        exact, kernel = (np.asarray(m.params["layers"][room][name]["kernel"]) for m in (model, ours))
        held = layers[room][name]["kernel"].array
        its = np.stack([qarray.dequantize(jax.tree.map(lambda x, i=i: x[i], held)) for i in range(len(kernel))])
        step = np.abs(exact).max(axis=inputs, keepdims=True) / 127
        assert (np.abs(its - exact) <= 0.51 * step).all()
        assert (np.abs(its - kernel) <= 1.01 * step).all()
    edits = [edit for edit in input_edits(model.config, bits, 0, "token") if edit.site != "final_norm"]
    exact, found = np.asarray(model(TOKENS).logits), np.asarray(ours(TOKENS, edits=edits).logits)
    errors = [np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (theirs, found)]
    assert 1e-4 < min(errors) <= max(errors) < 0.1
    assert 0.5 < errors[0] / errors[1] < 2
