"""Every site against torch, on tiny random models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb, repeat_kv

import massive_jax as mj
from massive_jax.models import RopeConfig
from massive_jax.models.positions import rope_tables
from massive_jax.zoo import llama
from massive_jax.zoo.fields import Fields
from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.hf_reference import LLAMA, MISTRAL
from tests.fixtures.tiny import TINY, TINY_SITES

TOLERANCE = 1e-5
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
TOKENS = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], size=(2, 21), dtype=np.int32)


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | settings}


def yarn(**settings):
    # Heads of 16 dims, so that the ramp has frequencies in its middle.
    return {**rope("yarn", factor=4.0, original_max_position_embeddings=64, **settings), "head_dim": 16}


def llama3(factor, low, high, original):
    return rope(
        "llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )


LLAMA_CASES = {
    "default": {},
    "one key head, head dim of its own": {"num_key_value_heads": 1, "head_dim": 12},
    "no grouping, eps, theta": {
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-2,
        **rope("default", rope_theta=100000.0),
    },
    "biases, gelu": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "tied, gelu by tanh": {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "linear": rope("linear", factor=2.5),
    "dynamic, long": {**rope("dynamic", factor=2.0), "max_position_embeddings": 16},
    "llama3": llama3(8.0, 1.0, 4.0, 16),
    "yarn, mscale": yarn(mscale=0.707, mscale_all_dim=1.3),
}
# Settings whose rotary tables alone are compared: the rest of the model does not know of them.
ROPE_CASES = {name: fields for name, fields in LLAMA_CASES.items() if "rope_parameters" in fields} | {
    "default": {},
    "dynamic, short": rope("dynamic", factor=2.0),
    "dynamic, another factor": {**rope("dynamic", factor=4.0), "max_position_embeddings": 8},
    "llama3, other bounds": llama3(3.0, 0.5, 2.0, 32),
    "llama3, wide heads": {**llama3(32.0, 1.0, 4.0, 32), "head_dim": 64},
    "yarn": yarn(),
    "yarn, attention_factor": yarn(attention_factor=1.3),
    "yarn, one mscale": yarn(mscale=0.707),
    "yarn, not truncated": yarn(truncate=False),
    "yarn, betas": yarn(beta_fast=4.0, beta_slow=0.3, truncate=False),
    "yarn, theta": yarn(rope_theta=500000.0),
}


def load(directory, **options):
    return mj.load(str(directory), progress=False, **options)


def capture_all(model, tokens=TOKENS):
    return jax.device_get(model(tokens, capture=mj.Capture(TINY_SITES)).intermediates)


@parity.each(LLAMA_CASES)
def test_llama(tmp_path, case):
    model = hf.random_model(LLAMA, transformers.LlamaConfig(**SHAPE | LLAMA_CASES[case]))
    hf.save(model, tmp_path)
    parity.assert_parity(tmp_path, LLAMA, model, TOKENS)


@pytest.mark.parametrize("window", [1, pytest.param(5, marks=pytest.mark.slow), 20])
def test_mistral_window(tmp_path, window):
    """20 is one short of the 21 tokens: only the last query loses a key."""
    model = hf.random_model(MISTRAL, transformers.MistralConfig(**SHAPE, sliding_window=window))
    hf.save(model, tmp_path)
    assert load(tmp_path).config.window == window
    parity.assert_parity(tmp_path, MISTRAL, model, TOKENS)


def test_mistral_config_without_a_window_field_has_the_class_default(tmp_path):
    model = hf.random_model(MISTRAL, transformers.MistralConfig(**SHAPE))
    hf.save(model, tmp_path, config={"sliding_window": None})  # None here removes the field
    assert "sliding_window" not in json.loads((tmp_path / "config.json").read_text())
    assert load(tmp_path).config.window == transformers.MistralConfig().sliding_window == 4096


def rope_tables_of(fields):
    """Cos and sin for 40 positions, ours and torch's: float32 [2, 40, N / 2] each."""
    config = transformers.LlamaConfig(**SHAPE | fields)
    length = 40
    x, positions = torch.zeros(1, length, 1), torch.arange(length)[None]
    cos, sin = LlamaRotaryEmbedding(config)(x, positions)
    mine = llama.config(Fields(config.to_dict(), "here"))
    ours = rope_tables(mine.rope, mine.head_dim, positions.numpy(), length)
    half = mine.head_dim // 2  # torch has every frequency twice
    return np.stack(ours)[:, 0], torch.stack([cos, sin])[:, 0, :, :half].numpy()


@pytest.mark.parametrize("case", ROPE_CASES)
def test_rope_tables(case):
    ours, theirs = rope_tables_of(ROPE_CASES[case])
    np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_rope_cases_differ_from_each_other():
    """A setting that changed nothing would be a case that tests nothing."""
    tables = {name: rope_tables_of(fields)[1] for name, fields in ROPE_CASES.items()}
    pairs = [(a, b) for a in tables for b in tables if a < b and tables[a].shape == tables[b].shape]
    same = [(a, b) for a, b in pairs if np.abs(tables[a] - tables[b]).max() < 1e-3]
    # Dynamic scaling within the original context does nothing, and mscale without mscale_all_dim is ignored.
    assert sorted(same) == [("default", "dynamic, short"), ("yarn", "yarn, one mscale")]


