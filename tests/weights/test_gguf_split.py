"""Split models: any part loads all; parts that are missing or do not fit are named."""

import struct

import gguf
import numpy as np
import pytest

from massive_jax.weights.gguf_source import GGUFSource

TENSORS = {f"w{i}": np.full((4, 8), i, np.float32) for i in range(5)}
WHERE = {"w0": 0, "w1": 0, "w2": 1, "w3": 2, "w4": 2}
METADATA = {"general.architecture": "llama", "llama.block_count": 2, "llama.nan": float("nan")}


def text(x):
    return struct.pack("<Q", len(x)) + x.encode()


def pair(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    return text(key) + struct.pack("<Ii", 5, value)


def write(path, metadata, tensors):
    """A GGUF file with no more metadata than is given, which `gguf.GGUFWriter` cannot make."""
    head, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)), b""
    head += b"".join(pair(key, value) for key, value in metadata.items())
    for name, x in tensors.items():
        head += text(name) + struct.pack(f"<I{x.ndim}QIQ", x.ndim, *x.shape[::-1], 0, len(data))
        data += x.tobytes() + bytes(-x.nbytes % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def shard(directory, number, count=3):
    return directory / f"a-model-{number + 1:05}-of-{count:05}.gguf"


def write_shards(directory, count=3, changes=(), more=(), where=()):
    """`changes` and `more`: number of a part -> its metadata that differs, tensors that it has besides."""
    changes, more, where = dict(changes), dict(more), WHERE | dict(where)
    for number in range(count):
        metadata = METADATA if number == 0 else {}
        split = {"split.no": number, "split.count": count, "split.tensors.count": len(TENSORS)}
        tensors = {name: x for name, x in TENSORS.items() if where[name] == number} | more.get(number, {})
        wanted = metadata | split | changes.get(number, {})
        write(shard(directory, number, count), {k: v for k, v in wanted.items() if v is not None}, tensors)


@pytest.mark.parametrize("number", range(3))
def test_any_part_loads_all(tmp_path, number):
    write_shards(tmp_path)
    with GGUFSource(shard(tmp_path, number)) as source:
        assert source.location == str(shard(tmp_path, number))
        assert source.config["llama.block_count"] == 2
        assert source.files == [shard(tmp_path, i) for i in range(3)]
        assert {name: info.shape for name, info in source.tensors.items()} == dict.fromkeys(TENSORS, (4, 8))
        for name, x in TENSORS.items():
            np.testing.assert_array_equal(source.read(name), x)
    with pytest.raises(ValueError, match="w3 cannot be read"):
        source.read("w3")


def test_what_llama_cpps_own_writer_splits(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for name, x in TENSORS.items():
        writer.add_tensor(name, x)
    writer.add_uint32("llama.block_count", 2)
    writer.write_header_to_file(tmp_path / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFSource(tmp_path / "m-00002-of-00003.gguf") as source:
        assert source.tensors.keys() == TENSORS.keys()
        assert source.config["llama.block_count"] == 2
        np.testing.assert_array_equal(source.read("w4"), TENSORS["w4"])


def test_a_part_without_tensors(tmp_path):
    write_shards(tmp_path, where={"w0": 1, "w1": 1})
    with GGUFSource(shard(tmp_path, 0)) as source:
        assert source.tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("number", range(3))
def test_missing_parts_are_named(tmp_path, number):
    write_shards(tmp_path)
    missing = {0, 1, 2} - {number}
    for other in missing:
        shard(tmp_path, other).unlink()
    with pytest.raises(ValueError, match=rf"part {number + 1} of 3 of a split model") as caught:
        GGUFSource(shard(tmp_path, number))
    assert all(shard(tmp_path, other).name in str(caught.value) for other in missing)


def test_a_part_under_another_name(tmp_path):
    write_shards(tmp_path)
    renamed = shard(tmp_path, 1).rename(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"part 2 of 3 of a split model.*ends in -00002-of-00003\.gguf"):
        GGUFSource(renamed)
    swapped = renamed.rename(shard(tmp_path, 0))
    with pytest.raises(ValueError, match=r"part 2 of 3 of a split model.*ends in -00002-of-00003\.gguf"):
        GGUFSource(swapped)


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (1, {"split.no": 2}, r"split\.no 2 and split\.count 3 it is not part 2"),
        (1, {"split.no": None}, r"split\.no None"),
        (1, {"split.count": 2}, r"split\.count 2 it is not part 2"),
        (1, {"split.count": None}, r"split\.count None"),
        (1, {"split.no": -1}, r"split\.no is -1; expected a number"),
        (1, {"split.no": "1"}, r"split\.no is '1'"),
        (2, {"split.tensors.count": 6}, r"has 6 tensors, and its 3 parts have 5"),
        (2, {"general.architecture": "gpt2"}, r"general\.architecture differs from what a-model-00001"),
        (2, {"llama.block_count": 3}, r"llama\.block_count differs"),
        (2, {"llama.context_length": 3}, r"llama\.context_length differs"),
        (0, {"split.count": 100000}, "no part of a split model"),
        (0, {"split.count": 2.5}, r"split\.count is 2\.5"),
        (0, {"split.no": 7}, "split.no 7: no part of a split model"),
        (0, {"split.tensors.count": 4}, r"has 4 tensors, and its 3 parts have 5"),
    ],
)
def test_parts_that_contradict_each_other(tmp_path, number, changes, message):
    write_shards(tmp_path, changes={number: changes})
    with pytest.raises(ValueError, match=message) as caught:
        GGUFSource(shard(tmp_path, 0))
    assert shard(tmp_path, number).name in str(caught.value)


def test_metadata_that_parts_repeat(tmp_path):
    write_shards(tmp_path, changes={1: METADATA})
    with GGUFSource(shard(tmp_path, 0)) as source:
        assert len(source.tensors) == 5


def test_a_tensor_in_two_parts(tmp_path):
    write_shards(tmp_path, more={2: {"w0": TENSORS["w0"]}})
    with pytest.raises(ValueError, match=r"00003-of-00003\.gguf .*these tensors are in a-model-00001-of-00003.*: w0"):
        GGUFSource(shard(tmp_path, 1))


def test_damage_names_the_part_that_has_it(tmp_path):
    write_shards(tmp_path)
    shard(tmp_path, 2).write_bytes(shard(tmp_path, 2).read_bytes()[:-64])
    with pytest.raises(ValueError, match=r"00003-of-00003\.gguf is not a usable GGUF file.*: w4"):
        GGUFSource(shard(tmp_path, 0))


@pytest.mark.parametrize("count", [0, 1])
def test_one_file_of_one(tmp_path, count):
    """`llama-gguf-split --merge` leaves a count of 0."""
    split = {"split.no": 0, "split.count": count, "split.tensors.count": 5}
    write(tmp_path / "whole.gguf", METADATA | split, TENSORS)
    with GGUFSource(tmp_path / "whole.gguf") as source:
        assert len(source.tensors) == 5
    write(tmp_path / "half.gguf", METADATA | split, {"w0": TENSORS["w0"]})
    with pytest.raises(ValueError, match=r"has 5 tensors, and it has 1"):
        GGUFSource(tmp_path / "half.gguf")
