"""Gemma 2 against torch: norms on both sides, softcaps, a query scale of its own, a window in every other layer."""

import pytest
import transformers

from massive_jax.zoo import gemma2
from tests.fixtures import decoders, parity
from tests.fixtures import hf_reference as hf
from tests.fixtures.hf_reference import Reference

PLACES = decoders.PLACES | decoders.PRE_AND_OUTPUT_NORMS | decoders.CAPPED_LOGITS
GEMMA2 = Reference(transformers.Gemma2ForCausalLM, PLACES)
# Caps that bend: the logits of a random model are small.
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
CASES = {
    "every other layer": {"sliding_window": 5},
    "no caps, biases": {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "attention_bias": True,
        "sliding_window": 20,
        "num_key_value_heads": 4,
    },
    "layer types, untied": {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 3,
        "query_pre_attn_scalar": 7,
        "head_dim": 8,
        "tie_word_embeddings": False,
        "hidden_activation": "silu",
    },
}


def config(**changes):
    return transformers.Gemma2Config(**decoders.SHAPE | {"head_dim": 16, "query_pre_attn_scalar": 24} | CAPS | changes)


@parity.each(CASES, quick=1)
def test_gemma2(tmp_path, case):
    model = decoders.build(GEMMA2, config(**CASES[case]), tmp_path)
    ours = parity.assert_parity(tmp_path, GEMMA2, model)
    windowed = tuple(kind == "sliding_attention" for kind in model.config.layer_types)
    assert ours.config.window_layers == windowed
    assert ours.config.window == CASES[case]["sliding_window"]


def test_the_caps_of_the_tests_bend(tmp_path):
    """Else their parity would say nothing."""
    model = decoders.build(GEMMA2, config(sliding_window=5), tmp_path)
    capped = parity.load(tmp_path)(parity.TOKENS).logits
    for field in CAPS:
        hf.change_config(tmp_path, CAPS | {field: 1000.0})
        assert hf.relative_error(parity.load(tmp_path)(parity.TOKENS).logits, capped) > 0.01
    assert model.config.attn_logit_softcapping == 1.5


def test_config_before_transformers_5(tmp_path):
    """No `layer_types`, and a null cap is no cap, where an absent one is the class's default."""
    model = decoders.build(GEMMA2, config(sliding_window=5), tmp_path)
    hf.change_config(
        tmp_path,
        {"layer_types": None, "rope_parameters": None, "rope_theta": 10000.0, "cache_implementation": "hybrid"},
    )
    assert parity.assert_parity(tmp_path, GEMMA2, model).config.window_layers == (True, False, True)
    hf.change_config(tmp_path, {"attn_logit_softcapping": None, "final_logit_softcapping": None})  # removes them
    ours = parity.load(tmp_path).config
    assert (ours.attention_softcap, ours.logit_softcap) == (50.0, 30.0)


def gguf_metadata(config):
    more = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, "attention.sliding_window": 5}
    return decoders.gguf_metadata("gemma2", config, **more)


def test_gguf(tmp_path):
    model = decoders.build(GEMMA2, config(query_pre_attn_scalar=16, sliding_window=5), tmp_path)
    tensors = decoders.gguf_tensors(model, "gemma2", decoders.add_one_to_norms)
    decoders.assert_gguf_as_huggingface(tmp_path, gguf_metadata(model.config), tensors)


@pytest.mark.parametrize(("layers", "scalar"), [(3, 16), (42, 16), (46, 8)])
def test_query_scale_of_gguf(layers, scalar):
    """It is not in the file: the head's width, but D / H in the model of 46 layers (27B)."""
    metadata = gguf_metadata(config(num_hidden_layers=layers))
    assert gemma2.gguf_config(metadata, ["token_embd.weight"])["query_pre_attn_scalar"] == scalar
