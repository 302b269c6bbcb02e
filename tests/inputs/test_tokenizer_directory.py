"""What the files beside tokenizer.json change: ids, ends and decoding as transformers' AutoTokenizer has them."""

import functools
import json
import warnings

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from massive_jax.inputs.tokenizer import Tokenizer

CORPUS = ["river stone and tall trees by the river 12 345"] * 9
TEXTS = ("river stone", " river", "a</s>b <|turn|> river<|x|>stone <|y|>é č\n", "<s>river <s> the", "  two  spaces", "")
FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)


@functools.cache
def byte_level(prefix=False, digits=False):
    made = tokenizers.Tokenizer(models.BPE())
    steps = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), steps]) if digits else steps
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False, special_tokens=special, initial_alphabet=letters)
    made.train_from_iterator(CORPUS, trainer)
    return made.to_str()


@functools.cache
def sentencepiece(scheme):
    """As in Llama 2's file: spaces become "▁", by a Metaspace step of the scheme given, or by "normalizer" rules."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=special + [f"<0x{i:02X}>" for i in range(256)]
    )
    made.train_from_iterator(CORPUS, trainer)
    if scheme == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made = tokenizers.Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | {"pre_tokenizer": None}))
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 3]
    return json.dumps(state)


def write(folder, tokenizer, **files):
    (folder / "tokenizer.json").write_text(tokenizer)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def theirs(folder):
    import transformers

    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def assert_same(folder, texts=TEXTS):
    """Ours and transformers' give the same ids, and the same again after a turn through `to_json`."""
    reference, ours = theirs(folder), Tokenizer.from_directory(folder)
    again = Tokenizer.from_json(json.loads(json.dumps(ours.to_json())))
    for text in texts:
        expected = reference.encode(text, add_special_tokens=False)
        assert ours.encode(text) == expected, text
        assert again.encode(text) == expected, text
        if all(token.isascii() for token in reference.get_added_vocab()):  # theirs takes others for bytes
            assert ours.decode(expected) == reference.decode(expected), text
    return reference, ours


# The space in front


@pytest.mark.parametrize("in_config", [None, False, True])
@pytest.mark.parametrize("in_json", [False, True])
@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("gpt2", "GPT2Tokenizer"),
        ("gpt2", None),
        ("llama", "GPT2TokenizerFast"),
        ("llama", "LlamaTokenizerFast"),
        ("llama", "PreTrainedTokenizerFast"),
        ("gpt_neox", "GPTNeoXTokenizerFast"),
        ("mpt", None),
        ("opt", "GPT2Tokenizer"),
        ("phi", "CodeGenTokenizer"),
        ("qwen3", "PreTrainedTokenizerFast"),
        ("olmo2", "GPT2Tokenizer"),
        ("falcon", "NoSuchTokenizer"),
        ("", "GPT2Tokenizer"),
        ("", None),
    ],
)
def test_add_prefix_space_of_a_byte_level_tokenizer(tmp_path, model_type, name, in_json, in_config):
    """Where transformers' class builds the tokenizer anew its setting wins, elsewhere tokenizer.json's."""
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "</s>"}
    settings |= {"tokenizer_class": name} if name else {}
    settings |= {} if in_config is None else {"add_prefix_space": in_config}
    config = {"model_type": model_type} if model_type else {}
    assert_same(write(tmp_path, byte_level(in_json), tokenizer_config=settings, config=config))


@pytest.mark.parametrize(
    "settings", [{}, {"legacy": True}, {"legacy": False}, {"add_prefix_space": False}, {"add_prefix_space": None}]
)
@pytest.mark.parametrize("scheme", ["first", "always", "never", "normalizer"])
@pytest.mark.parametrize(
    ("model_type", "name"),
    [("llama", "LlamaTokenizer"), ("llama", "PreTrainedTokenizerFast"), ("mistral", "LlamaTokenizerFast")],
)
def test_add_prefix_space_of_a_sentencepiece_tokenizer(tmp_path, model_type, name, scheme, settings):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": name}
    config = {"model_type": model_type}
    assert_same(write(tmp_path, sentencepiece(scheme), tokenizer_config=special | settings, config=config))


def test_steps_that_a_class_would_drop_stay(tmp_path):
    """SmolLM2's file splits digits, and names GPT2Tokenizer, which in transformers 5 does not."""
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "eos_token": "</s>"}
    write(tmp_path, byte_level(True, digits=True), tokenizer_config=settings, config={"model_type": "llama"})
    ours = Tokenizer.from_directory(tmp_path)
    labels = [ours.token_text(i) for i in ours.encode("river345")]
    assert labels[0][0] == "r"
    assert labels[-3:] == ["3", "4", "5"]


