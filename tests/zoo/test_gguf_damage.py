"""A GGUF file with damage in its header: an error of this project, quick, or a model that fits its tensors."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from massive_jax import zoo
from massive_jax.weights.gguf_source import GGUFSource
from tests.fixtures import gguf_files

METADATA = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.block_count": 1,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 2.0,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.scores": [-1.0, -2.0, -0.5],
    "tokenizer.ggml.token_type": [1, 1, 4],
    "tokenizer.ggml.bos_token_id": 1,
}
SHAPES = {
    **{"token_embd": (3, 32), "output_norm": (32,), "output": (3, 32)},
    **{"blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32)},
    **{"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)},
    **{"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    gguf_files.write_gguf(path, METADATA, tensors, "Q8_0")
    return path, path.read_bytes()


def look(path):
    with GGUFSource(path) as source:
        config, _ = zoo.describe(source)
        source.tokenizer()
        return config


def test_the_whole_file(whole):
    assert look(whole[0]).rope.factor == 2.0


_BYTES = strategies.one_of(strategies.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), strategies.integers(0, 255))


@hypothesis.settings(
    deadline=2000,
    max_examples=300,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    changes=strategies.dictionaries(strategies.integers(0, 1900), _BYTES, min_size=1, max_size=4),
    length=strategies.one_of(strategies.none(), strategies.integers(0, 12000)),
)
def test_damage_in_the_header(whole, changes, length):
    path, data = whole
    damaged = bytearray(data)
    for at, byte in changes.items():
        damaged[at] = byte
    path.write_bytes(damaged[:length])
    message, config = "", None
    try:
        config = look(path)
    except ValueError as error:
        message = str(error)
    if config is None:
        assert message.startswith(str(path))
        assert message.isprintable()
        assert len(message) < 500 + len(str(path))
    else:
        assert (config.vocab_size, config.hidden_size, config.num_layers) == (3, 32, 1)
