"""Qwen2 against torch: biases that no flag announces, and which layers have a window."""

import pytest
import transformers

from tests.fixtures import decoders, parity
from tests.fixtures import hf_reference as hf
from tests.fixtures.hf_reference import Reference

QWEN2 = Reference(transformers.Qwen2ForCausalLM, decoders.PLACES)
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
# name: config fields, (window, which layers have it) of ours.
CASES = {
    "no window": ({}, (None, None)),
    "window switched off": ({"sliding_window": 5, "max_window_layers": 0}, (None, None)),
    "window from the second layer": (
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_key_value_heads": 1},
        (5, (False, True, True)),
    ),
    "window everywhere, tied": (
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0, "tie_word_embeddings": True},
        (20, None),
    ),
    "layer types, linear scaling": (
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ALTERNATING,
            "rope_parameters": decoders.rope("linear", factor=2.5),
        },
        (4, (True, False, True)),
    ),
}


def config(**changes):
    return transformers.Qwen2Config(**decoders.SHAPE | changes)


@parity.each(CASES, quick=1)
def test_qwen2(tmp_path, case):
    changes, window = CASES[case]
    model = decoders.build(QWEN2, config(**changes), tmp_path)
    ours = parity.assert_parity(tmp_path, QWEN2, model)
    assert (ours.config.window, ours.config.window_layers) == window


def test_config_before_transformers_5(tmp_path):
    """No `layer_types`: which layers have the window follows from `max_window_layers`."""
    changes = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    model = decoders.build(QWEN2, config(**changes, rope_parameters=decoders.rope("default", 1e6)), tmp_path)
    hf.change_config(tmp_path, {"layer_types": None, "rope_parameters": None, "rope_theta": 1e6})
    ours = parity.assert_parity(tmp_path, QWEN2, model)
    assert ours.config.window_layers == (False, False, True)
    assert ours.config.rope.theta == 1e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"] * 2}, "expected 3 times"),
        ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
        ({"layer_types": ALTERNATING}, "no sliding window"),
    ],
)
def test_layer_types_that_cannot_be_are_refused(tmp_path, changes, message):
    decoders.build(QWEN2, config(), tmp_path)
    hf.change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_gguf(tmp_path, tied):
    """Not permuted."""
    model = decoders.build(QWEN2, config(tie_word_embeddings=tied), tmp_path)
    metadata = decoders.gguf_metadata("qwen2", model.config, **{"rope.freq_base": 10000.0})
    decoders.assert_gguf_as_huggingface(tmp_path, metadata, decoders.gguf_tensors(model, "qwen2"))


def test_gguf_with_yarn(tmp_path):
    yarn = decoders.rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0)
    model = decoders.build(QWEN2, config(rope_parameters=yarn, head_dim=16), tmp_path)
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_beta_fast": 8.0}
    more = {f"rope.scaling.{name}": value for name, value in scaling.items()}
    tensors = decoders.gguf_tensors(model, "qwen2")
    decoders.assert_gguf_as_huggingface(tmp_path, decoders.gguf_metadata("qwen2", model.config, **more), tensors)
    with pytest.raises(ValueError, match="yarn_attn_factor"):
        decoders.assert_gguf_as_huggingface(
            tmp_path,
            decoders.gguf_metadata("qwen2", model.config, **more, **{"rope.scaling.yarn_attn_factor": 1.5}),
            tensors,
        )
