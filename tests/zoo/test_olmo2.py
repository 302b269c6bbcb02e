"""OLMo 2 against torch: norms on what is added to the stream, one norm over all heads."""

import pytest
import transformers

from tests.fixtures import decoders, parity
from tests.fixtures.hf_reference import Place, Reference

_LAYER = "model.layers.{l}."
PLACES = {
    **decoders.PLACES,
    **decoders.OUTPUT_NORMS,
    **decoders.QK_NORM_OF_HEADS,
    # Attention and MLP read the stream itself.
    "attn_norm": Place(_LAYER + "self_attn", "input"),
    "mid": Place(_LAYER + "mlp", "input"),
    "mlp_norm": Place(_LAYER + "mlp", "input"),
}
OLMO2 = Reference(transformers.Olmo2ForCausalLM, PLACES)
CASES = {
    "grouped": {},
    "not grouped, biases": {"num_key_value_heads": 4, "attention_bias": True, "rms_norm_eps": 1e-2},
    "tied, linear scaling": {"tie_word_embeddings": True, "rope_parameters": decoders.rope("linear", 5e5, factor=2.0)},
}


def config(**changes):
    return transformers.Olmo2Config(**decoders.SHAPE | changes)


@parity.each(CASES)
def test_olmo2(tmp_path, case):
    model = decoders.build(OLMO2, config(**CASES[case]), tmp_path)
    parity.assert_parity(tmp_path, OLMO2, model)


def test_gguf(tmp_path):
    """Not permuted, unlike the first OLMo."""
    model = decoders.build(OLMO2, config(), tmp_path)
    metadata = decoders.gguf_metadata("olmo2", model.config, **{"rope.freq_base": 10000.0})
    tensors = decoders.gguf_tensors(model, "olmo2")
    decoders.assert_gguf_as_huggingface(tmp_path, metadata, tensors)
    with pytest.raises(ValueError, match="OLMo 3"):
        decoders.assert_gguf_as_huggingface(tmp_path, metadata | {"olmo2.attention.sliding_window": 5}, tensors)
