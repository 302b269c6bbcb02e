import struct

import gguf
import ml_dtypes
import numpy as np
import pytest

from massive_jax.weights.gguf_source import GGUFSource
from massive_jax.weights.source import TensorInfo
from tests.fixtures.gguf_files import write_gguf

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.head_count_kv": [3, 1],
    "some.flag": True,
    "some.negative": -5,
    "some.names": ["a", "", "été"],
    "some.floats": [0.5, -1.25],
}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "token_embd.weight": rng.normal(size=(7, 64)).astype(np.float32),
        "blk.0.ffn_down.weight": rng.normal(size=(32, 96)).astype(np.float32),
        "output_norm.weight": rng.normal(size=(64,)).astype(np.float32),
    }


@pytest.fixture
def path(tmp_path, tensors):
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, tensors)
    return path


def test_metadata_and_tensors_come_back(path, tensors):
    with GGUFSource(path) as source:
        assert source.format == "gguf"
        assert source.location == str(path)
        assert source.config == METADATA
        assert {name: info.shape for name, info in source.tensors.items()} == {
            name: values.shape for name, values in tensors.items()
        }
        for name, values in tensors.items():
            got = source.read(name)
            assert source.tensors[name].dtype == "float32"
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize(
    ("file_type", "expected"),
    [(15, "Q4_K_M"), (2, "Q4_0"), (0, "Q8_0"), (12345, "Q8_0"), (None, "Q8_0"), ("15", "Q8_0")],
)
def test_a_mixture_of_quantisations_is_called_what_the_file_calls_it(file_type, expected):
    sizes = {"embedding": (64, "Q8_0"), "mlp": (16, "Q4_K"), "norm": (1, "float32")}
    source = GGUFSource.__new__(GGUFSource)  # the gguf package does not write blocks of Q4_K
    source.tensors = {name: TensorInfo((rows, 256), kind) for name, (rows, kind) in sizes.items()}
    source.config = {} if file_type is None else {"general.file_type": file_type}
    assert source.weight_type() == expected
    del source.tensors["mlp"]
    assert source.weight_type() == "Q8_0"  # nothing is mixed: no name is needed


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_tensors_equal_the_gguf_packages(tmp_path, tensors, kind):
    write_gguf(tmp_path / "q.gguf", METADATA, tensors, kind)
    reader = gguf.GGUFReader(tmp_path / "q.gguf")
    with GGUFSource(tmp_path / "q.gguf") as source:
        assert source.tensors["token_embd.weight"].dtype == kind
        for stored in reader.tensors:
            expected = gguf.quants.dequantize(stored.data, stored.tensor_type)
            got = source.read(stored.name)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, expected.reshape(tensors[stored.name].shape))


@pytest.mark.parametrize(("kind", "dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_half_precision_keeps_its_dtype(tmp_path, tensors, kind, dtype):
    write_gguf(tmp_path / "h.gguf", METADATA, tensors, {"token_embd.weight": kind})
    with GGUFSource(tmp_path / "h.gguf") as source:
        got = source.read("token_embd.weight")
        assert source.tensors["token_embd.weight"].dtype == np.dtype(dtype).name
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, tensors["token_embd.weight"].astype(dtype))
        assert source.read("output_norm.weight").dtype == np.float32


def test_what_was_read_outlives_the_source_and_closed_sources_say_so(path, tensors):
    source = GGUFSource(path)
    got = source.read("output_norm.weight")
    source.close()
    source.close()
    got += 0  # the caller's own, writable
    np.testing.assert_array_equal(got, tensors["output_norm.weight"])
    with pytest.raises(ValueError, match=r"output_norm\.weight cannot be read"):
        source.read("output_norm.weight")


def test_unknown_tensor_names_the_nearest(path):
    with GGUFSource(path) as source, pytest.raises(ValueError, match=r"blk\.0\.ffn_down\.weight"):
        source.read("blk.0.ffn_up.weight")


def test_no_vocabulary_means_no_tokenizer(path):
    with GGUFSource(path) as source:
        assert source.tokenizer() is None


@pytest.mark.parametrize("size", [*range(0, 200), 300, 400, 600])
def test_every_truncation_is_one_clear_error(path, size):
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"m\.gguf is not a usable GGUF file") as caught:
        GGUFSource(path)
    assert "again" in str(caught.value)


