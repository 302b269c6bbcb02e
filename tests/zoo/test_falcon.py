"""Falcon against torch, in its four layouts."""

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from transformers.models.falcon import modeling_falcon

from massive_jax.models import AlibiConfig
from massive_jax.models.positions import alibi_bias
from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_7B = {"multi_query": True, "parallel_attn": True}
_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
_11B = {**_40B, "num_ln_in_parallel_attn": 1}
_RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}


def rope(kind="default", **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | settings}


CASES = {
    "7b": _7B,
    "7b, num_kv_heads that is not used, own head": {**_7B, "num_kv_heads": 6, "tie_word_embeddings": False},
    "7b, biases, a narrow mlp, epsilon": {**_7B, "bias": True, "ffn_hidden_size": 40, "layer_norm_epsilon": 1e-2},
    "40b": _40B,
    "40b, a head each, dynamic scaling": {
        **_40B,
        "num_kv_heads": 6,
        **rope("dynamic", factor=2.0),
        "max_position_embeddings": 16,
    },
    "11b, another theta and activation": {**_11B, **rope(rope_theta=500042.0), "activation": "relu"},
    "rw": _RW,
    "rw, slopes that bfloat16 rounds": {**_RW, "num_attention_heads": 12},
    "rw without alibi": {**_RW, "alibi": False},
    "alibi in parallel": {**_7B, "alibi": True},
}
_LAYER = "transformer.h.{l}."


