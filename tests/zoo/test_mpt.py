"""MPT against torch, and the settings of the published code that transformers' own class does not have."""

import functools
import math

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from transformers.models.mpt import modeling_mpt

import massive_jax as mj
from massive_jax.models import AlibiConfig
from massive_jax.models.positions import alibi_bias
from tests.fixtures import hf_reference as hf
from tests.fixtures import parity
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.hf_reference import Place, Reference

SHAPE = {
    "vocab_size": 61,
    "d_model": 48,
    "n_layers": 2,
    "n_heads": 6,
    "max_seq_len": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LAYER = "transformer.blocks.{l}."


def _third(i):
    return lambda y: y.chunk(3, dim=-1)[i]


MPT = Reference(
    transformers.MptForCausalLM,
    {
        "embed": Place("transformer.wte"),
        "attn_norm": Place(_LAYER + "norm_1"),
        "query": Place(_LAYER + "attn.Wqkv", part=_third(0)),
        "key": Place(_LAYER + "attn.Wqkv", part=_third(1)),
        "value": Place(_LAYER + "attn.Wqkv", part=_third(2)),
        "attn_probs": Place(_LAYER + "attn", item=1),
        "head_out": Place(_LAYER + "attn.out_proj", "input"),
        "attn_out": Place(_LAYER + "attn"),
        "mid": Place(_LAYER + "norm_2", "input"),
        "mlp_norm": Place(_LAYER + "norm_2"),
        "mlp_hidden": Place(_LAYER + "ffn.down_proj", "input"),
        "mlp_out": Place(_LAYER + "ffn.down_proj"),
        "block_out": Place("transformer.blocks.{l}"),
        "final_norm": Place("transformer.norm_f"),
        "logits": Place("lm_head"),
    },
)


def clipped(bound):
    places = dict(MPT.places)
    for i, site in enumerate(("query", "key", "value")):
        part = functools.partial(lambda y, i: y.chunk(3, dim=-1)[i].clamp(-bound, bound), i=i)
        places[site] = Place(_LAYER + "attn.Wqkv", part=part)
    return Reference(MPT.model_class, places)


def attention(**settings):
    return {"attn_config": settings}


CASES = {
    "default": (MPT, {}),
    "eight heads, own head": (MPT, {"n_heads": 8, "tie_word_embeddings": False}),
    "clipped, scaled": (clipped(0.6), {**attention(clip_qkv=0.6, softmax_scale=0.9), "layer_norm_epsilon": 1e-2}),
}


def build(directory, reference=MPT, **changes):
    model = hf.random_model(reference, transformers.MptConfig(**SHAPE | changes))
    hf.save(model, directory)
    return model


@parity.each(CASES, quick=1)
def test_parity(tmp_path, case):
    reference, changes = CASES[case]
    parity.assert_parity(tmp_path, reference, build(tmp_path, reference, **changes))


@pytest.mark.parametrize("heads", [1, 5, 6, 8, 40])
@pytest.mark.parametrize("bias_max", [8, 16])
def test_alibi(heads, bias_max):
    theirs = modeling_mpt.build_mpt_alibi_tensor(heads, 300, bias_max)
    ours = alibi_bias(AlibiConfig(max_exponent=bias_max), heads, np.arange(300)[None])[0]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_alibi_bias_max(tmp_path, monkeypatch):
    """transformers' class does not pass it on; the models were trained with it (StoryWriter's is 16)."""
    model = build(tmp_path, **attention(alibi_bias_max=16))
    plain = modeling_mpt.build_mpt_alibi_tensor
    monkeypatch.setattr(modeling_mpt, "build_mpt_alibi_tensor", lambda h, s, _, device: plain(h, s, 16, device))
    parity.assert_parity(tmp_path, MPT, model)


# The code that the models were published with (mosaicml/llm-foundry, `modeling_mpt.py`), as far as transformers' class
# lacks it: biases, norms of queries and keys, learned positions, fewer key heads, another width, scaled logits.


def foundry_config(**changes):
    """As published beside MPT's relatives: SEA-LION, PhoGPT, Replit's."""
    attention = {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0.0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    }
    fields = {
        "architectures": ["MPTForCausalLM"],
        "model_type": "mpt",
        **SHAPE,
        "emb_pdrop": 0.0,
        "embedding_fraction": 0.1,
        "expansion_ratio": 2,
        "fc_type": "torch",
        "ffn_config": {"fc_type": "torch", "ffn_type": "mptmlp"},
        "init_config": {"name": "kaiming_normal_", "init_nonlinearity": "relu", "fan_mode": "fan_in"},
        "init_config_defaults": {"init_std": 0.02},
        "init_device": "cpu",
        "learned_pos_emb": True,
        "logit_scale": None,
        "no_bias": False,
        "norm_type": "low_precision_layernorm",
        "resid_pdrop": 0.0,
        "tokenizer_name": "x",
        "use_cache": False,
        "verbose": 0,
    }
    attention |= changes.pop("attn_config", {})
    return fields | {"attn_config": attention} | changes


def foundry_tensors(config):
    rng = np.random.default_rng(1)
    D, V, T = config["d_model"], config["vocab_size"], config["max_seq_len"]
    N, F = D // config["n_heads"], int(D * config["expansion_ratio"])
    attn = config["attn_config"]
    K = {"multihead_attention": config["n_heads"], "multiquery_attention": 1}.get(
        attn["attn_type"], attn.get("kv_n_heads")
    )
    shapes = {"wte": (V, D), "norm_f": (D,)}
    if not attn["alibi"]:
        shapes["wpe"] = (T, D)
    for layer in range(config["n_layers"]):
        block = {"norm_1": (D,), "attn.Wqkv": (D + 2 * K * N, D), "attn.out_proj": (D, D), "norm_2": (D,)}
        block |= {"ffn.up_proj": (F, D), "ffn.down_proj": (D, F)}
        if attn["qk_ln"]:
            block |= {"attn.q_ln": (D,), "attn.k_ln": (K * N,)}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    out = {}
    for name, shape in shapes.items():
        is_norm, is_table = len(shape) == 1, name in ("wte", "wpe")
        x = rng.normal(size=shape) * (0.3 if is_norm else 0.7 if is_table else shape[-1] ** -0.5)
        out[f"transformer.{name}.weight"] = (x + is_norm).astype(np.float32)
        if not config["no_bias"] and not is_table:
            out[f"transformer.{name}.bias"] = (0.3 * rng.normal(size=shape[:1])).astype(np.float32)
    return out


def foundry_forward(config, tensors, tokens):
    """Float64. Returns every block's output and the logits."""
    w = {name: torch.from_numpy(x).double() for name, x in tensors.items()}
    attn, H = config["attn_config"], config["n_heads"]
    D = config["d_model"]
    N = D // H

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w[name + ".weight"], w.get(name + ".bias"), 1e-5)

    def linear(x, name):
        return torch.nn.functional.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    x = w["transformer.wte.weight"][torch.from_numpy(tokens).long()]
    T = tokens.shape[1]
    if not attn["alibi"]:
        x = x + w["transformer.wpe.weight"][:T]
    outputs = []
    for layer in range(config["n_layers"]):
        p = f"transformer.blocks.{layer}."
        qkv = linear(norm(x, p + "norm_1"), p + "attn.Wqkv")
        if attn["clip_qkv"]:
            qkv = qkv.clamp(-attn["clip_qkv"], attn["clip_qkv"])
        kv = (qkv.shape[-1] - D) // 2
        q, k, v = qkv.split([D, kv, kv], dim=-1)
        if attn["qk_ln"]:
            q, k = norm(q, p + "attn.q_ln"), norm(k, p + "attn.k_ln")
        q, k, v = (y.unflatten(-1, (-1, N)).transpose(1, 2) for y in (q, k, v))
        k, v = (y.repeat_interleave(H // y.shape[1], dim=1) for y in (k, v))
        logits = q @ k.transpose(-1, -2) * (attn["softmax_scale"] or 1 / math.sqrt(N))
        if attn["alibi"]:
            logits = logits + modeling_mpt.build_mpt_alibi_tensor(H, T, attn["alibi_bias_max"]).double()
        logits = logits.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        x = x + linear((logits.softmax(-1) @ v).transpose(1, 2).flatten(2), p + "attn.out_proj")
        hidden = torch.nn.functional.gelu(linear(norm(x, p + "norm_2"), p + "ffn.up_proj"))
        x = x + linear(hidden, p + "ffn.down_proj")
        outputs.append(x.numpy())
    scale = config["logit_scale"] or 1.0
    scale = 1 / math.sqrt(D) if scale == "inv_sqrt_d_model" else scale
    return np.stack(outputs), (norm(x, "transformer.norm_f") @ w["transformer.wte.weight"].T * scale).numpy()


FOUNDRY_CASES = {
    "biases": {},
    "SEA-LION": {"attn_config": {"alibi": False, "qk_ln": True}, "logit_scale": "inv_sqrt_d_model"},
    "Replit": {
        "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
        "learned_pos_emb": False,
        "no_bias": True,
        "logit_scale": 0.5,
    },
    "StoryWriter, one key head, norms without biases": {
        "attn_config": {
            "attn_type": "multiquery_attention",
            "alibi_bias_max": 16,
            "clip_qkv": 0.5,
            "softmax_scale": 0.3,
            "qk_ln": True,
        },
        "no_bias": True,
    },
}


def write_foundry(directory, case):
    config = foundry_config(**FOUNDRY_CASES[case])
    tensors = foundry_tensors(config)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    hf.change_config(directory, config)
    return config, tensors


@pytest.mark.parametrize("case", FOUNDRY_CASES)
def test_the_published_code(tmp_path, case):
    config, tensors = write_foundry(tmp_path, case)
    blocks, logits = foundry_forward(config, tensors, parity.TOKENS)
    ours = parity.load(tmp_path)
    out = ours(parity.TOKENS, capture=mj.Capture("block_out"))
    errors = [hf.relative_error(a, b) for a, b in zip(out.intermediates["block_out"], blocks, strict=True)]
    print("worst:", max(errors))
    assert max(errors) <= parity.TOLERANCE
    assert hf.relative_error(out.logits, logits) <= parity.TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_config": {"alibi": False}, "learned_pos_emb": False}, "neither alibi nor learned_pos_emb"),
        ({"attn_config": {"rope": True}}, "attn_config.*rope = True"),
        ({"attn_config": {"prefix_lm": True}}, "prefix_lm = True"),
        ({"attn_config": {"attn_type": "mamba"}}, "attn_type 'mamba'"),
        ({"norm_type": "rmsnorm"}, "norm_type = 'rmsnorm'"),
        ({"ffn_config": {"ffn_type": "mb_moe"}}, "ffn_type = 'mb_moe'"),
        ({"logit_scale": "half"}, "logit_scale 'half'"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    build(tmp_path, n_layers=1)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


def test_a_neighbours_checkpoint(tmp_path):
    """Bloom's under the model type of MPT."""
    config = transformers.BloomConfig(vocab_size=61, hidden_size=48, n_layer=2, n_head=6)
    hf.save(transformers.BloomForCausalLM(config), tmp_path)
    transformers.MptConfig(**SHAPE).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"(?s)transformer\.wte\.weight -> embedding.*not in this model.*transformer\.h\.0\."
    ):
        parity.load(tmp_path)


_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "norm_f": "output_norm",
    "norm_1": "attn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.q_ln": "attn_q_norm",
    "attn.k_ln": "attn_k_norm",
    "attn.out_proj": "attn_output",
    "norm_2": "ffn_norm",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}


@pytest.mark.parametrize(
    "case", [name for name in FOUNDRY_CASES if name != "StoryWriter, one key head, norms without biases"]
)
def test_gguf(tmp_path, case):
    """llama.cpp's conversion/mpt.py renames; it stores no softmax_scale and no logit_scale."""
    config, tensors = write_foundry(tmp_path, case)
    attn = config["attn_config"]
    metadata = {
        "general.architecture": "mpt",
        "mpt.block_count": 2,
        "mpt.context_length": 64,
        "mpt.embedding_length": 48,
        "mpt.feed_forward_length": 96,
        "mpt.attention.head_count": 6,
        "mpt.attention.layer_norm_epsilon": 1e-5,
        "mpt.attention.max_alibi_bias": float(attn["alibi_bias_max"] if attn["alibi"] else 0),
        "mpt.vocab_size": 61,
    }
    if "kv_n_heads" in attn:
        metadata["mpt.attention.head_count_kv"] = attn["kv_n_heads"]
    renamed = {}
    for name, x in tensors.items():
        module, leaf = name.removeprefix("transformer.").rsplit(".", 1)
        if module.startswith("blocks."):
            _, layer, module = module.split(".", 2)
            renamed[f"blk.{layer}.{_NAMES[module]}.{leaf}"] = x
        else:
            renamed[f"{_NAMES[module]}.{leaf}"] = x
    renamed["output.weight"] = renamed["token_embd.weight"]
    write_gguf(tmp_path / "model.gguf", metadata, renamed)
    hf.change_config(tmp_path, {"logit_scale": None})
    ours, expected = parity.load(tmp_path / "model.gguf"), parity.load(tmp_path)
    parity.assert_same_params(ours.params, expected.params)
    assert hf.relative_error(ours(parity.TOKENS).logits, expected(parity.TOKENS).logits) < 1e-6
