"""GPT-J against torch."""

import numpy as np
import pytest
import safetensors.numpy
import transformers

from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {
    **{"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    **{"bos_token_id": 0, "eos_token_id": 0},
}
_LAYER = "transformer.h.{l}."
GPTJ = Reference(
    transformers.GPTJForCausalLM,
    {
        "embed": Place("transformer.drop"),
        "attn_norm": Place(_LAYER + "ln_1"),
        "query": Place(_LAYER + "attn.q_proj"),
        "key": Place(_LAYER + "attn.k_proj"),
        "value": Place(_LAYER + "attn.v_proj"),
        "attn_probs": Place(_LAYER + "attn", item=1),
        "head_out": Place(_LAYER + "attn.out_proj", "input"),
        "attn_out": Place(_LAYER + "attn"),
        "block_in": Place(_LAYER + "ln_1", "input"),
        "mlp_norm": Place(_LAYER + "ln_1"),
        "mlp_hidden": Place(_LAYER + "mlp.fc_out", "input"),
        "mlp_out": Place(_LAYER + "mlp"),
        "block_out": Place("transformer.h.{l}"),
        "final_norm": Place("transformer.ln_f"),
        "logits": Place("lm_head"),
    },
)
CASES = {
    "default": {},
    "whole heads turned": {"rotary_dim": 8},
    "one head": {"n_head": 1, "rotary_dim": 12},
    "inner width, relu, epsilon": {"n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 1e-2},
    "tied": {"tie_word_embeddings": True},
}


def build(directory, **changes):
    model = hf.random_model(GPTJ, transformers.GPTJConfig(**SHAPE | changes))
    hf.save(model, directory)
    return model


@parity.each(CASES, quick=1)
def test_parity(tmp_path, case):
    ours = parity.assert_parity(tmp_path, GPTJ, build(tmp_path, **CASES[case]))
    assert ours.config.rope.rotary_dim == (SHAPE | CASES[case])["rotary_dim"]


def test_published_config_and_buffers(tmp_path):
    """The fields that EleutherAI's config.json has besides, and the masks in the checkpoint."""
    model = build(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    for layer in range(SHAPE["n_layer"]):
        tensors[f"transformer.h.{layer}.attn.bias"] = np.ones((1, 1, 64, 64), bool)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = np.asarray(np.float32(-1e9))
    safetensors.numpy.save_file(tensors, path)
    extra = {"rotary": True, "scale_attn_weights": True, "gradient_checkpointing": False, "summary_type": "cls_index"}
    hf.change_config(tmp_path, extra)
    parity.assert_parity(tmp_path, GPTJ, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary": False}, "rotary = False is not implemented"),
        ({"scale_attn_weights": False}, "scale_attn_weights = False is not implemented"),
        ({"rotary_dim": 16}, "rotary_dim 16 must be even and at most head_dim 8"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path, n_layer=1)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


def test_a_neighbours_checkpoint(tmp_path):
    """GPT-2's under the model type of GPT-J."""
    config = {name: value for name, value in SHAPE.items() if name != "rotary_dim"}
    hf.save(
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)),
        tmp_path,
        config={"model_type": "gptj", "rotary_dim": 4},
    )
    with pytest.raises(ValueError, match=r"(?s)q_proj\.weight -> .*not in this model.*h\.0\.attn\.c_attn\.weight"):
        parity.load(tmp_path)