def test_truncated_data_names_the_tensors(path):
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(ValueError, match=r"lies past its end .*output_norm\.weight"):
        GGUFSource(path)


def test_random_damage_never_escapes_as_another_error(path):
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    header = 900
    messages = []
    for _ in range(600):
        damaged = bytearray(whole)
        for at in rng.integers(0, header, size=rng.integers(1, 4)):
            damaged[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        path.write_bytes(damaged)
        try:
            with GGUFSource(path) as source:
                for name in source.tensors:
                    source.read(name)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(path) in message for message in messages)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.gguf.*No such file"):
        GGUFSource(tmp_path / "nowhere.gguf")
    with pytest.raises(ValueError, match="is a directory; expected a"):
        GGUFSource(tmp_path)
    with pytest.raises(ValueError, match="expected a path, got None"):
        GGUFSource(None)
    with pytest.raises(ValueError, match="GGUF file"):
        GGUFSource("a\0b")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"PK\x03\x04" + bytes(100), "another format"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "the number of tensors is 9223372036854775808"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "the number of metadata pairs"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(32), "the length of a metadata key"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99) + bytes(32), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1) + bytes(32), "unsupported type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**61) + bytes(32), "length of k"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 3) + bytes(23) + b"x", "string 2 of 3 in k"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ2s", 3, 0, 1, 1, b"k", 8, 2, b"\xff\xfe") + bytes(32), "UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * struct.pack("<Q1sIB", 1, b"k", 0, 7), "'k' occurs twice"),
    ],
)  # fmt: skip
def test_bad_headers(tmp_path, head, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(head)
    with pytest.raises(ValueError, match=message) as caught:
        GGUFSource(path)
    assert str(path) in str(caught.value)


def with_records(path, *records, alignment=None):
    """A file whose tensor records are written by hand: (name, dimensions, type, offset)."""
    pairs = b"" if alignment is None else struct.pack("<Q17sII", 17, b"general.alignment", 4, alignment)
    body = b"GGUF" + struct.pack("<IQQ", 3, len(records), int(alignment is not None)) + pairs
    for name, dims, kind, offset in records:
        body += struct.pack(f"<Q{len(name)}sI{len(dims)}QIQ", len(name), name, len(dims), *dims, kind, offset)
    path.write_bytes(body + bytes(4096))
    return path


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [(b"w", [4], 0, 0), (b"w", [4], 0, 0), (b"v", [4], 0, 0), (b"v", [4], 0, 0)],
            "more than once: w, v",
        ),
        ([(b"w", [4, 4], 0, 1 << 40)], "past its end"),
        ([(b"w", [2**63, 2**63], 0, 0)], "past its end"),
        ([(b"w", [4, 0], 0, 0)], "empty shape"),
        ([(b"w", [1] * 5, 0, 0)], "has 5 dimensions"),
        ([(b"w", [33], 8, 0)], "rows of 33; expected a multiple of 32"),
        ([(b"w", [32], 5555, 0)], "type 5555, which the gguf package does not know"),
    ],
)
def test_bad_tensor_records(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        GGUFSource(with_records(tmp_path / "r.gguf", *records))


def test_a_type_that_cannot_be_dequantised_names_tensor_and_type(tmp_path):
    with pytest.raises(ValueError, match=r"w\.x is stored as Q8_1: the gguf package cannot"):
        GGUFSource(with_records(tmp_path / "r.gguf", (b"w.x", [32], 9, 0)))


def test_alignment_is_honoured_and_checked(tmp_path):
    path = with_records(tmp_path / "a.gguf", (b"w", [2], 0, 0), alignment=256)
    body = bytearray(path.read_bytes())
    body[256:264] = struct.pack("<ff", 1.5, -2.0)
    path.write_bytes(body)
    with GGUFSource(path) as source:
        assert source.read("w").tolist() == [1.5, -2.0]
    with pytest.raises(ValueError, match=r"general\.alignment is 3"):
        GGUFSource(with_records(path, (b"w", [2], 0, 0), alignment=3))


def test_version_2_reads_the_same(path, tensors):
    body = bytearray(path.read_bytes())
    body[4] = 2
    path.write_bytes(body)
    with GGUFSource(path) as source:
        np.testing.assert_array_equal(source.read("output_norm.weight"), tensors["output_norm.weight"])


def contiguous(*sizes, alignment=32):
    """Records of float32 vectors, each where the one before ends."""
    records, at = [], 0
    for i, size in enumerate(sizes):
        records.append((b"w%d" % i, [size], 0, at))
        at = -(-(at + 4 * size) // alignment) * alignment
    return records


@pytest.mark.parametrize("alignment", [None, 8, 64, 512])
def test_tensors_lie_one_after_the_other(tmp_path, alignment):
    """llama.cpp's rule (`gguf_init_from_file`): overlaps, gaps and odd offsets are damage."""
    records = contiguous(3, 8, 9, 1, alignment=alignment or 32)
    with GGUFSource(with_records(tmp_path / "r.gguf", *records, alignment=alignment)) as source:
        assert len(source.tensors) == 4
    for i, offset in ((1, 0), (2, records[1][3]), (2, records[2][3] + 1), (3, records[3][3] + (alignment or 32))):
        moved = [(*r[:3], offset) if j == i else r for j, r in enumerate(records)]
        with pytest.raises(ValueError, match=rf"tensor w{i} starts at byte {offset} .*expected {records[i][3]},"):
            GGUFSource(with_records(tmp_path / "r.gguf", *moved, alignment=alignment))
    shuffled = [records[1], records[0], *records[2:]]
    with pytest.raises(ValueError, match=rf"tensor w1 starts at byte {records[1][3]} of the tensor data; expected 0"):
        GGUFSource(with_records(tmp_path / "r.gguf", *shuffled, alignment=alignment))


def test_data_that_belongs_to_no_tensor(path, tensors):
    """The last record says less than there is; or the alignment is smaller than the writer's. Zeros are padding."""
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100))
    with GGUFSource(path) as source:
        np.testing.assert_array_equal(source.read("output_norm.weight"), tensors["output_norm.weight"])
    at = whole.index(b"output_norm.weight") + len(b"output_norm.weight") + 4
    assert struct.unpack_from("<Q", whole, at) == (64,)
    path.write_bytes(whole[:at] + struct.pack("<Q", 32) + whole[at + 8 :])
    with pytest.raises(ValueError, match=r"there is data after the last tensor, output_norm\.weight"):
        GGUFSource(path)


