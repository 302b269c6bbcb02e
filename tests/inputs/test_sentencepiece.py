"""SentencePiece vocabularies of GGUF files, against the sentencepiece package."""

import io
import itertools
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from massive_jax.inputs.tokenizer import Tokenizer
from tests.fixtures.gguf_files import sentencepiece_metadata
from tests.fixtures.tokenizer_texts import CASES, CORPUS, SPECIAL, random_texts


def train_sentencepiece(corpus, size, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=size, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
        **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def processor():
    return train_sentencepiece(CORPUS * 5, 450, character_coverage=0.98, allow_whitespace_only_pieces=True)


def test_sentencepiece_equals_the_sentencepiece_package(processor):
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(processor))
    characters = [*sorted(set("".join(CORPUS))), "  ", "   ", "\u0301", "ж", "🚀", "aa", "ab"]
    texts = [text for text in CASES if SPECIAL not in text and "\0" not in text]
    for text in texts + random_texts(1500, characters, 1) + random_texts(500, "ab ", 2, 80):
        ids = processor.encode(text)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == processor.decode(ids) == text
    assert tokenizer.vocab_size == processor.get_piece_size()
    assert (tokenizer.bos_id, tokenizer.eos_id) == (processor.bos_id(), processor.eos_id())


@pytest.mark.parametrize("seed", range(4))
def test_sentencepiece_ties_and_repetitions(seed):
    """Few letters, many overlapping pieces: where the order of equals would show."""
    corpus = random_texts(200, "aab ", seed, 30)
    processor = train_sentencepiece([text for text in corpus if text.strip()], 330, hard_vocab_limit=False)
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(processor))
    for text in (
        random_texts(1500, "aaab ", seed + 100, 40) + ["a" * n for n in range(60)] + ["ab" * n for n in range(30)]
    ):
        assert tokenizer.encode(text) == processor.encode(text), text


def join_by_score(text, scores):
    """SentencePiece's rule, word for word: join the best-scoring adjacent pair, of equals the leftmost."""
    pieces = list(text)
    while True:
        unions = [(scores.get(a + b, -np.inf), -i) for i, (a, b) in enumerate(itertools.pairwise(pieces))]
        best, at = max(unions, default=(-np.inf, 0))
        if best == -np.inf:
            return pieces
        pieces[-at : 2 - at] = [pieces[-at] + pieces[1 - at]]


@pytest.mark.parametrize("seed", range(40))
def test_merges_of_scores_in_any_order(seed):
    """Vocabularies that no trainer wrote: ids and scores in different orders, pieces that overlap themselves."""
    rng = random.Random(seed)
    words = ["".join(p) for n in range(2, 6) for p in itertools.product("ab", repeat=n)]
    tokens = ["a", "b", *rng.sample(words, 14)]
    rng.shuffle(tokens)
    scores = {token: -float(i) for i, token in enumerate(rng.sample(tokens, len(tokens)))}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [scores[token] for token in tokens],
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in random_texts(60, "aab", seed):
        assert [tokens[i] for i in tokenizer.encode(text)] == join_by_score(text, scores), text


def test_sentencepiece_without_the_space_prefix():
    processor = train_sentencepiece(CORPUS * 5, 450, character_coverage=0.98, add_dummy_prefix=False)
    metadata = sentencepiece_metadata(processor) | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in random_texts(500, sorted(set("".join(CORPUS))), 3):
        assert tokenizer.encode(text) == processor.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_user_defined_runs_of_spaces():
    """Gemma: no prefix, and runs of spaces as user-defined tokens, which its files write as spaces."""
    runs = ["▁" * n for n in range(2, 6)]
    processor = train_sentencepiece(
        CORPUS * 5,
        450,
        character_coverage=0.98,
        add_dummy_prefix=False,
        user_defined_symbols=[*runs, "<turn>"],
    )
    metadata = sentencepiece_metadata(processor) | {"tokenizer.ggml.add_space_prefix": False}
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    for run in [*runs, "<turn>"]:
        types[tokens.index(run)] = 4
        tokens[tokens.index(run)] = run.replace("▁", " ")
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in random_texts(800, ["a", "the", " ", "  ", "   ", "<turn>", "\n"], 4):
        assert tokenizer.encode(text) == processor.encode(text), text


@given(st.text().filter(lambda text: "▁" not in text))
@example("<s> </s><unk>")
@example("  a  ")
@settings(deadline=None, max_examples=200)
def test_sentencepiece_round_trip(processor, text):
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(processor))
    if not any(special in text for special in ("<s>", "</s>", "<unk>")):  # the text after one gets a prefix too
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_control_tokens_and_labels(processor):
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(processor))
    ids = tokenizer.encode("<s>again\n€</s>")
    assert ids[0] == processor.bos_id()
    assert ids[-1] == processor.eos_id()
    assert [tokenizer.token_text(i) for i in ids[1:-1]] == [" again", "\n", "<0xE2>", "<0x82>", "<0xAC>"]
    # A control token's text is found, a byte token's is not: SentencePiece never matches one in a text.
    assert processor.piece_to_id("<0x41>") not in tokenizer.encode("<0x41>")


def test_a_large_sentencepiece_vocabulary():
    rng = random.Random(0)
    tokens = {"<unk>": 2} | {f"<0x{i:02X}>": 6 for i in range(256)}
    tokens |= dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz", 1)
    words = ["▁"]
    while len(tokens) < 64_000:
        word = rng.choice(words) + rng.choice("abcdefghijklmnopqrstuvwxyz")
        if len(word) < 12 and word not in tokens:
            tokens[word] = 1
            words.append(word)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": list(tokens.values()),
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode("some words and a 1")) == "some words and a 1"