def reference_of(config):
    two_norms = config.new_decoder_architecture and config.num_ln_in_parallel_attn != 1
    heads = config.num_attention_heads
    kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else heads

    def part(start, stop):
        def of(y):
            return y.unflatten(-1, (kv_heads, heads // kv_heads + 2, -1))[..., start:stop, :].flatten(-3)

        return of

    qkv = _LAYER + "self_attention.query_key_value"
    places = {
        "embed": Place("transformer.word_embeddings"),
        "attn_norm": Place(_LAYER + ("ln_attn" if two_norms else "input_layernorm")),
        "query": Place(qkv, part=part(0, -2)),
        "key": Place(qkv, part=part(-2, -1)),
        "value": Place(qkv, part=part(-1, None)),
        "attn_probs": Place(_LAYER + "self_attention", item=1),
        "head_out": Place(_LAYER + "self_attention.dense", "input"),
        "attn_out": Place(_LAYER + "self_attention"),
        "mlp_norm": Place(_LAYER + "mlp", "input"),
        "mlp_hidden": Place(_LAYER + "mlp.dense_4h_to_h", "input"),
        "mlp_out": Place(_LAYER + "mlp"),
        "block_out": Place("transformer.h.{l}"),
        "final_norm": Place("transformer.ln_f"),
        "logits": Place("lm_head"),
    }
    if config.new_decoder_architecture or config.parallel_attn:
        places["block_in"] = Place("transformer.h.{l}", "input")
    else:
        places["mid"] = Place(_LAYER + "post_attention_layernorm", "input")
    return Reference(transformers.FalconForCausalLM, places)


def build(directory, **changes):
    config = transformers.FalconConfig(**SHAPE | changes)
    reference = reference_of(config)
    model = hf.random_model(reference, config)
    hf.save(model, directory)
    return reference, model


@pytest.fixture
def alibi_once(monkeypatch):
    """transformers' eager attention adds the bias twice: once itself, and once more with the mask. Its default adds it
    once, but has no probabilities to compare. Two halves are one."""
    whole = modeling_falcon.build_alibi_tensor
    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", lambda *args, **kw: whole(*args, **kw) / 2)


@parity.each(CASES, quick=1)
def test_parity(tmp_path, alibi_once, case):
    reference, model = build(tmp_path, **CASES[case])
    parity.assert_parity(tmp_path, reference, model)


def test_alibi_in_transformers_default_attention(tmp_path):
    _, model = build(tmp_path, **_RW, num_attention_heads=12)
    model.config._attn_implementation = "sdpa"
    with torch.no_grad():
        theirs = model(torch.from_numpy(parity.TOKENS.astype(np.int64))).logits
    assert hf.relative_error(parity.load(tmp_path)(parity.TOKENS).logits, theirs) <= parity.TOLERANCE


@pytest.mark.parametrize("heads", [1, 5, 6, 8, 32, 71])
def test_alibi(heads):
    """To the bit, past the positions that bfloat16 can tell apart."""
    alibi = AlibiConfig(round_up=False, from_last=False, before_scale=True, bfloat16=True)
    theirs = modeling_falcon.build_alibi_tensor(torch.ones(1, 700, dtype=torch.int64), heads, torch.float32)
    np.testing.assert_array_equal(alibi_bias(alibi, heads, np.arange(700)[None])[0], theirs.numpy())


def test_the_head_that_tied_files_hold(tmp_path):
    """Published files have it beside the embedding."""
    _, model = build(tmp_path, **_7B)
    tensors = {name: param.detach().contiguous() for name, param in model.state_dict().items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    assert "head" not in parity.load(tmp_path).params
    tensors["lm_head.weight"][3, 4] += 1
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="ties the output head to the embedding, but lm_head.weight differs"):
        parity.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm = True"),
        ({"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn = 2"),
        ({"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn = False"),
        ({"activation": "mish"}, "activation 'mish'"),
        ({"model_type": "RefinedWeb"}, "model_type 'RefinedWeb' is not supported"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path, num_hidden_layers=1)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


def test_the_weights_of_another_layout(tmp_path):
    """40B's weights under 7B's config."""
    build(tmp_path, **_40B)
    hf.change_config(tmp_path, {"new_decoder_architecture": False, "num_ln_in_parallel_attn": None})
    with pytest.raises(ValueError, match=r"(?s)not in this model.*ln_mlp.*shape.*query_key_value\.weight has shape"):
        parity.load(tmp_path)


def test_a_neighbours_checkpoint(tmp_path):
    """Bloom's names are Falcon's but for a norm after the embedding."""
    config = transformers.BloomConfig(vocab_size=61, hidden_size=48, n_layer=2, n_head=6)
    hf.save(transformers.BloomForCausalLM(config), tmp_path)
    transformers.FalconConfig(**SHAPE, **_RW).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not in this model.*\n.*transformer\.word_embeddings_layernorm"):
        parity.load(tmp_path)


METADATA = {
    "general.architecture": "falcon",
    "falcon.block_count": 2,
    "falcon.context_length": 2048,
    "falcon.tensor_data_layout": "jploski",
    "falcon.embedding_length": 48,
    "falcon.feed_forward_length": 192,
    "falcon.attention.head_count": 6,
    "falcon.attention.layer_norm_epsilon": 1e-5,
    "falcon.vocab_size": 61,
}
_NAMES = {
    "transformer.word_embeddings": "token_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


def gguf_tensors(model, heads, kv_heads):
    """llama.cpp's conversion/falcon.py: the fused rows put in the order of queries, keys, values."""
    out = {}
    for name, param in model.named_parameters():
        module, leaf = name.rsplit(".", 1)
        x = param.detach().numpy()
        if "query_key_value" in name:
            width = x.shape[0] // (heads + 2 * kv_heads)
            qkv = x.reshape(kv_heads, heads // kv_heads + 2, width, x.shape[1])
            parts = (qkv[:, :-2], qkv[:, [-2]], qkv[:, [-1]])
            x = np.concatenate([part.reshape(-1, x.shape[1]) for part in parts])
        if module.startswith("transformer.h."):
            layer, inner = module.removeprefix("transformer.h.").split(".", 1)
            out[f"blk.{layer}.{_NAMES[inner]}.{leaf}"] = x
        else:
            out[f"{_NAMES[module]}.{leaf}"] = x
    return out


@pytest.mark.parametrize(
    ("layout", "kv_heads"), [(_7B, 1), (_40B, 2), ({**_11B, "tie_word_embeddings": False}, 2)], ids=["7b", "40b", "11b"]
)
def test_gguf(tmp_path, layout, kv_heads):
    _, model = build(tmp_path, **layout)
    metadata = METADATA | {"falcon.attention.head_count_kv": kv_heads}
    write_gguf(tmp_path / "model.gguf", metadata, gguf_tensors(model, 6, kv_heads))
    ours, expected = parity.load(tmp_path / "model.gguf"), parity.load(tmp_path)
    parity.assert_same_params(ours.params, expected.params)
    assert ours.config.residual == expected.config.residual
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6


def test_gguf_with_scaled_positions(tmp_path):
    linear = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    _, model = build(tmp_path, **_40B, **linear)
    metadata = METADATA | {"falcon.attention.head_count_kv": 2, "falcon.rope.scaling.factor": 2.0}
    write_gguf(tmp_path / "model.gguf", metadata, gguf_tensors(model, 6, 2))
    ours, expected = parity.load(tmp_path / "model.gguf"), parity.load(tmp_path)
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6