# Added tokens


def size():
    return tokenizers.Tokenizer.from_str(byte_level()).get_vocab_size()


def declared(start, *contents, **flags):
    """An added_tokens_decoder of the file's own tokens and new ones from the id `start` on."""
    new = {str(start + i): {"content": text, "special": True, **FLAGS, **flags} for i, text in enumerate(contents)}
    own = {str(i): {"content": text, "special": True, **FLAGS} for i, text in enumerate(("<s>", "</s>"))}
    return {"added_tokens_decoder": own | new}


PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "GPT2Tokenizer"])
@pytest.mark.parametrize(
    ("settings", "others"),
    [
        (lambda n: declared(n, "<|turn|>", "<|x|>"), {}),
        (lambda n: declared(n, "<|turn|>") | {"eos_token": "<|turn|>"}, {}),
        (lambda n: declared(n, "<|turn|>", lstrip=True, rstrip=True), {}),
        (lambda n: declared(n, "ver st", special=False, normalized=True), {}),
        (lambda n: declared(n, "<|y|>", special=False, single_word=True), {}),
        (lambda n: declared(n, "é č", special=False), {}),
        (lambda n: declared(n, "<|x|>") | {"additional_special_tokens": ["<|x|>", "<|y|>"]}, {}),
        (lambda n: {"additional_special_tokens": ["<|turn|>", {"__type": "AddedToken", "content": "é", **FLAGS}]}, {}),
        (lambda n: {"extra_special_tokens": ["<|y|>"], "additional_special_tokens": ["<|x|>"]}, {}),
        (lambda n: {"extra_special_tokens": {"image_token": "<|y|>"}, "additional_special_tokens": ["<|x|>"]}, {}),
        (lambda n: {"image_token": "<|y|>", "pad_token": "<|x|>"}, {}),
        (lambda n: {}, {"added_tokens": lambda n: {"<|turn|>": n, "<|x|>": n + 1}}),
        (lambda n: {"eos_token": "<|x|>"}, {"added_tokens": lambda n: {"<|turn|>": n, "<|x|>": n + 1}}),
        (lambda n: declared(n), {"added_tokens": lambda n: {"<|turn|>": n}}),
        (lambda n: {}, {"special_tokens_map": lambda n: {"additional_special_tokens": ["<|x|>"], "eos_token": "<s>"}}),
        (lambda n: declared(n), {"special_tokens_map": lambda n: {"additional_special_tokens": ["<|x|>"]}}),
        (lambda n: {}, {"special_tokens_map": lambda n: {"eos_token": {"content": "<s>", **FLAGS, "lstrip": True}}}),
        (lambda n: {"split_special_tokens": True}, {}),
        (
            lambda n: {"split_special_tokens": True, "additional_special_tokens": ["<|turn|>"]},
            {"added_tokens": lambda n: {"<|turn|>": n, "<|x|>": n + 1}},
        ),
        (
            lambda n: {"split_special_tokens": True},  # then those of the map are found, unlike those above
            {
                "added_tokens": lambda n: {"<|turn|>": n, "<|x|>": n + 1},
                "special_tokens_map": lambda n: {"additional_special_tokens": ["<|turn|>"]},
            },
        ),
        (lambda n: declared(n, "<|turn|>") | {"split_special_tokens": True}, {}),
        (lambda n: {"clean_up_tokenization_spaces": True, "do_lower_case": True, "add_bos_token": True}, {}),
    ],
)
def test_added_tokens_beside_tokenizer_json(tmp_path, settings, others, name):
    n = size()
    config = PLAIN | {"unk_token": "</s>", "pad_token": "</s>", "tokenizer_class": name} | settings(n)
    files = {file: content(n) for file, content in others.items()}
    write(tmp_path, byte_level(), tokenizer_config=config, config={"model_type": "llama"}, **files)
    reference, ours = assert_same(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (reference.bos_token_id, reference.eos_token_id)


def test_flags_of_a_token_that_both_files_have_are_those_of_the_config(tmp_path):
    config = PLAIN | declared(size())
    config["added_tokens_decoder"]["1"]["lstrip"] = True
    write(tmp_path, byte_level(), tokenizer_config=config)
    assert_same(tmp_path, ["a </s>b"])


def test_ends_that_no_file_names_are_those_of_the_class(tmp_path):
    """GPT2Tokenizer calls both "<|endoftext|>"; it is found in a text, also where it is no added token."""
    state = json.loads(byte_level())
    state["model"]["vocab"]["<|endoftext|>"] = len(state["model"]["vocab"])
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    write(tmp_path, json.dumps(state), tokenizer_config=settings, config={"model_type": "gpt2"})
    reference, ours = assert_same(tmp_path, ["a<|endoftext|>b"])
    assert ours.bos_id == ours.eos_id == reference.eos_token_id == len(state["model"]["vocab"]) - 1


def test_the_older_files_take_added_tokens_too(tmp_path):
    state = json.loads(byte_level())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in state["merges"]))
    settings = PLAIN | {"tokenizer_class": "GPT2Tokenizer", "unk_token": "</s>", "add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | declared(size(), "<|turn|>")))
    assert_same(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | declared(size() + 3, "<|turn|>")))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: ids of added tokens that do not follow"):
        Tokenizer.from_directory(tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config", {"added_tokens_decoder": []}, r"added_tokens_decoder is \[\]; expected an object"),
        ("tokenizer_config", {"added_tokens_decoder": {"-1": {"content": "x"}}}, "is '-1'; expected ids as keys"),
        ("tokenizer_config", {"added_tokens_decoder": {"1e3": {"content": "x"}}}, "is '1e3'; expected ids"),
        ("tokenizer_config", {"added_tokens_decoder": {str(1 << 32): {"content": "x"}}}, "below 2"),
        ("tokenizer_config", {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}, "below 2"),
        ("tokenizer_config", {"added_tokens_decoder": {"999": {"content": "<|x|>"}}}, "'<|x|>' is 999, and comes out"),
        ("tokenizer_config", {"added_tokens_decoder": {"300": "<|x|>"}}, r"\[300\] is '<|x|>'; expected an object"),
        ("tokenizer_config", {"added_tokens_decoder": {"300": {"content": 5}}}, "expected an object with content"),
        ("tokenizer_config", {"added_tokens_decoder": {"300": {"content": "\ud800"}}}, "expected an object with"),
        ("tokenizer_config", {"added_tokens_decoder": {"300": {"content": "x", "lstrip": 1}}}, "expected an object"),
        (
            "tokenizer_config",
            {"additional_special_tokens": "<|x|>"},
            "extra_special_tokens is '<|x|>'; expected a list",
        ),
        ("tokenizer_config", {"additional_special_tokens": [5]}, "is 5; expected a text"),
        ("tokenizer_config", {"pad_token": 5}, "pad_token is 5; expected a text"),
        ("tokenizer_config", {"pad_token": ""}, "pad_token is .*; expected a text"),
        ("tokenizer_config", {"eos_token": ["a"]}, "eos_token is"),
        ("tokenizer_config", {"eos_token": {}}, "eos_token is {}"),
        ("tokenizer_config", {"add_prefix_space": "yes"}, "add_prefix_space is 'yes'; expected true or false"),
        ("tokenizer_config", {"add_prefix_space": 1}, "add_prefix_space is 1; expected true or false"),
        ("tokenizer_config", {"legacy": []}, r"legacy is \[\]"),
        ("tokenizer_config", {"split_special_tokens": "no"}, "split_special_tokens is 'no'"),
        ("tokenizer_config", {"tokenizer_class": 5}, "tokenizer_class is 5; expected a name"),
        ("tokenizer_config", {"fast_tokenizer_files": ["tokenizer.4.0.json"]}, "fast_tokenizer_files is"),
        ("tokenizer_config", [], "expected a JSON object"),
        ("config", {"model_type": ["llama"]}, r"model_type is \['llama'\]; expected a name"),
        ("special_tokens_map", {"bos_token": {"content": "<s>", "lstrip": "no"}}, "special_tokens_map.*bos_token"),
        ("added_tokens", {"<|x|>": "300"}, r"added_tokens\.json: <|x|> is '300'; expected an id"),
        ("added_tokens", {"<|x|>": -1}, "is -1; expected an id"),
        ("added_tokens", {"<|x|>": True}, "is True; expected an id"),
        ("added_tokens", {"<|x|>": 5000}, "'<|x|>' is 5000, and comes out as"),
        ("added_tokens", {"<|x|>": 287, "<|y|>": 287}, "'<|x|>' and '<|y|>' is 287; expected an id each"),
        ("added_tokens", {"": 287}, "expected an id"),
        ("added_tokens", [], "expected a JSON object"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, file, content, message):
    write(tmp_path, byte_level(), **{file: content})
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as refusal:
        Tokenizer.from_directory(tmp_path)
    assert f"{file}.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_ids_of_tokenizer_json_itself_have_to_follow(tmp_path):
    """The tokenizers package would give this token the next free id, in silence."""
    state = json.loads(byte_level())
    state["added_tokens"].append({"id": 999, "content": "<|x|>", "special": True, **FLAGS})
    write(tmp_path, json.dumps(state))
    with pytest.raises(ValueError, match=r"tokenizer\.json: ids of added tokens .*'<\|x\|>' is 999, and comes out as"):
        Tokenizer.from_directory(tmp_path)


def test_tokens_that_a_class_would_lose_are_named(tmp_path):
    made = tokenizers.Tokenizer.from_str(byte_level())
    made.add_tokens(["<|mine|>"])
    settings = PLAIN | declared(made.get_vocab_size(), "<|turn|>") | {"tokenizer_class": "GPT2Tokenizer"}
    write(tmp_path, made.to_str(), tokenizer_config=settings)
    with pytest.raises(ValueError, match=r"added_tokens_decoder lacks added tokens .*'<\|mine\|>'"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "TokenizersBackend"}))
    assert_same(tmp_path, ["a<|mine|><|turn|>"])


