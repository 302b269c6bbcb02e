"""Gemma against torch: unit-offset norms, a scaled embedding, heads wider than D / H."""

import numpy as np
import pytest
import torch
import transformers

import massive_jax as mj
from tests.fixtures import decoders, parity
from tests.fixtures import hf_reference as hf
from tests.fixtures.hf_reference import Reference

GEMMA = Reference(transformers.GemmaForCausalLM, decoders.PLACES)
CASES = {
    "one key head": {"head_dim": 16, "num_key_value_heads": 1},
    "no grouping, biases, untied": {
        "head_dim": 12,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-2,
        "rope_parameters": decoders.rope("default", 1e5),
    },
    "silu": {"head_dim": 8, "hidden_act": "silu"},
}


def config(**changes):
    return transformers.GemmaConfig(**decoders.SHAPE | {"head_dim": 16} | changes)


@parity.each(CASES)
def test_gemma(tmp_path, case):
    model = decoders.build(GEMMA, config(**CASES[case]), tmp_path)
    parity.assert_parity(tmp_path, GEMMA, model)


@pytest.mark.parametrize(
    "written",
    [
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu"},
        {"hidden_act": None},
    ],
)
def test_gelu_is_the_tanh_approximation_however_it_is_written(tmp_path, written):
    model = decoders.build(GEMMA, config(), tmp_path)
    hf.change_config(tmp_path, written)
    assert parity.load(tmp_path).config.activation == "gelu_tanh"
    assert model.config.hidden_act == "gelu_pytorch_tanh"


def test_activations_that_disagree_are_refused(tmp_path):
    decoders.build(GEMMA, config(), tmp_path)
    hf.change_config(tmp_path, {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"})
    with pytest.raises(ValueError, match="hidden_activation = 'gelu_pytorch_tanh' is not implemented"):
        parity.load(tmp_path)


def test_attention_both_ways_is_refused(tmp_path):
    decoders.build(GEMMA, config(), tmp_path)
    hf.change_config(tmp_path, {"use_bidirectional_attention": True})
    with pytest.raises(ValueError, match="use_bidirectional_attention = True"):
        parity.load(tmp_path)


def test_the_embedding_scale_is_rounded_with_the_activations(tmp_path):
    """√32 = 5.657 is 5.656 in bfloat16."""
    model = hf.random_model(GEMMA, config(), dtype=torch.bfloat16)
    hf.save(model, tmp_path)
    theirs = hf.run(GEMMA, model, parity.TOKENS)
    ours = parity.load(tmp_path, dtype="bfloat16")(parity.TOKENS, capture=mj.Capture("embed"))
    got = np.asarray(ours.intermediates["embed"], np.float32)
    np.testing.assert_array_equal(got, theirs["embed"])
    unrounded = model.model.embed_tokens.weight.detach().float().numpy()[parity.TOKENS] * np.sqrt(32)
    assert hf.relative_error(got, unrounded) > 1e-4
    assert hf.relative_error(ours.logits, theirs["logits"]) < 0.03


def test_gguf(tmp_path):
    """The converter adds one to every norm."""
    model = decoders.build(GEMMA, config(num_key_value_heads=1), tmp_path)
    tensors = decoders.gguf_tensors(model, "gemma", decoders.add_one_to_norms)
    decoders.assert_gguf_as_huggingface(tmp_path, decoders.gguf_metadata("gemma", model.config), tensors)
