"""gpt-oss against torch, and its quantised checkpoints."""

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import massive_jax as mj
from tests.fixtures import decoders, parity
from tests.fixtures import hf_reference as hf
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.hf_reference import Place, Reference

_LAYER = "model.layers.{l}."
PLACES = {site: place for site, place in decoders.PLACES.items() if site != "mlp_hidden"}
PLACES["router_probs"] = Place(_LAYER + "mlp.router", part=lambda logits: logits.softmax(-1))
GPT_OSS = Reference(transformers.GptOssForCausalLM, PLACES)
SHAPE = {
    **decoders.SHAPE,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "sliding_window": 5,
    "rms_norm_eps": 1e-5,
}
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}

CASES = {
    "default": {},
    "a narrow clamp, another slope": {"swiglu_limit": 0.8, "swiglu_alpha": 0.9},
    "windows elsewhere, no biases of attention": {
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        "attention_bias": False,
    },
    "yarn over a short context": {
        "rope_parameters": decoders.rope(
            "yarn", theta=150.0, factor=4.0, **YARN | {"original_max_position_embeddings": 16}
        )
    },
    "yarn, truncated": {
        "rope_parameters": decoders.rope(
            "yarn", theta=150.0, factor=4.0, **YARN | {"original_max_position_embeddings": 16, "truncate": True}
        )
    },
    "tied, no window": {"tie_word_embeddings": True, "layer_types": ["full_attention"] * 3},
}


def build(directory, **changes):
    return decoders.build(GPT_OSS, transformers.GptOssConfig(**SHAPE | changes), directory)


@parity.each(CASES, quick=1)
def test_parity(tmp_path, case):
    parity.assert_parity(tmp_path, GPT_OSS, build(tmp_path, **CASES[case]))


@pytest.mark.slow
def test_cases_of_the_clamp_clamp(tmp_path):
    """With the limit of the default no gate of these small models reaches it: the case above is the test."""
    model = build(tmp_path)
    narrow = dataclasses.replace(parity.load(tmp_path).config.experts, swiglu_limit=0.8)
    ours = parity.load(tmp_path)
    module = type(ours.module)(dataclasses.replace(ours.config, experts=narrow))
    logits, _ = module.apply({"params": ours.params}, parity.TOKENS)
    assert hf.relative_error(logits, ours(parity.TOKENS).logits) > 1e-3
    assert model.config.swiglu_limit == 7.0


def test_expert_weights(tmp_path):
    model = build(tmp_path)
    found = []
    for layer in model.model.layers:
        layer.mlp.router.register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        model(torch.from_numpy(parity.TOKENS.astype(np.int64)))
    theirs = [torch.zeros_like(logits).scatter(-1, chosen, weights) for logits, weights, chosen in found]
    ours = parity.load(tmp_path)(parity.TOKENS, capture=mj.Capture("expert_weights")).intermediates["expert_weights"]
    np.testing.assert_allclose(np.reshape(ours, (3, -1, 6)), torch.stack(theirs).numpy(), atol=1e-6)


PUBLISHED = {
    "experts_per_token": 3,
    "initial_context_length": 4096,
    "rope_parameters": None,
    "rope_theta": 150000,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, **YARN},
    "router_aux_loss_coef": 0.9,
    "swiglu_alpha": None,
    "torch_dtype": "bfloat16",
}


def test_the_published_config(tmp_path):
    model = build(tmp_path)
    hf.change_config(tmp_path, PUBLISHED)
    parity.assert_parity(tmp_path, GPT_OSS, model)


def test_a_config_without_what_the_class_has_as_default(tmp_path):
    model = build(tmp_path)
    hf.change_config(tmp_path, {"rope_parameters": None, "layer_types": None, "attention_bias": None, "dtype": None})
    parity.assert_parity(tmp_path, GPT_OSS, model)


