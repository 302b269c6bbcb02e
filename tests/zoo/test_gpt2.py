"""GPT-2 and nanoGPT against torch, and their checkpoints in every spelling."""

import numpy as np
import pytest
import safetensors.numpy
import transformers

from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}
_LAYER = "transformer.h.{l}."


def _third(i):
    return lambda y: y.chunk(3, dim=-1)[i]


GPT2 = Reference(
    transformers.GPT2LMHeadModel,
    {
        "embed": Place("transformer.drop"),
        "attn_norm": Place(_LAYER + "ln_1"),
        "query": Place(_LAYER + "attn.c_attn", part=_third(0)),
        "key": Place(_LAYER + "attn.c_attn", part=_third(1)),
        "value": Place(_LAYER + "attn.c_attn", part=_third(2)),
        "attn_probs": Place(_LAYER + "attn", item=1),
        "head_out": Place(_LAYER + "attn.c_proj", "input"),
        "attn_out": Place(_LAYER + "attn"),
        "mid": Place(_LAYER + "ln_2", "input"),
        "mlp_norm": Place(_LAYER + "ln_2"),
        "mlp_hidden": Place(_LAYER + "mlp.c_proj", "input"),
        "mlp_out": Place(_LAYER + "mlp"),
        "block_out": Place("transformer.h.{l}"),
        "final_norm": Place("transformer.ln_f"),
        "logits": Place("lm_head"),
    },
)
CASES = {
    "default": {},
    "inner width, relu, epsilon": {"n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 1e-2},
    "untied, exact gelu": {"tie_word_embeddings": False, "activation_function": "gelu"},
    "logits not scaled": {"scale_attn_weights": False},
    "logits upcast": {"reorder_and_upcast_attn": True},
    "logits scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "logits scaled by layer only": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
}


def build(directory, **changes):
    model = hf.random_model(GPT2, transformers.GPT2Config(**SHAPE | SPECIAL | changes))
    hf.save(model, directory)
    return model


def rewrite(directory, change):
    """Replaces the checkpoint's tensors by `change(tensors)`."""
    path = directory / "model.safetensors"
    tensors = change(safetensors.numpy.load_file(path))
    safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)


def bare(tensors):
    """As OpenAI's checkpoints are: no prefix, and the buffers of older versions."""
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    for layer in range(SHAPE["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
        tensors[f"h.{layer}.attn.masked_bias"] = np.float32(-1e4)
    return tensors


@parity.each(CASES, quick=1)
def test_parity(tmp_path, case):
    parity.assert_parity(tmp_path, GPT2, build(tmp_path, **CASES[case]))


def test_names_without_the_prefix_and_with_buffers(tmp_path):
    build(tmp_path)
    expected = parity.load(tmp_path).params
    rewrite(tmp_path, bare)
    # The fields that OpenAI's config.json has besides.
    hf.change_config(tmp_path, {"n_ctx": 64, "task_specific_params": {"text-generation": {"max_length": 50}}})
    parity.assert_same_params(parity.load(tmp_path).params, expected)


def test_tied_head_is_accepted_only_if_equal(tmp_path):
    build(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"]})
    parity.load(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from embedding"):
        parity.load(tmp_path)


def without_biases(model):
    """The torch model with its biases at zero, as one without any computes."""
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            param.data.zero_()


def test_bias_free(tmp_path):
    model = build(tmp_path)
    without_biases(model)
    rewrite(
        tmp_path,
        lambda tensors: {
            name: x.detach().numpy() for name, x in model.named_parameters() if name in tensors and "bias" not in name
        },
    )
    with pytest.raises(ValueError, match=r"missing from the checkpoint:\n\s+transformer\.ln_f\.bias"):
        parity.load(tmp_path)
    hf.change_config(tmp_path, {"bias": False})
    ours = parity.assert_parity(tmp_path, GPT2, model)
    assert "bias" not in ours.params["norm"]


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt(tmp_path, prefix):
    """Its state dict: `Linear` layers, the head twice, perhaps the prefix of `torch.compile` and a mask buffer."""
    model = build(tmp_path, activation_function="gelu")
    without_biases(model)

    def convert(tensors):
        out = {f"{prefix}transformer.h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32)} if prefix else {}
        for name, x in model.state_dict().items():
            if "bias" not in name:
                conv = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
                out[prefix + name] = x.numpy().T if conv else x.numpy()
        assert f"{prefix}lm_head.weight" in out
        return out

    rewrite(tmp_path, convert)
    (tmp_path / "config.json").write_text(
        '{"model_type": "nanogpt", "n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 64, "bias": false,'
        ' "vocab_size": 61, "dropout": 0.1}'
    )
    parity.assert_parity(tmp_path, GPT2, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "tanh"}, "activation 'tanh' is not implemented"),
        ({"window_size": 5}, "window_size = 5"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path, n_layer=1)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


def test_fields_without_effect(tmp_path):
    build(tmp_path, n_layer=1)
    hf.change_config(tmp_path, {"n_special": 0, "predict_special_tokens": True, "output_past": True, "n_inner": None})
    parity.load(tmp_path)


def test_a_neighbours_checkpoint(tmp_path):
    """GPT-J under GPT-2's model type: all that is wrong, at once."""
    config = transformers.GPTJConfig(**SHAPE | SPECIAL, rotary_dim=4)
    hf.save(transformers.GPTJForCausalLM(config), tmp_path, config={"model_type": "gpt2", "rotary_dim": None})
    with pytest.raises(ValueError, match=r"(?s)transformer\.wpe\.weight -> .*not in this model.*h\.0\.attn\.k_proj"):
        parity.load(tmp_path)


def gguf_tensors(model):
    """llama.cpp's conversion/gpt2.py: `Conv1D` transposed, a tied head left out."""
    names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
    parts = {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    names |= {f"h.{i}.{ours}": f"blk.{i}.{theirs}" for i in range(SHAPE["n_layer"]) for ours, theirs in parts.items()}
    names = {f"transformer.{name}": new for name, new in names.items()} | {"lm_head": "output"}
    out = {}
    for name, param in model.named_parameters():
        module, leaf = name.rsplit(".", 1)
        x = param.detach().numpy()
        out[f"{names[module]}.{leaf}"] = x.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else x
    return out


GGUF_METADATA = {
    "general.architecture": "gpt2",
    "gpt2.block_count": 3,
    "gpt2.context_length": 64,
    "gpt2.embedding_length": 32,
    "gpt2.feed_forward_length": 128,
    "gpt2.attention.head_count": 4,
    "gpt2.attention.layer_norm_epsilon": 1e-5,
    "gpt2.vocab_size": 61,
}


@pytest.mark.parametrize("tied", [True, False])
def test_gguf(tmp_path, tied):
    expected = parity.load(build_in(tmp_path / "hf", tie_word_embeddings=tied))
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    write_gguf(tmp_path / "model.gguf", GGUF_METADATA, gguf_tensors(model))
    ours = parity.load(tmp_path / "model.gguf")
    parity.assert_same_params(ours.params, expected.params)
    assert ours.config.norm.eps == pytest.approx(expected.config.norm.eps)
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6
    metadata = {name: value for name, value in GGUF_METADATA.items() if "context" not in name}
    write_gguf(tmp_path / "bad.gguf", metadata, gguf_tensors(model))
    with pytest.raises(ValueError, match=r"no gpt2\.context_length"):
        parity.load(tmp_path / "bad.gguf")


def build_in(directory, **changes):
    directory.mkdir()
    build(directory, **changes)
    return directory
