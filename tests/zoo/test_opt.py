"""OPT against torch, the 350m model's shape included."""

import numpy as np
import pytest
import safetensors.numpy
import transformers

from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
_MODEL = "model.decoder."
_LAYER = _MODEL + "layers.{l}."
_PLACES = {
    "embed": Place(_MODEL + "layers.0", "input"),
    "attn_norm": Place(_LAYER + "self_attn.q_proj", "input"),
    "query": Place(_LAYER + "self_attn.q_proj"),
    "key": Place(_LAYER + "self_attn.k_proj"),
    "value": Place(_LAYER + "self_attn.v_proj"),
    "attn_probs": Place(_LAYER + "self_attn", item=1),
    "head_out": Place(_LAYER + "self_attn.out_proj", "input"),
    "attn_out": Place(_LAYER + "self_attn"),
    "mlp_norm": Place(_LAYER + "fc1", "input"),
    "mlp_hidden": Place(_LAYER + "fc2", "input"),
    "mlp_out": Place(_LAYER + "fc2"),
    "block_out": Place(_MODEL + "layers.{l}"),
    "logits": Place("lm_head"),
}
PRE_NORM = Reference(
    transformers.OPTForCausalLM,
    _PLACES
    | {
        "mid": Place(_LAYER + "final_layer_norm", "input"),
        "final_norm": Place(_MODEL + "final_layer_norm"),
    },
)
NO_FINAL_NORM = Reference(transformers.OPTForCausalLM, _PLACES | {"mid": Place(_LAYER + "final_layer_norm", "input")})
POST_NORM = Reference(transformers.OPTForCausalLM, _PLACES | {"mid": Place(_LAYER + "self_attn_layer_norm")})
OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 20}
CASES = {
    "default": (PRE_NORM, {}),
    "as 350m": (POST_NORM, OPT_350M),
    "as 350m, untied": (POST_NORM, OPT_350M | {"tie_word_embeddings": False}),
    "narrow embedding before pre-norm blocks": (PRE_NORM, {"word_embed_proj_dim": 20}),
    "no final norm": (NO_FINAL_NORM, {"_remove_final_layer_norm": True}),
    "no biases": (PRE_NORM, {"enable_bias": False, "activation_function": "gelu"}),
    "norms without parameters": (PRE_NORM, {"layer_norm_elementwise_affine": False}),
}


def build(directory, reference=PRE_NORM, **changes):
    model = hf.random_model(reference, transformers.OPTConfig(**SHAPE | changes))
    hf.save(model, directory)
    return model


@parity.each(CASES)
def test_parity(tmp_path, case):
    reference, changes = CASES[case]
    parity.assert_parity(tmp_path, reference, build(tmp_path, reference, **changes))


def test_positions_to_the_last(tmp_path):
    """All 64 positions, and not one more."""
    model = build(tmp_path, num_hidden_layers=1)
    tokens = np.tile(parity.TOKENS, (1, 4))[:, :64]
    ours = parity.assert_parity(tmp_path, PRE_NORM, model, tokens)
    with pytest.raises(ValueError, match="64"):
        ours(np.tile(tokens, (1, 2))[:, :65])


def test_names_without_the_prefix(tmp_path):
    model = build(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("model."): x for name, x in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(tensors, path)
    # What Meta's config.json has besides.
    hf.change_config(tmp_path, {"activation_dropout": 0.0, "prefix": "</s>", "output_projection": True})
    parity.assert_parity(tmp_path, PRE_NORM, model)


def test_the_head_repeated(tmp_path):
    """Meta's checkpoints hold the tied head too."""
    build(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {"lm_head.weight": tensors["model.decoder.embed_tokens.weight"]}, path)
    parity.load(tmp_path)
    safetensors.numpy.save_file(tensors | {"lm_head.weight": tensors["model.decoder.embed_tokens.weight"] * 2}, path)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from embedding"):
        parity.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "tanh"}, "activation 'tanh' is not implemented"),
        ({"max_position_embeddings": 62}, r"embed_positions\.weight has shape \[66, 32\], expected \[64, 32\]"),
        ({"do_layer_norm_before": False}, r"not in this model:\n\s+model\.decoder\.final_layer_norm\.bias"),
        ({"enable_bias": False}, r"(?s)not in this model.*fc1\.bias"),
        ({"num_experts": 4}, "num_experts = 4"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


def test_a_neighbours_checkpoint(tmp_path):
    """GPT-2's weights under OPT's config."""
    shape = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    hf.save(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)), tmp_path)
    transformers.OPTConfig(**SHAPE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)embed_positions\.weight -> .*not in this model.*attn\.c_attn\.weight"):
        parity.load(tmp_path)
