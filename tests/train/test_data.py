"""Token files: made in parallel and in one go the same, resumed, checked; batches in an order that the seed fixes."""

import json

import numpy as np
import pytest

from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.train import TokenFile, adopt, batches_of, prepare_tokens
from massive_jax.train.data import RandomWindows, even_windows

TEXT = "".join(f"line {i} of a small book, née Œuvre.\n" for i in range(300))
BYTES = Tokenizer.of_bytes()


def make(path, text=TEXT, **options):
    options = {"text_name": "book", "tokenizer_name": "bytes", "chunk": 1000, **options}
    return prepare_tokens(text, path, options.pop("tokenizer", BYTES), **options)


def test_bytes_are_tokens(tmp_path):
    file = make(tmp_path / "a.bin")
    assert file.tokens.tobytes() == np.frombuffer(TEXT.encode(), np.uint8).astype("<u2").tobytes()
    assert (file.count, file.vocab_size, file.dtype) == (len(TEXT.encode()), 256, "uint16")
    assert Tokenizer.from_json(file.tokenizer).decode(file.tokens[:20]) == TEXT[:20]
    assert TokenFile.open(tmp_path / "a.bin") == file


def test_nothing_else_is_left(tmp_path, monkeypatch):
    one = make(tmp_path / "a.bin")
    monkeypatch.setattr("massive_jax.train.prepare._CHUNKS", 3)
    several = make(tmp_path / "b.bin")
    assert one.sha256 == several.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.bin.json", "b.bin", "b.bin.json"]


class Dying(Tokenizer):
    """Tokenises so many batches of chunks, then dies as a killed process does: by no Exception."""

    def __init__(self, left):
        super().__init__(BYTES._backend)
        self.left, self.done = left, 0

    def encode_batch(self, texts):
        if not self.left:
            raise KeyboardInterrupt
        self.left, self.done = self.left - 1, self.done + 1
        return super().encode_batch(texts)


def test_resumes_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("massive_jax.train.prepare._CHUNKS", 2)
    whole = Dying(100)
    made = make(tmp_path / "whole.bin", tokenizer=whole)
    assert whole.done > 5
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a.bin", tokenizer=Dying(4))
    assert not (tmp_path / "a.bin").exists()
    rest = Dying(100)
    assert make(tmp_path / "a.bin", tokenizer=rest).sha256 == made.sha256
    assert rest.done == whole.done - 4
    assert make(tmp_path / "a.bin", tokenizer=Dying(0)).sha256 == made.sha256  # there already


def test_parts_of_another_text_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("massive_jax.train.prepare._CHUNKS", 2)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a.bin", tokenizer=Dying(4))
    other = TEXT.replace("small", "large")
    assert make(tmp_path / "a.bin", other).tokens.astype(np.uint8).tobytes() == other.encode()
    with pytest.raises(ValueError, match="made from another text or tokenizer"):
        make(tmp_path / "a.bin")


def test_large_vocabularies_take_four_bytes(tmp_path):
    class Large(Tokenizer):
        vocab_size = 70000

        def encode_batch(self, texts):
            return [[69999 - i for i in ids] for ids in super().encode_batch(texts)]

    file = make(tmp_path / "a.bin", tokenizer=Large(BYTES._backend))
    assert file.dtype == "uint32"
    assert file.tokens[0] == 69999 - ord("l")


def test_bad_files(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(ValueError, match=r"no token file .*prepare_data"):
        TokenFile.open(path)
    file = make(path)
    with pytest.raises(ValueError, match="vocabulary of 256 .bytes., more than the model's 200"):
        file.check_vocabulary(200)
    with pytest.raises(ValueError, match=r"tokens for validation, and a window needs 1001"):
        file.split(0.05, 1000)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        TokenFile.open(path)
    path.write_bytes(data[:-2])
    with pytest.raises(ValueError, match=r"bytes, its sidecar says"):
        TokenFile.open(path, verify=False)
    fields = {"format": 1, "count": 9, "vocab_size": 256, "sha256": "", "text": "a", "tokenizer_name": "bytes"}
    for said in ({"format": 0}, {"format": 1}, [1], fields | {"dtype": "float"}, fields | {"dtype": "uint16", "x": 1}):
        (tmp_path / "a.bin.json").write_text(json.dumps(said))
        with pytest.raises(ValueError, match=r"a.bin.json is damaged, or not of format 1; prepare the data again"):
            TokenFile.open(path)
    (tmp_path / "a.bin.json").write_text("{")
    with pytest.raises(ValueError, match=r"a.bin.json is damaged, or no result: Expecting property name"):
        TokenFile.open(path)


def test_adopted_files(tmp_path):
    path = tmp_path / "train.bin"
    np.arange(1000, dtype="<u2").tofile(path)
    with pytest.raises(ValueError, match="has the token 999, above a vocabulary of 500"):
        adopt(path, vocab_size=500)
    adopt(path, vocab_size=1000)
    assert TokenFile.open(path).count == 1000
    path.write_bytes(b"123")
    with pytest.raises(ValueError, match="no whole number of uint16"):
        adopt(path, vocab_size=1000)


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def test_batches_are_fixed_by_the_seed_and_resume_exactly(tmp_path):
    file = make(tmp_path / "a.bin")
    part, held_out = file.split(0.1, 8)

    def batches(seed=0, **options):
        return batches_of(file, part, context=8, batch=4, seed=seed, **options)

    first = take(batches(), 6)
    assert first[0].shape == (4, 9)
    assert first[0].dtype == np.int32
    np.testing.assert_array_equal(first, take(batches(), 6))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], next(batches(seed=1)))
    iterator = batches()
    take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    again = batches()
    again.set_state(state)
    np.testing.assert_array_equal(take(again, 3), first[3:])
    windows = RandomWindows(file, part, 8, seed=0, bos=None)
    np.testing.assert_array_equal([windows[i] for i in range(24)], np.concatenate(first))
    # Two processes with half a batch each see what one process sees.
    halves = [take(batches_of(file, part, context=8, batch=2, seed=0, shard=(i, 2)), 1)[0] for i in range(2)]
    np.testing.assert_array_equal(np.stack(halves, 1).reshape(4, 9), first[0])
    assert part.stop == held_out.start


def test_windows_stay_in_their_part(tmp_path):
    path = tmp_path / "a.bin"
    np.arange(40, dtype="<u2").tofile(path)
    file = adopt(path, vocab_size=40)
    part, held_out = file.split(0.25, 8)
    seen = np.unique(take(batches_of(file, part, context=8, batch=8, seed=0), 20))
    np.testing.assert_array_equal(seen, part)
    assert file.unigram_entropy(held_out) == pytest.approx(np.log(10))


def test_windows_may_begin_with_a_token(tmp_path):
    """Every window is that token and then what it would have been, one token shorter."""
    file = make(tmp_path / "a.bin")
    part, held_out = file.split(0.1, 8)
    plain, begun = (take(batches_of(file, part, context=8, batch=4, seed=0, bos=bos), 3) for bos in (None, 7))
    assert np.shape(begun) == np.shape(plain)
    assert (np.asarray(begun)[..., 0] == 7).all()
    np.testing.assert_array_equal(np.asarray(begun)[..., 1:], np.asarray(plain)[..., :-1])
    plain, begun = (even_windows(file, held_out, context=8, count=3, bos=bos) for bos in (None, 7))
    assert begun.dtype == np.int32
    np.testing.assert_array_equal(begun, np.concatenate([np.full((3, 1), 7), plain[:, :-1]], axis=1))
