"""The tokenizer of a Hugging Face directory: which of its files says what, as in transformers 5.

`tokenizer.json` is the tokenizer. The files beside it add tokens to it and change how it treats a space in front of a
text; transformers' `TokenizersBackend.__init__` and `PreTrainedTokenizerBase._from_pretrained` say in which order, and
its class for the model says which of two contradicting files wins.

One thing is kept that transformers 5 drops: where its class builds the steps before BPE anew, the steps that
`tokenizer.json` has besides (SmolLM2 splits digits one by one) stay, for the model was trained with them.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from massive_jax import files
from massive_jax.arguments import shown
from massive_jax.inputs.tokenizer_settings import CONFIG, DECLARED, MAX_ID, MODEL, TokenizerSettings

if TYPE_CHECKING:
    import tokenizers

JSON = "tokenizer.json"
FILES = ("*.json", "*.model", "*.txt")  # what a tokenizer is read from, and no weights
# Files that transformers can build a tokenizer from where there is no tokenizer.json: any one of these sets.
_SLOW = (("tokenizer.model",), ("spiece.model",), ("vocab.json", "merges.txt"))
# Names of transformers' classes that take tokenizer.json as it is.
_PLAIN = (
    "TokenizersBackend",
    "PythonBackend",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "MistralCommonBackend",
)
_SPACE = "▁"  # how SentencePiece writes a space
# What the special tokens of transformers' classes are called where no file says so.
_USUAL = ("<|endoftext|>", "<s>", "</s>", "<unk>", "<bos>", "<eos>", "<pad>", "<mask>", "<|padding|>")


def has_tokenizer(directory: Path) -> bool:
    """Tells whether a Hugging Face directory holds the files of a tokenizer."""
    return any(all((directory / name).is_file() for name in names) for names in ((JSON,), *_SLOW))


def read_directory(
    directory: Path,
) -> tuple[tokenizers.Tokenizer, int | None, int | None, bool | None, str | None]:
    """Gives the tokenizer of a Hugging Face directory, and what else `Tokenizer` is made with.

    That is the ids of the tokens that begin and end a text, whether the settings say that it adds BOS, and the chat
    template.

    Raises:
      ValueError: no tokenizer is there, or its files are damaged or contradict each other.
    """
    if not has_tokenizer(directory):
        raise ValueError(
            f"tokenizer missing: {directory} has none of {JSON}, {', '.join('+'.join(s) for s in _SLOW)}."
            " Copy them from the model's page into the directory."
        )
    settings = TokenizerSettings.of(directory)
    if not (directory / JSON).is_file():
        backend, usual = _from_transformers(directory)
        _check_declared(backend, settings)
        return backend, *_ends(backend, settings, lambda: usual), *_use(settings)
    backend = _from_json(directory / JSON)
    _refuse_what_is_not_read(backend, settings)
    rules = _Class(backend, settings)
    _add_declared(backend, settings, rules)
    _check_declared(backend, settings)
    ends = _ends(backend, settings, lambda: rules.defaults)
    _add_special(backend, settings, rules)
    _treat_first_space(backend, settings, rules)
    backend.encode_special_tokens = bool(settings.boolean("split_special_tokens"))
    return backend, *ends, *_use(settings)


def _use(settings: TokenizerSettings) -> tuple[bool | None, str | None]:
    """What does not change the ids of a text, but how a model is given it."""
    adds_bos = settings.values.get("add_bos_token")
    return adds_bos if isinstance(adds_bos, bool) else None, settings.chat_template()


# The tokenizer itself ---------------------------------------------------------------------------------------------


def _from_json(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        text = path.read_text(encoding="utf-8")
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(
            f"{path} is not a tokenizer the tokenizers package ({tokenizers.__version__}) can read:"
            f" {files.one_line(error)}. Copy it again from the model's page, or update tokenizers."
        ) from None
    # The package gives an added token the next free id, whatever id the file gives it.
    if start := re.search(r'"added_tokens"\s*:\s*(?=\[)', text):
        entries, _ = json.JSONDecoder().raw_decode(text, start.end())
        _check_ids(backend, {entry["content"]: entry["id"] for entry in entries}, path)
    return backend


def _from_transformers(directory: Path) -> tuple[tokenizers.Tokenizer, Mapping[str, Any]]:
    """A tokenizer from SentencePiece or vocab.json + merges.txt files; which class is transformers' business.

    Returns:
      The tokenizer, and its special tokens by name ("bos_token").
    """
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
        )
        backend = getattr(found, "backend_tokenizer", None)
    except Exception as error:
        raise ValueError(
            f"transformers cannot build the tokenizer in {directory}: {files.one_line(error)}. Add the model's {JSON}"
            " to the directory."
        ) from None
    if backend is None:
        raise ValueError(
            f"{directory}: transformers has only a Python tokenizer for it ({type(found).__name__}); add the"
            f" model's {JSON} to the directory."
        )
    return backend, found.special_tokens_map


def _refuse_what_is_not_read(backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    """ValueError for settings that could change the ids, and that only transformers' own classes read."""
    versions = settings.values.get("fast_tokenizer_files")
    if versions is not None and versions != [JSON]:
        raise settings.wrong("fast_tokenizer_files", versions, f"[{JSON!r}]; another version's file is not read")
    bert = next((step for step in _steps(_state(backend.normalizer)) if step["type"] == "BertNormalizer"), {})
    for key, field in (
        ("do_lower_case", "lowercase"),
        ("strip_accents", "strip_accents"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
    ):
        if bert and settings.values.get(key) is not None and settings.values[key] != bert[field]:
            raise settings.wrong(key, settings.values[key], f"{bert[field]}, as in the {JSON} beside it")


def _ends(
    backend: tokenizers.Tokenizer, settings: TokenizerSettings, usual: Callable[[], Mapping[str, Any]]
) -> tuple[int | None, int | None]:
    """The ids of the tokens that begin and end a text.

    From the tokenizer's files, or else from config.json, or else from `usual`, what transformers' class calls them. A
    file that says null ends the search: Qwen2's tokenizer has no BOS, although its config.json gives an id for one.
    """
    return _special_id(backend, settings, "bos", usual), _special_id(backend, settings, "eos", usual)


def _special_id(
    backend: tokenizers.Tokenizer, settings: TokenizerSettings, name: str, usual: Callable[[], Mapping[str, Any]]
) -> int | None:
    """The id of the "bos" or "eos" token; see `_ends`."""
    key = f"{name}_token"
    if key in settings.values:
        value = settings.values[key]
        file = settings.origin[key]
    elif f"{key}_id" in settings.model:
        key, file = f"{key}_id", MODEL
        value = settings.model.get(key)
    else:
        content = usual().get(key)
        return backend.token_to_id(content) if isinstance(content, str) else None
    content = value.get("content") if isinstance(value, dict) else value
    if isinstance(content, list):  # several EOS ids: the first is the text's own end
        content = content[0] if content else None
    if content is None and not isinstance(value, dict):
        return None
    token = backend.token_to_id(content) if isinstance(content, str) else content
    sound = isinstance(token, int) and not isinstance(token, bool) and 0 <= token < MAX_ID
    if token is None or not sound or backend.id_to_token(token) is None:
        raise ValueError(
            f"{settings.directory / file}: {key} is {shown(value)}, which is no token of the tokenizer beside it."
            " Copy both from the same revision."
        )
    return token


# Added tokens -----------------------------------------------------------------------------------------------------


def _add_declared(backend: tokenizers.Tokenizer, settings: TokenizerSettings, rules: _Class) -> None:
    """Adds the tokens that the files beside tokenizer.json declare, in the order of their ids."""
    known = backend.get_added_tokens_decoder()
    contents = {token.content for token in known.values()}
    declared = {token.content for token in settings.declared.values()}
    if settings.declared_in == CONFIG:
        # What is a piece of the vocabulary keeps its id, and where it is named it is added again.
        named = {token.content for token in settings.special() if backend.model.token_to_id(token.content) is not None}
        forgotten = sorted(contents - declared - named)
        if forgotten and rules.found is not None:
            raise ValueError(
                f"{settings.directory / CONFIG}: {DECLARED} lacks added tokens of the {JSON} beside it:"
                f" {files.listed(map(repr, forgotten))}; transformers would lose them. List them there too."
            )
        same = {repr(token) for token in known.values()}
        tokens = {number: token for number, token in settings.declared.items() if repr(token) not in same}
    else:  # tokenizer.json's own come last, and win
        tokens = {number: token for number, token in settings.declared.items() if token.content not in contents}
    special = {token.content for token in settings.named().values()}
    for _, token in sorted(tokens.items()):
        token.special = token.special or token.content in special
        backend.add_tokens([token])


def _check_declared(backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    declared = {token.content: number for number, token in settings.declared.items()}
    _check_ids(backend, declared, settings.directory / settings.declared_in)


def _check_ids(backend: tokenizers.Tokenizer, declared: Mapping[str, int], file: Path) -> None:
    """ValueError where an added token did not get the id that a file gives it."""
    wrong = [
        f"{content!r} is {number}, and comes out as {backend.token_to_id(content)}"
        for content, number in declared.items()
        if backend.token_to_id(content) != number
    ]
    if wrong:
        raise ValueError(
            f"{file}: ids of added tokens that do not follow the vocabulary: {files.listed(wrong, 5)}."
            " Copy the tokenizer's files from one revision."
        )


def _add_special(backend: tokenizers.Tokenizer, settings: TokenizerSettings, rules: _Class) -> None:
    """Adds the special tokens that are not among the added ones yet, so that a text that holds one has its id."""
    contents = {token.content for token in backend.get_added_tokens_decoder().values()}

    def is_piece(content: str) -> bool:
        return backend.token_to_id(content) is not None

    # Tokens that the class has by itself matter where one of them is a piece, or comes before one that gets a new id.
    by_class = any(is_piece(usual) and usual not in contents for usual in _USUAL) or any(
        not is_piece(token.content) for token in settings.special()
    )
    for token in settings.special(rules.defaults if by_class else {}):
        if token.content not in contents:
            backend.add_tokens([token])
            contents.add(token.content)


# The space in front of a text -------------------------------------------------------------------------------------


def _treat_first_space(backend: tokenizers.Tokenizer, settings: TokenizerSettings, rules: _Class) -> None:
    """Applies `add_prefix_space` (and `legacy`), where transformers' class lets it win over tokenizer.json."""
    asked = settings.boolean("add_prefix_space")
    legacy = settings.boolean("legacy")
    steps = _state(backend.pre_tokenizer)
    flags = {step["add_prefix_space"] for step in _steps(steps) if step["type"] == "ByteLevel"}
    if flags:
        if flags == {bool(asked)}:  # whichever file wins
            return
        defaults = rules.defaults
        if "add_prefix_space" in defaults:
            for step in _steps(steps):
                if step["type"] == "ByteLevel":
                    step["add_prefix_space"] = bool(defaults["add_prefix_space"] if asked is None else asked)
            backend.pre_tokenizer = _built("pre_tokenizer", steps)
        return
    normalizers = _steps(_state(backend.normalizer))
    prepends = any(step["type"] == "Prepend" and step["prepend"] == _SPACE for step in normalizers)
    metaspace = any(step["type"] == "Metaspace" for step in _steps(steps))
    if (prepends or metaspace) and rules.name not in ("", *_PLAIN):
        defaults = rules.defaults
        if "add_prefix_space" in defaults:
            asked = (defaults["add_prefix_space"] is not False) if asked is None else asked
            legacy = defaults.get("legacy", True) if "legacy" not in settings.values else legacy
            _write_spaces(backend, "never" if not asked else "always" if legacy else "first")


def _write_spaces(backend: tokenizers.Tokenizer, scheme: str) -> None:
    """Makes "▁" of spaces as transformers' LlamaTokenizer does: one more in front "always", at "first", or "never"."""
    wanted = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}
    rules = [
        step
        for step in _steps(_state(backend.normalizer))
        if not (step["type"] == "Prepend" or (step["type"] == "Replace" and step["content"] == _SPACE))
    ]
    others = [step for step in _steps(_state(backend.pre_tokenizer)) if step["type"] != "Metaspace"]
    strip = [step for step in _steps(_state(backend.decoder)) if step["type"] != "Strip"]
    if strip and strip[0]["type"] == "Metaspace":
        strip = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}]
    if scheme != "never":
        strip = [*strip, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    backend.normalizer = _built("normalizer", {"type": "Sequence", "normalizers": rules} if rules else None)
    backend.pre_tokenizer = _built("pre_tokenizer", {"type": "Sequence", "pretokenizers": [*others, wanted]})
    backend.decoder = _built("decoder", {"type": "Sequence", "decoders": strip})


class _Class:
    """transformers' class for a directory, as `AutoTokenizer.from_pretrained` chooses it.

    Its tables are read only where the class matters: that takes seconds.
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings):
        self.model_type = settings.name(MODEL, "model_type")
        name = settings.name(CONFIG, "tokenizer_class") or settings.name(MODEL, "tokenizer_class")
        self.name = name.removesuffix("Fast")
        self.byte_level = any(step["type"] == "ByteLevel" for step in _steps(_state(backend.pre_tokenizer)))

    @functools.cached_property
    def found(self) -> type | None:
        """The class; None where it takes tokenizer.json as it is."""
        if not self.model_type and self.name in ("", *_PLAIN):
            return None
        from transformers import PreTrainedTokenizerFast as Plain
        from transformers.models.auto import tokenization_auto as auto

        usual = (auto.TOKENIZER_MAPPING_NAMES.get(self.model_type) or "").removesuffix("Fast")
        misnamed = self.model_type in getattr(auto, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS", ())
        if self.name == "LlamaTokenizer" and self.byte_level and usual != "MistralCommonBackend" and not misnamed:
            return None  # Llama 3 is no SentencePiece tokenizer, whatever its files say
        if self.name and usual != self.name and usual in _PLAIN:
            return None
        name = usual if misnamed and usual else self.name or usual
        found = auto.tokenizer_class_from_name(name) if name and name not in _PLAIN else None
        rebuilds = found is not None and issubclass(found, Plain) and "__init__" in vars(found)
        return found if rebuilds else None

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the class's arguments; none where it takes tokenizer.json as it is."""
        parameters = inspect.signature(self.found.__init__).parameters if self.found else {}  # type: ignore[misc]
        return {name: parameter.default for name, parameter in parameters.items()}


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer (normalizer, pre-tokenizer, decoder) as tokenizer.json has it."""
    return None if part is None else json.loads(part.__getstate__())


def _steps(state: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a part, those of sequences in sequences too."""
    if state is None:
        return
    inner: Iterable[dict[str, Any]] | None = next(
        (state[key] for key in ("normalizers", "pretokenizers", "decoders") if key in state), None
    )
    if inner is None:
        yield state
    else:
        for step in inner:
            yield from _steps(step)


def _built(part: str, state: dict[str, Any] | None) -> Any:
    """The reverse of `_state`."""
    import tokenizers

    shell = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, part: state}
    return getattr(tokenizers.Tokenizer.from_str(json.dumps(shell)), part)
