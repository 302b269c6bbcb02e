"""Gemma 3 against torch: layers with and without a window have rotary bases of their own."""

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from massive_jax.zoo import gemma3
from tests.fixtures import decoders, parity
from tests.fixtures import hf_reference as hf
from tests.fixtures.hf_reference import Place, Reference

_LAYER = "model.layers.{l}."


def heads_first(x):
    return x.transpose(1, 2)


PLACES = {
    **decoders.PLACES,
    **decoders.PRE_AND_OUTPUT_NORMS,
    **decoders.CAPPED_LOGITS,
    "query": Place(_LAYER + "self_attn.q_norm", part=heads_first),
    "key": Place(_LAYER + "self_attn.k_norm", part=heads_first),
}
GEMMA3 = Reference(transformers.Gemma3ForCausalLM, PLACES)
MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
ROPES = {
    "full_attention": decoders.rope("linear", 1e5, factor=8.0),
    "sliding_attention": decoders.rope("default", 100.0),
}
CASES = {
    "mixed": {"layer_types": MIXED, "sliding_window": 5, "rope_parameters": ROPES},
    "all layers with a window": {"sliding_window": 4, "rope_parameters": ROPES},
    "capped, biases, untied": {
        "layer_types": MIXED[::-1],
        "sliding_window": 20,
        "final_logit_softcapping": 2.0,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "query_pre_attn_scalar": 7,
        "num_key_value_heads": 1,
        "head_dim": 12,
    },
    "no window": {"layer_types": ["full_attention"] * 3, "rope_parameters": ROPES, "num_key_value_heads": 4},
}


def config(**changes):
    return transformers.Gemma3TextConfig(**decoders.SHAPE | {"head_dim": 16, "query_pre_attn_scalar": 24} | changes)


@parity.each(CASES, quick=1)
def test_gemma3(tmp_path, case):
    model = decoders.build(GEMMA3, config(**CASES[case]), tmp_path)
    ours = parity.assert_parity(tmp_path, GEMMA3, model)
    assert ours.config.norm.unit_offset
    if case == "mixed":
        assert ours.config.window_layers == (True, True, False)
        assert (ours.config.rope.theta, ours.config.local_rope.theta) == (1e5, 100.0)


@pytest.mark.parametrize("pattern", ["sliding_window_pattern", "_sliding_window_pattern"])
def test_config_before_transformers_5(tmp_path, pattern):
    model = decoders.build(GEMMA3, config(**CASES["mixed"]), tmp_path)
    old = {
        "layer_types": None,
        "rope_parameters": None,
        "_sliding_window_pattern": None,
        "rope_theta": 1e5,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 100.0,
        "cache_implementation": "hybrid",
    }
    hf.change_config(tmp_path, old | {pattern: 3})
    parity.assert_parity(tmp_path, GEMMA3, model)


def test_defaults_of_the_class(tmp_path):
    """Published configs leave out what is the class's default."""
    theirs = transformers.Gemma3TextConfig(**decoders.SHAPE, head_dim=16)
    decoders.build(GEMMA3, theirs, tmp_path)
    fields = ("layer_types", "rope_parameters", "sliding_window", "query_pre_attn_scalar", "hidden_activation")
    hf.change_config(tmp_path, dict.fromkeys((*fields, "_sliding_window_pattern", "tie_word_embeddings")))
    ours = parity.load(tmp_path).config
    assert (ours.window, ours.window_layers) == (theirs.sliding_window, None)
    assert (ours.rope.theta, ours.local_rope.theta) == (1e6, 1e4)
    assert ours.attention_scale == theirs.query_pre_attn_scalar**-0.5
    assert ours.tie_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"rope_parameters": decoders.rope("default")}, "expected those of full_attention"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(tmp_path, changes, message):
    decoders.build(GEMMA3, config(), tmp_path)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# As transformers 5 keeps it in memory, and as it writes it, like the hub.
SPELLINGS = [("model.language_model.", "model."), ("language_model.model.", "")]


@pytest.mark.parametrize(("text", "vision"), SPELLINGS)
def test_the_text_model_of_a_multimodal_checkpoint(tmp_path, text, vision):
    parts = transformers.Gemma3Config(
        text_config=config(**CASES["mixed"]).to_dict(), vision_config=VISION, mm_tokens_per_image=4
    )
    model = hf.random_model(Reference(transformers.Gemma3ForConditionalGeneration, {}), parts)
    hf.save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    prefixes = [pair for spelling in SPELLINGS for pair in ((spelling[0], text),)]
    tensors = {}
    for name, x in safetensors.numpy.load_file(path).items():
        for old, new in [*prefixes, *((p + t, vision + t) for p in ("model.", "") for t in ("vision", "multi_modal"))]:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        tensors[name] = x
    assert any(name.startswith(vision + "vision_tower.") for name in tensors)
    assert any(name.startswith(vision + "multi_modal_projector.") for name in tensors)
    safetensors.numpy.save_file(tensors, path)
    ours = parity.load(tmp_path)
    with torch.no_grad():
        theirs = model(torch.from_numpy(parity.TOKENS.astype(np.int64)), output_hidden_states=True)
    assert hf.relative_error(ours(parity.TOKENS).logits, theirs.logits) <= parity.TOLERANCE
    assert hf.relative_error(ours(parity.TOKENS).last_hidden, theirs.hidden_states[-1]) <= parity.TOLERANCE
    # What is neither text nor vision is an error as ever.
    safetensors.numpy.save_file(tensors | {"audio_tower.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(ValueError, match=r"audio_tower\.weight"):
        parity.load(tmp_path)


def gguf_metadata(config, **more):
    """`more` is what older converters do not write."""
    scaled = {"rope.freq_base": 1e5, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    return decoders.gguf_metadata("gemma3", config, **scaled, **more)


def test_gguf(tmp_path):
    """Every sixth layer without a window; the local base and the period are not in the file."""
    ropes = {"full_attention": ROPES["full_attention"], "sliding_attention": decoders.rope("default")}
    changes = {"num_hidden_layers": 7, "query_pre_attn_scalar": 16, "sliding_window": 5}
    model = decoders.build(GEMMA3, config(**changes, rope_parameters=ropes), tmp_path)
    metadata = gguf_metadata(model.config, **{"attention.sliding_window": 5})
    tensors = decoders.gguf_tensors(model, "gemma3", decoders.add_one_to_norms)
    ours = decoders.assert_gguf_as_huggingface(tmp_path, metadata, tensors)
    assert ours.config.window_layers == (*[True] * 5, False, True)


@pytest.mark.parametrize(("layers", "scalar"), [(7, 16), (48, 16), (62, 8)])
def test_query_scale_of_gguf(layers, scalar):
    """It is not in the file: the head's width, but D / H in the model of 62 layers (27B)."""
    metadata = gguf_metadata(config(num_hidden_layers=layers))
    assert gemma3.gguf_config(metadata, ["token_embd.weight"])["query_pre_attn_scalar"] == scalar


def test_gguf_of_a_newer_converter(tmp_path):
    """It writes the local base, and no window where there is none."""
    types = {"layer_types": ["full_attention"] * 3, "query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0}
    model = decoders.build(GEMMA3, config(**types, rope_parameters=ROPES), tmp_path)
    metadata = gguf_metadata(model.config, **{"rope.freq_base_swa": 100.0, "final_logit_softcapping": 2.0})
    tensors = decoders.gguf_tensors(model, "gemma3", decoders.add_one_to_norms)
    decoders.assert_gguf_as_huggingface(tmp_path, metadata, tensors)
