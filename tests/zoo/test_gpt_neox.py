"""GPT-NeoX and Pythia against torch."""

import numpy as np
import pytest
import safetensors.numpy
import transformers

import massive_jax as mj
from massive_jax import zoo
from massive_jax.weights import hub
from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LAYER = "gpt_neox.layers.{l}."


def _of_every_head(i):
    def part(y):
        return y.unflatten(-1, (SHAPE["num_attention_heads"], 3, -1))[..., i, :]

    return part


_PLACES = {
    "embed": Place("gpt_neox.emb_dropout"),
    "attn_norm": Place(_LAYER + "input_layernorm"),
    "query": Place(_LAYER + "attention.query_key_value", part=_of_every_head(0)),
    "key": Place(_LAYER + "attention.query_key_value", part=_of_every_head(1)),
    "value": Place(_LAYER + "attention.query_key_value", part=_of_every_head(2)),
    "attn_probs": Place(_LAYER + "attention", item=1),
    "head_out": Place(_LAYER + "attention.dense", "input"),
    "attn_out": Place(_LAYER + "attention"),
    "mlp_norm": Place(_LAYER + "post_attention_layernorm"),
    "mlp_hidden": Place(_LAYER + "mlp.dense_4h_to_h", "input"),
    "mlp_out": Place(_LAYER + "mlp"),
    "block_out": Place("gpt_neox.layers.{l}"),
    "final_norm": Place("gpt_neox.final_layer_norm"),
    "logits": Place("lm_head"),
}
PARALLEL = Reference(transformers.GPTNeoXForCausalLM, _PLACES | {"block_in": Place("gpt_neox.layers.{l}", "input")})
SERIAL = Reference(
    transformers.GPTNeoXForCausalLM, _PLACES | {"mid": Place(_LAYER + "post_attention_layernorm", "input")}
)


def rope(kind="default", **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "partial_rotary_factor": 0.25} | settings}


CASES = {
    "default": {},
    "serial": {"use_parallel_residual": False},
    "half of a head, another theta": rope(partial_rotary_factor=0.5, rope_theta=500.0),
    "whole heads, linear scaling": rope("linear", partial_rotary_factor=1.0, factor=2.5),
    "part of a head, dynamic scaling": {
        **rope("dynamic", factor=2.0, partial_rotary_factor=0.5),
        "max_position_embeddings": 16,
    },
    "no attention biases, tied": {"attention_bias": False, "tie_word_embeddings": True},
    "tanh gelu, epsilon": {"hidden_act": "gelu_fast", "layer_norm_eps": 1e-2},
}


def build(directory, **changes):
    config = transformers.GPTNeoXConfig(**SHAPE | changes)
    reference = PARALLEL if config.use_parallel_residual else SERIAL
    model = hf.random_model(reference, config)
    hf.save(model, directory)
    return reference, model


@parity.each(CASES)
def test_parity(tmp_path, case):
    reference, model = build(tmp_path, **CASES[case])
    parity.assert_parity(tmp_path, reference, model)


def test_pythias_own_config_and_buffers(tmp_path):
    """As published: `rotary_pct`, `rotary_emb_base`, and the buffers of transformers 4 among the weights."""
    reference, model = build(tmp_path, **rope(partial_rotary_factor=0.5, rope_theta=500.0))
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    assert "embed_out.weight" in tensors
    for layer in range(SHAPE["num_hidden_layers"]):
        buffers = {"bias": np.ones((1, 1, 64, 64), bool), "masked_bias": np.float32(-1e9)}
        buffers["rotary_emb.inv_freq"] = np.ones(2, np.float32)
        tensors |= {f"gpt_neox.layers.{layer}.attention.{name}": np.asarray(x) for name, x in buffers.items()}
    safetensors.numpy.save_file(tensors, path)
    hf.change_config(tmp_path, {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 500})
    parity.assert_parity(tmp_path, reference, model)


def test_rotary_fields_absent_are_the_classs(tmp_path):
    build(tmp_path, num_hidden_layers=1)
    hf.change_config(tmp_path, {"rope_parameters": None})
    rope = parity.load(tmp_path).config.rope
    assert (rope.rotary_dim, rope.theta) == (2, 10000.0)