def test_lower_case_that_contradicts_the_file(tmp_path):
    made = tokenizers.Tokenizer.from_str(byte_level())
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    write(tmp_path, made.to_str(), tokenizer_config={"do_lower_case": False})
    with pytest.raises(ValueError, match="do_lower_case is False; expected True"):
        Tokenizer.from_directory(tmp_path)
    write(tmp_path, made.to_str(), tokenizer_config={"do_lower_case": True})
    assert Tokenizer.from_directory(tmp_path).encode("A") == Tokenizer.from_directory(tmp_path).encode("a")


# Labels


def test_an_added_token_is_labelled_and_decoded_as_its_text():
    made = tokenizers.Tokenizer.from_str(byte_level())
    made.add_tokens(["đem", "café", "<|naïve|>", AddedToken("Ġx", normalized=False), "<0x41>"])
    ours = Tokenizer(made)
    for text in ("đem", "café", "<|naïve|>", "Ġx", "<0x41>"):
        ids = ours.encode(text)
        assert len(ids) == 1
        assert ours.token_text(ids[0]) == text
        assert ours.decode(ids) == text
        assert ours.decode(ours.encode(f"the é{text} €{text}")) == f"the é{text} €{text}"
    assert [ours.token_text(i) for i in ours.encode("é\r x")] == ["<0xC3>", "<0xA9>", "\r", " ", "x"]


