"""`massive_jax.dtypes`: float64, in which what is exact can be told from what is rounded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import massive_jax as mj
from massive_jax.bias import absorb_prefix, rebuild
from massive_jax.dtypes import DTYPES, check_dtype, wide
from massive_jax.evaluate import token_nll
from massive_jax.models import LanguageModel, head_of
from massive_jax.models.loss import mean_nll
from massive_jax.probe import OPS
from tests.fixtures import hf_reference as hf
from tests.fixtures.hf_reference import relative_error
from tests.fixtures.tiny import TINY

GPT2 = hf.Reference(transformers.GPT2LMHeadModel, {})


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def in_float64(model):
    config = dataclasses.replace(model.config, dtype="float64")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model.params)
    return mj.Model(LanguageModel(config), params, config)


def test_wide():
    assert [wide(dtype) for dtype in DTYPES] == [jnp.float32, jnp.float32, jnp.float32, jnp.float64]


def test_float64_has_to_be_switched_on(tmp_path):
    with pytest.raises(ValueError, match="jax_enable_x64"):
        check_dtype("float64")
    with pytest.raises(ValueError, match="jax_enable_x64"):
        mj.load(str(tmp_path), dtype="float64")  # before anything is read
    with pytest.raises(ValueError, match="jax_enable_x64"):
        LanguageModel(dataclasses.replace(TINY, dtype="float64")).init(jax.random.key(0), np.zeros((1, 4), np.int32))
    with pytest.raises(ValueError, match="float65"):
        check_dtype("float65")


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_no_fused_kernel_takes_it(kernel):
    with pytest.raises(ValueError, match=kernel):
        dataclasses.replace(TINY, dtype="float64", attention_kernel=kernel)


def test_it_is_hugging_faces_float64(tmp_path, x64):
    shape = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    theirs = hf.random_model(GPT2, transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    hf.save(theirs, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 40))
    with torch.no_grad():
        expected = theirs.double()(torch.from_numpy(tokens), output_hidden_states=True)
    model = mj.load(str(tmp_path), dtype="float64", progress=False)
    out = model(tokens, capture=mj.Capture("block_out"))
    assert out.logits.dtype == np.float64
    assert relative_error(out.logits, expected.logits.numpy()) < 1e-13
    for ours, block in zip(out.intermediates["block_out"][:-1], expected.hidden_states[1:-1], strict=True):
        assert relative_error(ours, block.numpy()) < 1e-13


@pytest.mark.parametrize("position", ["rope", pytest.param("learned", marks=pytest.mark.slow)])
def test_an_absorbed_prefix_is_exact(make_model, tiny_tokens, x64, position):
    model = in_float64(make_model(position=position))
    prefix = [7, 3, 99]
    explicit = rebuild(model, *absorb_prefix(model.config, model.params, prefix))
    front = np.tile(np.asarray(prefix, np.int32), (len(tiny_tokens), 1))
    expected = model(np.concatenate([front, tiny_tokens], axis=1)).logits[:, 3:]
    for capture in (None, mj.Capture("attn_probs")):
        assert np.abs(explicit(tiny_tokens, capture=capture).logits - expected).max() < 1e-13


@pytest.mark.parametrize("op", OPS)
def test_edits_are(make_model, tiny_tokens, x64, op):
    """As in float32, but for rounding: an edit's branches all have the activations' dtype."""
    model = make_model()
    value = 8 if op == "quantize" else 0.7
    where = {"site": "block_out", "layer": 2, "position": 2, "seed": 1, "op": op, "value": value}
    if op == "move":
        where |= {"site": "mlp_hidden", "position": None, "dim": 3, "value": 5}
    edits = mj.Edit(**where)
    ours, theirs = (m(tiny_tokens, edits=edits).logits for m in (in_float64(model), model))
    assert ours.dtype == np.float64
    if op != "noise":  # other random numbers
        assert relative_error(theirs, ours) < 1e-5


def test_the_loss_and_its_gradients_are(make_model, tiny_tokens, x64):
    model = in_float64(make_model())
    logprobs = jax.nn.log_softmax(jnp.asarray(model(tiny_tokens).logits)[:, :-1])
    expected = -jnp.take_along_axis(logprobs, tiny_tokens[:, 1:, None], axis=-1)[..., 0]
    assert np.abs(token_nll(model, tiny_tokens) - expected).max() < 1e-13
    hidden = jax.random.normal(jax.random.key(0), (2, 9, model.config.hidden_size), jnp.float64)
    head, targets = head_of(model.config, model.params), jnp.asarray(tiny_tokens[:, :9])[:2]

    def plain(hidden, kernel):
        logprobs = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", hidden, kernel))
        return -jnp.mean(jnp.take_along_axis(logprobs, targets[..., None], axis=-1))

    def ours(hidden, kernel):
        return mean_nll(model.config, hidden, dataclasses.replace(head, kernel=kernel), targets)

    gradients = jax.jit(lambda *given: [jax.grad(f, (0, 1))(*given) for f in (ours, plain)])
    for got, want in zip(*gradients(hidden, head.kernel), strict=True):
        assert got.dtype == jnp.float64
        assert np.abs(got - want).max() < 1e-13