def quantise(directory, model):
    """Random MXFP4 experts, written as OpenAI published theirs; `model` is changed to what they say."""
    generator = torch.Generator().manual_seed(0)
    state = {name: x.contiguous() for name, x in model.state_dict().items()}
    for name, param in model.named_parameters():
        if not name.endswith(("gate_up_proj", "down_proj")):
            continue
        experts, columns, rows = param.shape
        shape = (experts, rows, columns // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(121, 126, shape, generator=generator, dtype=torch.uint8)
        with torch.no_grad():
            param.copy_(convert_moe_packed_tensors(blocks, scales))
        del state[name]
        state |= {name + "_blocks": blocks, name + "_scales": scales}
    safetensors.torch.save_file(state, directory / "model.safetensors")
    quantisation = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    hf.change_config(directory, {"quantization_config": quantisation})
    return state


@pytest.mark.slow  # quick are the same weights of a GGUF file, and the format by itself
def test_quantised(tmp_path):
    model = build(tmp_path, intermediate_size=64)
    quantise(tmp_path, model)
    parity.assert_parity(tmp_path, GPT_OSS, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state, name: state.pop(name + "_scales"),
            r"gate_up_proj -> .*[^§]*gate_up_proj_blocks \[6, 128, 1, 16\]",
        ),
        (
            lambda state, name: state.update({name + "_scales": state[name + "_scales"][:, 1:]}),
            r"gate_up_proj_blocks \[6, 128, 1, 16\] and .* are not a tensor in MXFP4",
        ),
    ],
)
def test_quantised_and_broken(tmp_path, change, message):
    model = build(tmp_path, intermediate_size=64)
    state = quantise(tmp_path, model)
    change(state, "model.layers.1.mlp.experts.gate_up_proj")
    safetensors.torch.save_file({name: x.contiguous() for name, x in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


def test_other_quantisations_are_refused(tmp_path):
    build(tmp_path)
    hf.change_config(tmp_path, {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(ValueError, match=r"quantised \(gptq\), which is not supported"):
        parity.load(tmp_path)


def test_a_neighbours_checkpoint(tmp_path):
    """Mixtral's under the model type of gpt-oss."""
    shape = {key: value for key, value in SHAPE.items() if key not in ("sliding_window", "head_dim")}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape))
    hf.save(model, tmp_path)
    hf.change_config(tmp_path, {"model_type": "gpt_oss", "head_dim": 8})
    with pytest.raises(ValueError, match=r"missing[^§]*not in this model[^§]*block_sparse_moe"):
        parity.load(tmp_path)


@pytest.mark.parametrize("quantised", [False, True])
def test_gguf(tmp_path, quantised):
    """llama.cpp's conversion/gpt_oss.py: gate and linear half split, all of the experts' kernels [out, in]."""
    scaling = decoders.rope("yarn", theta=150000.0, factor=32.0, **YARN)
    model = build(tmp_path, intermediate_size=64, rope_parameters=scaling)
    if quantised:
        quantise(tmp_path, model)
    metadata = decoders.gguf_metadata(
        "gpt-oss",
        model.config,
        **{
            "attention.sliding_window": 5,
            "expert_count": 6,
            "expert_used_count": 3,
            "expert_feed_forward_length": 64,
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
    )
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "post_attention_norm",
        "mlp.router": "ffn_gate_inp",
    }
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    tensors = {}
    for name, x in model.state_dict().items():
        x = x.numpy()
        if not name.startswith("model.layers."):
            tensors[outside[name.removesuffix(".weight")] + ".weight"] = x
            continue
        layer, inner = name.removeprefix("model.layers.").split(".", 1)
        block, kind = f"blk.{layer}.", "bias" if inner.endswith("_bias") else "weight"
        inner = inner.removesuffix("_bias")
        if kind == "weight" and inner.startswith("mlp.experts."):
            x = x.swapaxes(-1, -2)
        rows = (slice(None),) * (x.ndim - (2 if kind == "weight" else 1))
        if inner == "mlp.experts.gate_up_proj":
            tensors[f"{block}ffn_gate_exps.{kind}"] = x[(*rows, slice(0, None, 2))]
            tensors[f"{block}ffn_up_exps.{kind}"] = x[(*rows, slice(1, None, 2))]
        elif inner == "mlp.experts.down_proj":
            tensors[f"{block}ffn_down_exps.{kind}"] = x
        elif inner == "self_attn.sinks":
            tensors[f"{block}attn_sinks.weight"] = x
        else:
            module, leaf = inner.rsplit(".", 1)
            tensors[f"{block}{names[module]}.{leaf}"] = x
    kinds = {name: "MXFP4" for name in tensors if quantised and name.endswith("_exps.weight")}
    write_gguf(tmp_path / "model.gguf", metadata, tensors, kinds)
    ours, expected = parity.load(tmp_path / "model.gguf"), parity.load(tmp_path)
    parity.assert_same_params(ours.params, expected.params)
    assert dataclasses.replace(ours.config, norm=expected.config.norm) == expected.config
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6
