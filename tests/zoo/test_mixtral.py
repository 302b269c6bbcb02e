"""Mixtral against torch."""

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import massive_jax as mj
from tests.fixtures import decoders, parity
from tests.fixtures import hf_reference as hf
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.hf_reference import Place, Reference

_LAYER = "model.layers.{l}."
PLACES = {site: place for site, place in decoders.PLACES.items() if site != "mlp_hidden"}
PLACES["router_probs"] = Place(_LAYER + "mlp.gate", part=lambda logits: logits.softmax(-1))
MIXTRAL = Reference(transformers.MixtralForCausalLM, PLACES)
SHAPE = {**decoders.SHAPE, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}

CASES = {
    "default": {},
    "one of three experts, a window, width of its own": {
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "sliding_window": 5,
        "head_dim": 12,
    },
    "all of sixteen, tied, gelu": {
        "num_local_experts": 16,
        "num_experts_per_tok": 16,
        "tie_word_embeddings": True,
        "hidden_act": "gelu",
    },
    "theta, epsilon": {"rope_parameters": decoders.rope("default", theta=500.0), "rms_norm_eps": 1e-2},
}


def build(directory, **changes):
    config = transformers.MixtralConfig(**SHAPE | changes)
    return decoders.build(MIXTRAL, config, directory)


@parity.each(CASES)
def test_parity(tmp_path, case):
    parity.assert_parity(tmp_path, MIXTRAL, build(tmp_path, **CASES[case]))


def test_expert_weights(tmp_path):
    """Zero but for the experts that torch chooses, whose weights are torch's."""
    model = build(tmp_path, num_local_experts=5)
    found = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        model(torch.from_numpy(parity.TOKENS.astype(np.int64)))
    theirs = [torch.zeros_like(logits).scatter(-1, chosen, weights) for logits, weights, chosen in found]
    ours = parity.load(tmp_path)(parity.TOKENS, capture=mj.Capture("expert_weights")).intermediates["expert_weights"]
    np.testing.assert_array_equal(np.count_nonzero(ours, axis=-1), 2)
    np.testing.assert_allclose(np.reshape(ours, (2, -1, 5)), torch.stack(theirs).numpy(), atol=1e-6)


def test_both_spellings(tmp_path):
    """transformers 5 writes a tensor an expert, as published files have; and reads one of all experts."""
    model = build(tmp_path)
    expected = parity.load(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in tensors
    tensors = {name: x for name, x in tensors.items() if "block_sparse_moe" not in name}
    tensors |= {name: x.numpy() for name, x in model.state_dict().items() if ".mlp." in name}
    assert "model.layers.1.mlp.experts.gate_up_proj" in tensors
    safetensors.numpy.save_file(tensors, path)
    parity.assert_same_params(parity.load(tmp_path).params, expected.params)


def test_a_checkpoint_without_one_expert(tmp_path):
    build(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=r"1 missing[^§]*layers\.1\.block_sparse_moe\.experts\.2\.w3\.weight -> "):
        parity.load(tmp_path)


@pytest.mark.parametrize(
    ("actual", "claimed", "message"),
    [
        ("mixtral", "mistral", r"num_experts_per_tok = 2, num_local_experts = 4"),
        (
            "mistral",
            "mixtral",
            r"block_sparse_moe\.gate\.weight -> [^§]*in the checkpoint but not.*[^§]*mlp\.down_proj",
        ),
    ],
)
def test_a_neighbours_checkpoint(tmp_path, actual, claimed, message):
    model_class, config_class = {
        "mixtral": (transformers.MixtralForCausalLM, transformers.MixtralConfig),
        "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig),
    }[actual]
    shape = SHAPE if actual == "mixtral" else decoders.SHAPE
    decoders.build(Reference(model_class, {}), config_class(**shape), tmp_path)
    hf.change_config(tmp_path, {"model_type": claimed})
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


def gguf_tensors(directory, stacked):
    """llama.cpp's conversion/llama.py, on the tensors of the file: queries and keys permuted, experts stacked."""
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "block_sparse_moe.gate": "ffn_gate_inp",
    }
    roles = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    heads = {"q_proj": SHAPE["num_attention_heads"], "k_proj": SHAPE["num_key_value_heads"]}
    out, experts = {}, {}
    for name, x in safetensors.numpy.load_file(directory / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if not module.startswith("model.layers."):
            out[names[module] + ".weight"] = x
            continue
        layer, inner = module.removeprefix("model.layers.").split(".", 1)
        if inner.startswith("block_sparse_moe.experts."):
            expert, role = inner.split(".")[2:]
            experts[f"blk.{layer}.{roles[role]}", int(expert)] = x
            continue
        last = inner.split(".")[-1]
        out[f"blk.{layer}.{names[inner]}.weight"] = decoders.permute(x, heads[last]) if last in heads else x
    for name in {name for name, _ in experts}:
        parts = [experts[name, e] for e in range(SHAPE["num_local_experts"])]
        if stacked:
            out[f"{name}_exps.weight"] = np.stack(parts)
        else:
            out |= {f"{name}.{e}.weight": x for e, x in enumerate(parts)}
    return out


@pytest.mark.parametrize("stacked", [True, False])
def test_gguf(tmp_path, stacked):
    model = build(tmp_path, rope_parameters=decoders.rope("default"))
    metadata = decoders.gguf_metadata("llama", model.config, expert_count=4, expert_used_count=2)
    metadata["llama.rope.dimension_count"] = 8
    write_gguf(tmp_path / "model.gguf", metadata, gguf_tensors(tmp_path, stacked))
    ours, expected = parity.load(tmp_path / "model.gguf"), parity.load(tmp_path)
    parity.assert_same_params(ours.params, expected.params)
    assert ours.config.experts == expected.config.experts
    assert ours.config.model_type == "mixtral"
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6