@pytest.mark.parametrize("alignment", [0, 1, 4, 12, 48, 1 << 21])
def test_alignments_that_are_refused(tmp_path, alignment):
    with pytest.raises(ValueError, match=rf"general\.alignment is {alignment}; expected a power of two from 8"):
        GGUFSource(with_records(tmp_path / "r.gguf", (b"w", [2], 0, 0), alignment=alignment))


@pytest.mark.parametrize(("kind", "name"), [(24, "I8"), (25, "I16"), (26, "I32"), (27, "I64")])
def test_integers_are_no_weights(tmp_path, kind, name):
    with pytest.raises(ValueError, match=rf"tensor w is stored as {name}: integers are no weights; expected floats"):
        GGUFSource(with_records(tmp_path / "r.gguf", (b"w", [2], kind, 0)))


def test_doubles_are(tmp_path):
    with GGUFSource(with_records(tmp_path / "r.gguf", (b"w", [2], 28, 0))) as source:
        assert source.read("w").dtype == np.float64


def test_messages_are_short_and_printable(tmp_path):
    for name in (b"\x1b[2J\nw", "\u202ew".encode()):
        with pytest.raises(ValueError, match="name holds control characters") as caught:
            GGUFSource(with_records(tmp_path / "r.gguf", (name, [2], 0, 0)))
        assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="has 9 dimensions") as caught:
        GGUFSource(with_records(tmp_path / "r.gguf", (b"x" * 60000, [2] * 9, 0, 0)))
    assert len(str(caught.value)) < 600
    key = b"\x1b[2J" * 9
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack(f"<Q{len(key)}sI", len(key), key, 99)
    (tmp_path / "k.gguf").write_bytes(head + bytes(64))
    with pytest.raises(ValueError, match=r"\\x1b\[2J.* has the unknown type 99") as caught:
        GGUFSource(tmp_path / "k.gguf")
    assert str(caught.value).isprintable()


def test_arrays_of_millions_are_refused_before_they_are_made(tmp_path):
    with open(tmp_path / "big.gguf", "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 1 << 32))
        file.truncate(1 << 33)  # sparse
    with pytest.raises(ValueError, match=r"the length of k is 4294967296; expected at most"):
        GGUFSource(tmp_path / "big.gguf")