def test_config_in_the_style_before_transformers_5(tmp_path):
    model = hf.random_model(LLAMA, transformers.LlamaConfig(**SHAPE | llama3(8.0, 1.0, 4.0, 16)))
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    # As transformers 4 wrote them: `torch_dtype`, a top-level `rope_theta`, no `rope_parameters`, no `head_dim`.
    old = {"rope_theta": 10000.0, "rope_scaling": scaling, "torch_dtype": "float32"}
    hf.save(model, tmp_path, config={**old, "rope_parameters": None, "dtype": None, "head_dim": None})
    parity.assert_parity(tmp_path, LLAMA, model, TOKENS)


def test_attention_logits(tmp_path):
    """Torch has no module for q·k/√d: built here from its own queries, keys and rotary tables."""
    model = hf.random_model(LLAMA, transformers.LlamaConfig(**SHAPE))
    hf.save(model, tmp_path)
    tables = []
    model.model.rotary_emb.register_forward_hook(lambda module, args, output: tables.append(output))
    theirs = hf.run(LLAMA, model, TOKENS)
    got = capture_all(load(tmp_path))["attn_logits"]
    (cos, sin), (B, T) = tables[0], TOKENS.shape
    for layer in range(SHAPE["num_hidden_layers"]):
        query, key = (
            torch.from_numpy(theirs[site][layer]).reshape(B, T, -1, 8).transpose(1, 2) for site in ("query", "key")
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        expected = query @ repeat_kv(key, 2).transpose(2, 3) / 8**0.5
        assert hf.relative_error(got[layer], expected) <= TOLERANCE


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.03), ("float16", 0.006)])
def test_half_precision(tmp_path, dtype, tolerance):
    """Both sides round, at different places: the bound is a few units in the last place of every site."""
    model = hf.random_model(LLAMA, transformers.LlamaConfig(**SHAPE), dtype=getattr(torch, dtype))
    hf.save(model, tmp_path)
    ours = load(tmp_path, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours.params)} == {jnp.dtype(dtype)}
    got = capture_all(ours)
    for site, value in got.items():
        expected = jnp.float32 if site in ("attn_logits", "attn_probs", "logits") else jnp.dtype(dtype)
        assert value.dtype == expected, site
    errors = hf.errors_by_site(got, hf.run(LLAMA, model, TOKENS))
    assert {site: error for site, error in errors.items() if not max(error) <= tolerance} == {}
    # The same weights in float32 are far from both: this is a test of the rounding, not of the weights.
    exact = hf.run(LLAMA, model.float(), TOKENS)
    assert 1e-4 < max(max(error) for error in hf.errors_by_site(got, exact).values()) < 2 * tolerance


def test_half_precision_activations_of_float32_weights(tmp_path):
    """Load-time cast: the file is float32."""
    model = hf.random_model(LLAMA, transformers.LlamaConfig(**SHAPE))
    hf.save(model, tmp_path)
    errors = hf.errors_by_site(capture_all(load(tmp_path, dtype="bfloat16")), hf.run(LLAMA, model, TOKENS))
    assert 1e-4 < max(errors["logits"]) < 0.05


@pytest.mark.parametrize("window", [1, 3, 9])
def test_who_attends_to_whom(make_model, tiny_tokens, window):
    """The explicit form's probabilities; that the fused kernel agrees, the parity tests above say."""
    model = make_model(window=window, num_layers=2)
    probs = np.asarray(model(tiny_tokens, capture=mj.Capture("attn_probs")).intermediates["attn_probs"])
    query, key = np.indices(probs.shape[-2:])
    np.testing.assert_array_equal(probs > 0, np.broadcast_to((key <= query) & (query - key < window), probs.shape))


def test_batch_and_length_do_not_change_a_token(make_model, tiny_tokens):
    """Causal: what a sequence gives at a position depends on it and its predecessors only."""
    model = make_model(window=4)
    whole = np.asarray(model(tiny_tokens).logits)
    np.testing.assert_allclose(model(tiny_tokens[1:, :5]).logits[0], whole[1, :5], rtol=1e-4, atol=1e-5)


BAD = {
    "num_kv_heads": (3, "num_heads 4 is not a multiple of num_kv_heads 3"),
    "head_dim": (7, "7 must be even"),
    "hidden_size": (0, "hidden_size is 0"),
    "num_layers": (2.0, "num_layers is 2.0"),
    "window": (0, "window is 0"),
    "dtype": ("int8", "dtype 'int8'"),
    "activation": ("mish", "activation 'mish'"),
    "attention_kernel": ("cudnn", "'cudnn' does not take dtype float32"),
    "rope": (RopeConfig(kind="factors", factors=(1.0,)), "1 factors, expected rotary_dim / 2 = 4"),
}


@pytest.mark.parametrize("field", BAD)
def test_a_config_that_cannot_be_is_refused(field):
    value, message = BAD[field]
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **{field: value})


def test_a_config_error_names_everything_wrong_with_it():
    with pytest.raises(ValueError, match=r"hidden_size is -1.*dtype 'f4'.*max_position is 0"):
        dataclasses.replace(TINY, hidden_size=-1, max_position=0, dtype="f4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "su"}, "kind 'su' is not one of"),
        ({"kind": "yarn", "factor": 2.0}, "needs original_max_position"),
        ({"theta": 0.0}, "must be positive"),
    ],
)
def test_rope_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RopeConfig(**settings)
