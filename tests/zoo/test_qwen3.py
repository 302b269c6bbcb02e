"""Qwen3 against torch: a norm of every query and key head, heads wider than D / H."""

import transformers

from tests.fixtures import decoders, parity
from tests.fixtures.hf_reference import Reference

QWEN3 = Reference(transformers.Qwen3ForCausalLM, decoders.PLACES | decoders.QK_NORM_OF_HEADS)
CASES = {
    "wide heads": {"head_dim": 16},
    "biases, window from the second layer": {
        "head_dim": 12,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "one key head, tied, epsilon": {
        "head_dim": 8,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-2,
        "rope_parameters": decoders.rope("dynamic", factor=2.0),
        "max_position_embeddings": 16,
    },
}


def config(**changes):
    return transformers.Qwen3Config(**decoders.SHAPE | changes)


@parity.each(CASES)
def test_qwen3(tmp_path, case):
    model = decoders.build(QWEN3, config(**CASES[case]), tmp_path)
    parity.assert_parity(tmp_path, QWEN3, model)


def test_gguf(tmp_path):
    model = decoders.build(QWEN3, config(head_dim=16, attention_bias=True), tmp_path)
    metadata = decoders.gguf_metadata("qwen3", model.config, **{"rope.freq_base": 10000.0})
    decoders.assert_gguf_as_huggingface(tmp_path, metadata, decoders.gguf_tensors(model, "qwen3"))
