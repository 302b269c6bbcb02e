import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from massive_jax.weights.layout import Memory
from massive_jax.weights.safetensors_source import HuggingFaceSource

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.arange(6, dtype=np.float16).reshape(2, 3)
C = (np.arange(8) / 3).astype(ml_dtypes.bfloat16).reshape(4, 2)
ARRAYS: dict[str, np.ndarray] = {"a": A, "b": B, "c": C}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 4}))
    return tmp_path


def write_shards(directory, shards, index=None):
    """Writes `shards` (file → tensors) and an index of them, or of `index` (tensor → file)."""
    for file, tensors in shards.items():
        save_file(tensors, directory / file)
    index = index or {name: file for file, tensors in shards.items() for name in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_single_file(directory):
    save_file({"a": A, "b": B, "c": C}, directory / "model.safetensors", metadata={"format": "pt"})
    with HuggingFaceSource(directory) as source:
        assert source.format == "huggingface"
        assert source.location == str(directory)
        assert source.config == {"model_type": "llama", "hidden_size": 4}
        assert {n: (i.shape, i.dtype) for n, i in source.tensors.items()} == {
            "a": ((3, 4), "float32"),
            "b": ((2, 3), "float16"),
            "c": ((4, 2), "bfloat16"),
        }
        for name, expected in ARRAYS.items():
            got = source.read(name)
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
        assert source.tokenizer() is None
        kept = source.read("a")
    kept += 0
    np.testing.assert_array_equal(kept, A)
    with pytest.raises(ValueError, match="closed"):
        source.read("a")


def test_one_tensor_after_another_in_the_same_memory(directory):
    save_file({"a": A, "b": B, "c": C}, directory / "model.safetensors")
    memory = Memory()
    with HuggingFaceSource(directory) as source:
        source.read("a", memory)
        for name, expected in ARRAYS.items():
            got = source.read(name, memory)
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
            assert np.shares_memory(got, memory.array((1,), np.uint8))


def test_bfloat16_needs_nothing_else_imported(directory):
    """numpy knows bfloat16 only once ml_dtypes is imported; jax, which other tests import, does that too."""
    save_file({"c": C}, directory / "model.safetensors")
    program = (
        "from massive_jax.weights.safetensors_source import HuggingFaceSource as S\n"
        f"print(S({str(directory)!r}).read('c').dtype)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "bfloat16\n"


def test_shards(directory):
    write_shards(directory, {"model-1.safetensors": {"a": A}, "model-2.safetensors": {"b": B, "c": C}})
    with HuggingFaceSource(str(directory)) as source:
        assert sorted(source.tensors) == ["a", "b", "c"]
        np.testing.assert_array_equal(source.read("a"), A)
        np.testing.assert_array_equal(source.read("c"), C)
        with pytest.raises(ValueError, match="no tensor named 'd'"):
            source.read("d")


def test_every_missing_shard_is_named(directory):
    write_shards(directory, {f"model-{i}.safetensors": {f"t{i}": A} for i in range(30)})
    missing = [f"model-{i}.safetensors" for i in range(30) if i % 2]
    for name in missing:
        (directory / name).unlink()
    with pytest.raises(ValueError, match="lacks 15 of the 30 shards") as caught:
        HuggingFaceSource(directory)
    assert all(name in str(caught.value) for name in missing)
    assert "model-2.safetensors" not in str(caught.value)


def test_contradictions_are_listed_together(directory):
    write_shards(
        directory,
        {"one.safetensors": {"a": A, "b": B}, "two.safetensors": {"b": B, "c": C}},
        {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors", "ghost": "one.safetensors"},
    )
    with pytest.raises(ValueError, match="contradicts itself") as caught:
        HuggingFaceSource(directory)
    message = str(caught.value)
    assert "b (one.safetensors, two.safetensors)" in message
    assert "a (two.safetensors), ghost (one.safetensors)" in message


def test_a_tensor_the_index_forgets_is_kept(directory):
    write_shards(directory, {"one.safetensors": {"a": A, "b": B}}, {"a": "one.safetensors"})
    with HuggingFaceSource(directory) as source:
        assert sorted(source.tensors) == ["a", "b"]


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""])
def test_an_index_cannot_lead_outside(directory, name):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="outside its own directory"):
        HuggingFaceSource(directory)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}', "{}", '{"weight_map": {"a": 3}}', "[" * 100_000])
def test_bad_index(directory, index):
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"index\.json"):
        HuggingFaceSource(directory)


@pytest.mark.parametrize("config", [b"{", b"[1]", b"\xff\xfe\x00", b"", b"[" * 100_000])
def test_bad_config(directory, config):
    save_file({"a": A}, directory / "model.safetensors")
    (directory / "config.json").write_bytes(config)
    with pytest.raises(ValueError, match=r"config\.json"):
        HuggingFaceSource(directory)


def test_missing_config(directory):
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        HuggingFaceSource(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "weights.pt", "m.pth"])
def test_pickles_are_never_loaded(directory, name):
    (directory / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="Pickles are never loaded") as caught:
        HuggingFaceSource(directory)
    assert name in str(caught.value)
    assert "save_pretrained" in str(caught.value)


def test_no_weights_at_all(directory):
    with pytest.raises(ValueError, match=r"expected model\.safetensors"):
        HuggingFaceSource(directory)
    save_file({"a": A}, directory / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        HuggingFaceSource(directory)


def test_not_a_directory(directory):
    with pytest.raises(ValueError, match="No such file"):
        HuggingFaceSource(directory / "nowhere")
    with pytest.raises(ValueError, match="is a file; expected a directory"):
        HuggingFaceSource(directory / "config.json")


def test_every_truncation_is_one_clear_error(directory):
    save_file({"a": A, "b": B}, directory / "model.safetensors")
    whole = (directory / "model.safetensors").read_bytes()
    for size in range(len(whole)):
        (directory / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            HuggingFaceSource(directory)


def test_random_damage_never_escapes_as_another_error(directory):
    save_file({"a": A, "b": B}, directory / "model.safetensors")
    whole, rng = (directory / "model.safetensors").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(0, 140)] = rng.integers(256)
        (directory / "model.safetensors").write_bytes(damaged)
        try:
            with HuggingFaceSource(directory) as source:
                for name in source.tensors:
                    source.read(name)
        except ValueError:
            refused += 1
    assert refused > 100