def test_head_by_the_name_of_transformers_5(tmp_path):
    build(tmp_path)
    expected = parity.load(tmp_path).params
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    safetensors.numpy.save_file(tensors, path)
    parity.assert_same_params(parity.load(tmp_path).params, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "activation 'mish' is not implemented"),
        ({"rope_parameters": {"rope_type": "su"}}, "rope scaling 'su' is not implemented"),
        ({"rotary_pct": 0.3, "rope_parameters": None, "hidden_size": 40}, "rotary_dim 3 must be even"),
        ({"use_qk_norm": True}, "use_qk_norm = True"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path, num_hidden_layers=1)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


def test_a_checkpoint_without_the_biases_of_its_config(tmp_path):
    build(tmp_path, attention_bias=False)
    hf.change_config(tmp_path, {"attention_bias": True})
    with pytest.raises(ValueError, match=r"(?s)missing from the checkpoint.*attention\.query_key_value\.bias"):
        parity.load(tmp_path)


def test_a_neighbours_checkpoint(tmp_path):
    """OPT's under the model type of GPT-NeoX."""
    config = transformers.OPTConfig(**{k: v for k, v in SHAPE.items() if k != "intermediate_size"}, ffn_dim=48)
    hf.save(transformers.OPTForCausalLM(config), tmp_path)
    transformers.GPTNeoXConfig(**SHAPE).save_pretrained(tmp_path)  # over OPT's
    with pytest.raises(ValueError, match=r"(?s)gpt_neox\.embed_in\.weight -> .*not in this model.*decoder\.embed_pos"):
        parity.load(tmp_path)


def gguf_tensors(model, num_heads):
    """llama.cpp's conversion/gptneox.py: the fused rows put in the order of queries, keys, values."""
    parts = {
        "input_layernorm": "attn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }
    names = {
        f"gpt_neox.layers.{i}.{ours}": f"blk.{i}.{theirs}"
        for i in range(SHAPE["num_hidden_layers"])
        for ours, theirs in parts.items()
    }
    names |= {"gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm", "lm_head": "output"}
    out = {}
    for name, param in model.named_parameters():
        module, leaf = name.rsplit(".", 1)
        x = param.detach().numpy()
        if "query_key_value" in name:
            split = x.reshape(num_heads, 3, x.shape[0] // num_heads // 3, *x.shape[1:])
            x = np.concatenate([split[:, i].reshape(-1, *x.shape[1:]) for i in range(3)])
        out[f"{names[module]}.{leaf}"] = x
    return out


GGUF_METADATA = {
    "general.architecture": "gptneox",
    "gptneox.block_count": 3,
    "gptneox.context_length": 64,
    "gptneox.embedding_length": 32,
    "gptneox.feed_forward_length": 48,
    "gptneox.attention.head_count": 4,
    "gptneox.attention.layer_norm_epsilon": 1e-5,
    "gptneox.rope.dimension_count": 2,
    "gptneox.use_parallel_residual": True,
    "gptneox.vocab_size": 61,
}


@pytest.mark.parametrize("parallel", [True, False])
def test_gguf(tmp_path, parallel):
    rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
    _, model = build(tmp_path, use_parallel_residual=parallel, **rotary)
    expected = parity.load(tmp_path)
    metadata = {"gptneox.rope.dimension_count": 4, "gptneox.use_parallel_residual": parallel}
    write_gguf(tmp_path / "model.gguf", GGUF_METADATA | metadata, gguf_tensors(model, 4))
    ours = parity.load(tmp_path / "model.gguf")
    parity.assert_same_params(ours.params, expected.params)
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6


def test_gguf_with_scaled_positions(tmp_path):
    """A factor by its old name, without a type, is a linear one."""
    rotary = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    _, model = build(tmp_path, rope_parameters=rotary)
    write_gguf(tmp_path / "model.gguf", GGUF_METADATA | {"gptneox.rope.scale_linear": 2.0}, gguf_tensors(model, 4))
    ours, expected = parity.load(tmp_path / "model.gguf"), parity.load(tmp_path)
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6


def test_a_training_checkpoint_is_a_revision_of_its_preset(tmp_path, monkeypatch):
    build(tmp_path)
    asked = []
    monkeypatch.setattr(hub, "snapshot", lambda *names, **options: asked.append((names, options)) or tmp_path)
    mj.load("pythia_70m_deduped", revision="step1000", progress=False)
    assert asked == [(("EleutherAI/pythia-70m-deduped",), {"revision": "step1000"})]
    assert zoo.PRESETS["pythia_70m"].source == "EleutherAI/pythia-70m"
