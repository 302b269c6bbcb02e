"""Phi against torch."""

import numpy as np
import pytest
import transformers

from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LAYER = "model.layers.{l}."
_PLACES = {
    "embed": Place("model.embed_tokens"),
    "attn_norm": Place(_LAYER + "input_layernorm"),
    "query": Place(_LAYER + "self_attn.q_proj"),
    "key": Place(_LAYER + "self_attn.k_proj"),
    "value": Place(_LAYER + "self_attn.v_proj"),
    "attn_probs": Place(_LAYER + "self_attn", item=1),
    "head_out": Place(_LAYER + "self_attn.dense", "input"),
    "attn_out": Place(_LAYER + "self_attn"),
    "mlp_norm": Place(_LAYER + "input_layernorm"),
    "mlp_hidden": Place(_LAYER + "mlp.fc2", "input"),
    "mlp_out": Place(_LAYER + "mlp"),
    "block_in": Place("model.layers.{l}", "input"),
    "block_out": Place("model.layers.{l}"),
    "final_norm": Place("model.final_layernorm"),
    "logits": Place("lm_head"),
}
PHI = Reference(transformers.PhiForCausalLM, _PLACES)
NORMED = Reference(
    transformers.PhiForCausalLM,
    _PLACES
    | {
        "query": Place(_LAYER + "self_attn.q_layernorm", part=lambda y: y.transpose(1, 2)),
        "key": Place(_LAYER + "self_attn.k_layernorm", part=lambda y: y.transpose(1, 2)),
    },
)


def rope(partial, kind="default", **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "partial_rotary_factor": partial} | settings}


CASES = {
    "default": {},
    "norms of queries and keys, grouped heads": {"qk_layernorm": True, "num_key_value_heads": 2},
    "a quarter of a head, another epsilon": {**rope(0.25, rope_theta=500.0), "layer_norm_eps": 1e-2},
    "whole heads, dynamic scaling": {**rope(1.0, "dynamic", factor=2.0), "max_position_embeddings": 16},
    "tied, another activation": {"tie_word_embeddings": True, "hidden_act": "relu"},
}


def build(directory, **changes):
    config = transformers.PhiConfig(**SHAPE | changes)
    reference = NORMED if config.qk_layernorm else PHI
    model = hf.random_model(reference, config)
    hf.save(model, directory)
    return reference, model


@parity.each(CASES)
def test_parity(tmp_path, case):
    reference, model = build(tmp_path, **CASES[case])
    parity.assert_parity(tmp_path, reference, model)


def test_the_published_config(tmp_path):
    """As transformers 4 wrote it: `partial_rotary_factor` and `rope_theta` at the top."""
    reference, model = build(tmp_path, **rope(0.25))
    old = {"rope_parameters": None, "partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_scaling": None}
    hf.change_config(tmp_path, old)
    parity.assert_parity(tmp_path, reference, model)


def test_a_neighbours_checkpoint(tmp_path):
    """Llama's under the model type of Phi."""
    hf.save(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)), tmp_path)
    transformers.PhiConfig(**SHAPE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)model\.final_layernorm\.weight -> .*not in this model.*model\.norm\.w"):
        parity.load(tmp_path)


METADATA = {
    "general.architecture": "phi2",
    "phi2.block_count": 2,
    "phi2.context_length": 64,
    "phi2.embedding_length": 32,
    "phi2.feed_forward_length": 48,
    "phi2.attention.head_count": 4,
    "phi2.attention.head_count_kv": 4,
    "phi2.attention.layer_norm_epsilon": 1e-5,
    "phi2.rope.dimension_count": 2,
    "phi2.vocab_size": 61,
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def gguf_tensors(model):
    """llama.cpp's conversion/phi.py renames, and nothing else."""
    out = {}
    for name, param in model.named_parameters():
        module, leaf = name.rsplit(".", 1)
        if module.startswith("model.layers."):
            layer, inner = module.removeprefix("model.layers.").split(".", 1)
            module = f"blk.{layer}.{_NAMES[inner]}"
        else:
            module = _NAMES[module]
        out[f"{module}.{leaf}"] = param.detach().numpy()
    return out


@pytest.mark.parametrize("fused", [False, True])
def test_gguf(tmp_path, fused):
    _, model = build(tmp_path, **rope(0.25))
    tensors = gguf_tensors(model)
    if fused:
        for layer, leaf in np.ndindex(2, 2):
            parts = [f"blk.{layer}.attn_{part}.{('weight', 'bias')[leaf]}" for part in "qkv"]
            tensors[parts[0].replace("attn_q", "attn_qkv")] = np.concatenate([tensors.pop(part) for part in parts])
    write_gguf(tmp_path / "model.gguf", METADATA, tensors)
    ours, expected = parity.load(tmp_path / "model.gguf"), parity.load(tmp_path)
    parity.assert_same_params(ours.params, expected.params)
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6


def test_gguf_with_scaled_positions(tmp_path):
    _, model = build(tmp_path, **rope(0.25, "linear", factor=2.0))
    write_gguf(tmp_path / "model.gguf", METADATA | {"phi2.rope.scaling.factor": 2.0}, gguf_tensors(model))
    ours, expected = parity.load(tmp_path / "model.gguf"), parity.load(tmp_path)
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6


def test_gguf_without_its_biases(tmp_path):
    _, model = build(tmp_path)
    tensors = {name: x for name, x in gguf_tensors(model).items() if not name.endswith("attn_k.bias")}
    write_gguf(tmp_path / "model.gguf", METADATA, tensors)
    with pytest.raises(ValueError, match=r"(?s)2 missing.*blk\.0\.attn_k\.bias -> layers/attn/key/bias"):
        parity.load(tmp_path / "model.gguf")