def test_added_runs_of_spaces_that_are_pieces_are_labelled_as_spaces():
    """Gemma's "▁▁" is an added token; the two spaces of a text become it."""
    state = json.loads(sentencepiece("first"))
    state["model"]["vocab"]["▁▁"] = len(state["model"]["vocab"])
    made = tokenizers.Tokenizer.from_str(json.dumps(state))
    made.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("<|a▁b|>", normalized=False)])
    ours = Tokenizer(made)
    assert ours.token_text(made.token_to_id("▁▁")) == "  "
    assert ours.token_text(made.token_to_id("<|a▁b|>")) == "<|a▁b|>"
    assert ours.token_text(made.token_to_id("▁river")) == " river"


def test_missing_bytes_are_those_of_the_vocabulary(caplog):
    """An added token written as the letter of a byte does not stand in for it."""
    state = json.loads(byte_level())
    letter = "č"  # 0x0D
    state["model"]["vocab"] = {key: value for key, value in state["model"]["vocab"].items() if key != letter}
    made = tokenizers.Tokenizer.from_str(json.dumps(state))
    made.add_tokens([letter])
    Tokenizer(made).encode("a\rb")
    assert "no token for the bytes 0x0D" in caplog.text


def test_ends_of_the_older_files_that_no_file_names(tmp_path):
    state = json.loads(byte_level())["model"]
    vocab = state["vocab"] | {"<|endoftext|>": len(state["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in state["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    reference, ours = assert_same(tmp_path, ["a<|endoftext|>b"])
    assert ours.bos_id == ours.eos_id == reference.eos_token_id == len(vocab) - 1
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1, "bos_token_id": None}))
    ours = Tokenizer.from_directory(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (None, 1)
