"""From disk to shards: of several processes each reads the parts of its own devices."""

import jax
import numpy as np
import pytest
import transformers

import massive_jax as mj
from massive_jax.weights.loader import Part
from massive_jax.weights.safetensors_source import HuggingFaceSource
from tests.fixtures import hf_reference as hf

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    hf.save(hf.random_model(hf.LLAMA, transformers.LlamaConfig(**CONFIG)), path)
    return path


class Sharding:
    """A stand-in for that of a process with some of the devices."""

    def __init__(self, *indices):
        self.addressable_devices_indices_map = lambda shape: dict(enumerate(indices))


def test_pieces_are_what_the_devices_have(directory, monkeypatch):
    with HuggingFaceSource(directory) as source:
        name = "model.layers.1.self_attn.q_proj.weight"
        view, whole = source.view(name), source.read(name)
        assert isinstance(view, np.memmap)
        np.testing.assert_array_equal(view, whole)
        assert source.view("no.such") is None
    looked_at = []

    class Looked(np.ndarray):
        def __getitem__(self, index):
            looked_at.append(index)
            return super().__getitem__(index)

    # Two of four heads, [D, H, N], on two devices; the one has as much as the other.
    upper = (slice(None), slice(2, 4), slice(None))
    monkeypatch.setattr(Part, "_sharding", lambda self, sharding: sharding)
    move = ("(HN)D->DHN", (("H", 4), ("N", 8), ("D", 32)), None)
    part = Part("layers/attn/query/kernel", (1,), whole.view(Looked), move)
    (piece,) = part.pieces(Sharding(upper, upper, None)).values()
    np.testing.assert_array_equal(piece, whole.reshape(4, 8, 32)[2:].transpose(2, 0, 1))
    assert [index for index in looked_at if index != ()] == [upper]  # () is the part that is taken of a fused tensor


TWO = """
import sys, jax, numpy as np
directory, port, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, number)
import massive_jax as mj
from massive_jax.parallel import fetch, make_mesh
from massive_jax.weights.loader import Part
from massive_jax.weights.safetensors_source import HuggingFaceSource
read, put = [], Part.on
HuggingFaceSource.read = None  # a whole tensor, which nobody needs here
def on(self, sharding):
    read.append(sum(piece.size for piece in self.pieces(sharding).values()))
    return put(self, sharding)
Part.on = on
model = mj.load(directory, mesh=make_mesh(data=1, fsdp=2, tensor=2), progress=False)
count = sum(x.size for x in jax.tree.leaves(model.params))
vectors = sum(x.size for x in jax.tree.leaves(model.params) if x.is_fully_replicated)
assert sum(read) == (count - vectors) // 2 + vectors, (sum(read), count, vectors)
out = model(np.arange(22, dtype=np.int32).reshape(2, 11), capture=mj.Capture("block_out", top_k=2, median=True))
stats = fetch(out.intermediates["block_out"])
print("found", stats.top_dims.tolist(), stats.median.round(4).tolist())
"""


@pytest.mark.slow
def test_two_processes_read_half_each(directory, start):
    port = start.free_port()
    pair = [start(2, "-c", TWO, directory, port, number) for number in range(2)]
    assert [process.wait(timeout=240) for process in pair] == [0, 0], "".join(it.said()[-2000:] for it in pair)
    tokens = np.arange(22, dtype=np.int32).reshape(2, 11)
    one = mj.load(directory, progress=False)(tokens, capture=mj.Capture("block_out", top_k=2, median=True))
    stats = jax.device_get(one.intermediates["block_out"])
    expected = f"found {stats.top_dims.tolist()} {stats.median.round(4).tolist()}"
    assert all(expected in process.said().splitlines() for process in pair)
