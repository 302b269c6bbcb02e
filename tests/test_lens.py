"""Final norm and head on their own, and the logit lens: against the model's own logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.forward import _forward, left_pad
from massive_jax.models import NormConfig
from tests.fixtures.tiny import programs

KEPT = mj.Capture(("block_out", "final_norm"))
ODD = {  # everything that may be done after the blocks
    "norm": NormConfig("layer", unit_offset=True),
    "embedding_size": 24,
    "tie_embeddings": False,
    "head_bias": True,
    "logit_scale": 0.7,
    "logit_softcap": 4.0,
}


@pytest.mark.parametrize("options", [{}, ODD], ids=["default", "odd"])
def test_the_last_layer_gives_the_logits(make_model, tiny_tokens, options):
    model = make_model(num_layers=2, **options)
    out = model(tiny_tokens, capture=KEPT)
    normed = model.final_norm(out.intermediates["block_out"][-1])
    np.testing.assert_allclose(normed, out.intermediates["final_norm"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.unembed(normed), out.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.unembed(out.last_hidden), out.logits, rtol=1e-4, atol=1e-4)
    one = model.unembed(np.asarray(normed)[1, 3])
    np.testing.assert_allclose(one, out.logits[1, 3], rtol=1e-4, atol=1e-4)
    lens = model.logit_lens(tiny_tokens, logits=True)
    np.testing.assert_allclose(lens.logits[-1], out.logits, rtol=1e-4, atol=1e-4)
    first = model.unembed(model.final_norm(out.intermediates["block_out"][0]))
    np.testing.assert_allclose(lens.logits[0], first, rtol=1e-4, atol=1e-4)
    log_probs = np.asarray(jax.nn.log_softmax(lens.logits, axis=-1))
    np.testing.assert_array_equal(lens.ids, np.argsort(-log_probs, axis=-1, kind="stable")[..., :5])
    np.testing.assert_allclose(lens.log_probs, np.take_along_axis(log_probs, np.asarray(lens.ids), -1), rtol=1e-5)


def test_padding_edits_and_other_layers(tiny_model):
    tokens, mask = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])
    edit = mj.Edit("block_out", layer=2, position=0, dim=3, op="add", value=20.0)
    lens = tiny_model.logit_lens(tokens, mask=mask, layers=(4, 2), edits=edit, top_k=2)
    before = programs(_forward)
    other = tiny_model.logit_lens(tokens, mask=mask, layers=(1, 2), edits=edit, top_k=2)
    assert programs(_forward) == before
    assert (np.asarray(lens.ids)[:, ~mask] == -1).all()
    assert not np.asarray(lens.log_probs)[:, ~mask].any()
    np.testing.assert_array_equal(lens.ids[1], other.ids[1])
    alone = tiny_model.logit_lens(tokens[:1, 2:], layers=(4, 2), edits=edit, top_k=2)
    np.testing.assert_allclose(lens.log_probs[:, 0, 2:], alone.log_probs[:, 0], rtol=1e-4, atol=1e-5)
    assert lens.logits is None
    assert "ids" in repr(lens)


def test_head_patterns(tiny_model):
    """Those of the capture, by layer and head, in a padded batch; other layers and heads are one program."""
    tokens, mask = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])
    probs = tiny_model(tokens, mask=mask, capture=mj.Capture("attn_probs")).intermediates["attn_probs"]
    found = tiny_model.head_patterns(tokens, mask=mask, layers=(4, 2), heads=(3, 0))
    before = programs(_forward)
    np.testing.assert_allclose(found, probs[np.array([[3], [1]]), :, [3, 0]].swapaxes(1, 2), atol=1e-6)
    other = tiny_model.head_patterns(tokens, mask=mask, layers=(1, 2), heads=slice(1, 3))
    np.testing.assert_allclose(other, probs[:2, :, 1:3], atol=1e-6)
    assert programs(_forward) == before
    assert not np.asarray(found)[:, :, :, ~mask[0], :][:, 0].any()


def test_gradients_of_a_logit(tiny_model):
    gradient = jax.grad(lambda x: tiny_model.unembed(tiny_model.final_norm(x))[7])(jnp.linspace(-1.0, 2.0, 32))
    assert (np.asarray(gradient) != 0).all()


def test_a_vision_model_has_a_norm_and_no_vocabulary(tiny_vision, tiny_images):
    out = tiny_vision(tiny_images, capture=KEPT)
    normed = tiny_vision.final_norm(out.intermediates["block_out"][-1])
    np.testing.assert_allclose(normed, out.last_hidden, rtol=1e-5, atol=1e-5)
    for name in ("unembed", "logit_lens"):
        with pytest.raises(ValueError, match="it takes images, not tokens"):
            getattr(tiny_vision, name)(normed)


def test_refused(tiny_model, tiny_tokens, compilations):
    for x, message in (
        (np.zeros((2, 31), np.float32), r"x is float32\[2, 31\]; give .* floats \[..., 32\]"),
        (np.zeros((2, 32), int), r"x is int64\[2, 32\]"),
        (3.0, r"x is float64\[\]"),
        ([[1.0], [1.0, 2.0]], "which is no array"),
    ):
        for verb in (tiny_model.final_norm, tiny_model.unembed):
            with pytest.raises(ValueError, match=message):
                verb(x)
    for options, message in (
        ({"top_k": 0}, "top_k is 0; give a whole number from 1 to 260"),
        ({"layers": 9}, "layer 9 is out of range"),
        ({"logits": "yes"}, "logits is 'yes'"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_model.logit_lens(tiny_tokens, **options)
    assert compilations() == 0
