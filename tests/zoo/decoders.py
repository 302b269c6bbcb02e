"""What the tests of Llama's relatives share: tiny shapes, where their sites are in torch, llama.cpp's conversion."""

import dataclasses

import gguf
import hf_reference as hf
import jax
import numpy as np
import parity
from gguf_files import write_gguf
from hf_reference import LLAMA, Place

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LAYER = "model.layers.{l}."

PLACES = dict(LLAMA.places)
# After the norm, in torch's order of axes.
QK_NORM_OF_HEADS = {"query": Place(_LAYER + "self_attn.q_norm"), "key": Place(_LAYER + "self_attn.k_norm")}
OUTPUT_NORMS = {
    "attn_out": Place(_LAYER + "post_attention_layernorm"),
    "mlp_out": Place(_LAYER + "post_feedforward_layernorm"),
}
PRE_AND_OUTPUT_NORMS = OUTPUT_NORMS | {
    "mid": Place(_LAYER + "pre_feedforward_layernorm", "input"),
    "mlp_norm": Place(_LAYER + "pre_feedforward_layernorm"),
}
# The logits after what the head's module does not do: a softcap.
CAPPED_LOGITS = {"logits": Place("", part=lambda output: output.logits)}


def rope(kind, theta=10000.0, **settings):
    return {"rope_type": kind, "rope_theta": theta, **settings}


def build(reference, config, directory):
    """A random model, saved in `directory`."""
    model = hf.random_model(reference, config)
    directory.mkdir(exist_ok=True)
    hf.save(model, directory)
    return model


def gguf_metadata(architecture, config, **more):
    """What llama.cpp's `TextModel.set_gguf_parameters` writes of a text model's config; `more` without the prefix."""
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if getattr(config, "head_dim", None):
        fields |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.tokens": [str(i) for i in range(config.vocab_size)],
        **{f"{architecture}.{name}": value for name, value in (fields | more).items()},
    }


def gguf_tensors(model, architecture, change=lambda name, x: x):
    """The tensors under the names that the `gguf` package has for them, after `change(name, x)`."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    return {
        names.get_name(name, try_suffixes=(".weight", ".bias")): change(name, x.numpy())
        for name, x in model.state_dict().items()
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }


def add_one_to_norms(name, x):
    """`GemmaModel.modify_tensors`."""
    return x + np.float32(1) if name.endswith("norm.weight") else x


def permute(x, heads):
    """`LlamaModel.permute`."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def assert_gguf_as_huggingface(directory, metadata, tensors):
    """The model in `directory` and the same one as GGUF: one config, one set of parameters, one result."""
    write_gguf(directory / "model.gguf", metadata, tensors)
    ours, expected = parity.load(directory / "model.gguf"), parity.load(directory)
    shifted = expected.config.norm.unit_offset
    assert not ours.config.norm.unit_offset
    assert dataclasses.replace(ours.config, norm=expected.config.norm) == expected.config
    np.testing.assert_allclose(ours.config.norm.eps, expected.config.norm.eps, rtol=1e-6)

    def as_stored(path, x):
        return x + np.float32(1) if shifted and path[-1].key == "scale" else x

    parity.assert_same_params(ours.params, jax.tree_util.tree_map_with_path(as_stored, expected.params))
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6
    return ours
