"""Mistral as GGUF, where its architecture is Llama's. Its parity: `tests/models/test_llama_parity.py`."""

import transformers

from tests.fixtures import decoders
from tests.fixtures.hf_reference import MISTRAL


def permuted(name, x):
    heads = {"q_proj.weight": 4, "k_proj.weight": 2}.get(".".join(name.split(".")[-2:]))
    return x if heads is None else decoders.permute(x, heads)


def test_gguf(tmp_path):
    """llama.cpp writes no window, so a file is a Llama."""
    config = transformers.MistralConfig(**decoders.SHAPE, sliding_window=None)
    model = decoders.build(MISTRAL, config, tmp_path)
    metadata = decoders.gguf_metadata("llama", config, **{"rope.dimension_count": 8, "vocab_size": 61})
    tensors = decoders.gguf_tensors(model, "llama", permuted)
    hf_config = tmp_path / "config.json"
    hf_config.write_text(hf_config.read_text().replace('"mistral"', '"llama"').replace("MistralFor", "LlamaFor"))
    decoders.assert_gguf_as_huggingface(tmp_path, metadata, tensors)


def test_gguf_with_a_window(tmp_path):
    """A window that a file has is not passed over."""
    config = transformers.MistralConfig(**decoders.SHAPE, sliding_window=5)
    model = decoders.build(MISTRAL, config, tmp_path)
    metadata = decoders.gguf_metadata("llama", config, **{"attention.sliding_window": 5})
    ours = decoders.assert_gguf_as_huggingface(tmp_path, metadata, decoders.gguf_tensors(model, "llama", permuted))
    assert ours.config.window == 5
