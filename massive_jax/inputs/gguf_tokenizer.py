"""A `tokenizers.Tokenizer` from the metadata of a GGUF file; used by `Tokenizer.from_gguf`.

A GGUF file keeps the vocabulary, and either merges (`tokenizer.ggml.model` = "gpt2": byte-level BPE) or scores
("llama": SentencePiece BPE). How text is cut up before merging it only names (`tokenizer.ggml.pre`). The rules
below are the ones the models' own Hugging Face tokenizers apply; which name stands for which is read from
llama.cpp (`src/llama-vocab.cpp`) and transformers (`integrations/gguf/gguf_tokenizer_mapping.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from massive_jax import files

if TYPE_CHECKING:
    import tokenizers

_KEY = "tokenizer.ggml."
_SPACE = "▁"
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # token types; 1 is normal, 5 is unused

_TYPES = range(7)  # 0 is undefined

# Keys that do not change what a text becomes here: which tokens a generator adds or stops at, and templates.
_NO_EFFECT = re.compile(r"add_(bos|eos|sep)_token|\w+_token_ids?|token_type_count|chat_template.*")
# Keys of other kinds of tokenizers, and of SentencePiece's settings beyond llama.cpp's; the values that change nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "remove_extra_whitespaces": (False,),
    "escape_whitespaces": (True,),
    "treat_whitespace_as_suffix": (False,),
    "precompiled_charsmap": ([],),
}
_READ = frozenset({"model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix"})

# What follows is regular expressions; \p{L} is a letter, \p{N} a number, \p{M} a combining mark.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
# Words end where the case falls (camelCase); upper + lower, then upper only.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_TAIL}"
_GPT4O = (
    rf"{_FIRST}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_FIRST}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}|{_CASED_TAIL}"
)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How a byte-level BPE cuts text up.

    Attributes:
      pattern: the words; None for GPT-2's own pattern.
      digits: each number character is cut off first.
      falcon: punctuation is cut off first, and numbers in threes last.
      nfc: the text is Unicode-composed before anything else.
      ignore_merges: a word that is in the vocabulary is one token, whatever the merges say.
    """

    pattern: str | None = None
    digits: bool = False
    falcon: bool = False
    nfc: bool = False
    ignore_merges: bool = False


_GPT2 = _Rule()
_RULES: dict[str, _Rule] = (
    dict.fromkeys(("gpt-2", "phi-2", "jais", "exaone4", "trillion", "granite-docling"), _GPT2)
    | dict.fromkeys(("olmo", "mpt", "gpt-neox"), _Rule(nfc=True))  # GPT-NeoX's tokenizer
    | dict.fromkeys(("starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b"), _Rule(digits=True))
    | {"command-r": _Rule(digits=True, nfc=True), "falcon": _Rule(falcon=True)}
    | dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _Rule(_LLAMA3, ignore_merges=True)
    )
    | dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _Rule(_LLAMA3))
    | {"qwen2": _Rule(_QWEN2, nfc=True)}
    | dict.fromkeys(("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), _Rule(_QWEN2))
    | {"tekken": _Rule(_TEKKEN, ignore_merges=True)}
    | dict.fromkeys(("gpt-4o", "llama4"), _Rule(_GPT4O))
)
# Files from before `tokenizer.ggml.pre` (April 2024) name no rule, or "default"; the architecture tells.
_RULE_OF_ARCHITECTURE = {
    "gpt2": "gpt-2",
    "gptneox": "gpt-neox",
    "mpt": "mpt",
    "phi2": "phi-2",
    "falcon": "falcon",
    "starcoder": "starcoder",
    "starcoder2": "starcoder",
    "refact": "refact",
    "command-r": "command-r",
    "olmo": "olmo",
    "dbrx": "dbrx",
    "qwen2": "qwen2",
}


def build(
    metadata: Mapping[str, Any],
) -> tuple[tokenizers.Tokenizer, int | None, int | None, bool, str | None]:
    """Builds the tokenizer, and gives with it the ids of BOS and EOS, whether it adds BOS, and the chat template.

    Raises:
      ValueError: see `Tokenizer.from_gguf`.
    """
    model = str(metadata.get(f"{_KEY}model"))
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if model not in builders:
        raise ValueError(
            f"{_KEY}model is {files.shown(model)}; this reads {' and '.join(builders)} (byte-level and"
            " SentencePiece BPE). Use the Hugging Face checkpoint of this model."
        )
    tokens = _list(metadata, "tokens", str)
    _no_duplicates(tokens)
    types = _list(metadata, "token_type", int, len(tokens)) if f"{_KEY}token_type" in metadata else []
    if strange := sorted(set(types) - set(_TYPES)):
        raise ValueError(
            f"{_KEY}token_type holds {files.listed(strange, 5)}; expected 0 to 6. Convert the model again."
        )
    _refuse_unread(metadata, ("scores", "add_space_prefix", *_NEUTRAL) if model == "gpt2" else ("pre", "merges"))
    backend = builders[model](metadata, tokens, types)
    bos, eos = (_id(metadata, f"{name}_token_id", len(tokens)) for name in ("bos", "eos"))
    adds_bos = bool(metadata.get(f"{_KEY}add_bos_token", model == "llama"))  # as llama.cpp, where the file is silent
    template = metadata.get("tokenizer.chat_template")
    return backend, bos, eos, adds_bos, template if isinstance(template, str) else None


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """GPT-2's kind: pieces spell bytes in a printable alphabet, and the file lists the merges."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    rule = _rule(metadata)
    cuts: list[Any] = []
    if rule.falcon:
        cuts.append(pre_tokenizers.Punctuation(behavior="contiguous"))
    if rule.digits:
        cuts.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.pattern is not None:
        cuts.append(pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None))
    if rule.falcon:  # after the byte alphabet, as in Falcon's own tokenizer: "¼" there is a byte, yet a number
        cuts.append(pre_tokenizers.Digits(individual_digits=False))
        cuts.append(pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated"))

    merges = [_pair(merge) for merge in _list(metadata, "merges", str)]
    backend = _bpe(tokens, merges, ignore_merges=rule.ignore_merges)
    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, tokens, types)
    return backend


def _rule(metadata: Mapping[str, Any]) -> _Rule:
    name = str(metadata.get(f"{_KEY}pre", "default"))
    if name in ("default", ""):
        architecture = metadata.get("general.architecture")
        name = _RULE_OF_ARCHITECTURE.get(str(architecture), "")
        if not name:
            logging.getLogger(__name__).warning(
                "The GGUF file names no pre-tokenizer (%spre) and its architecture is %r: cutting text up as GPT-2"
                " does. Token ids may differ from the model's own; convert the model again to be sure.",
                _KEY,
                architecture,
            )
            return _GPT2
    if name not in _RULES:
        raise ValueError(
            f"{_KEY}pre is {files.shown(name)}, a pre-tokenizer this does not know. Known: default,"
            f" {', '.join(sorted(_RULES))}. Use the Hugging Face checkpoint of this model."
        )
    return _RULES[name]


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """Llama's kind: ▁ for a space, and pieces with scores: the best-scoring adjacent pair is joined first."""
    from tokenizers import decoders, normalizers

    scores = _list(metadata, "scores", float, len(tokens))
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"{_KEY}scores holds NaN or infinite values; expected finite ones. Convert the model again.")
    types = types or [1] * len(tokens)
    # Gemma's files write its runs of spaces as spaces; SentencePiece, and so the text here, as ▁.
    tokens = [
        token.replace(" ", _SPACE) if kind == _USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    _no_duplicates(tokens)
    byte_fallback = _BYTE in types
    unknown = _id(metadata, "unknown_token_id", len(tokens))
    if unknown is None and _UNKNOWN in types:
        unknown = types.index(_UNKNOWN)

    backend = _bpe(
        tokens,
        _merges_of_scores(tokens, scores, types),
        byte_fallback=byte_fallback,
        fuse_unk=True,
        unk_token=None if unknown is None else tokens[unknown],
    )
    prefix = metadata.get(f"{_KEY}add_space_prefix", True)
    if not isinstance(prefix, bool):
        raise ValueError(
            f"{_KEY}add_space_prefix is {files.shown(prefix)}; expected a boolean. Convert the model again."
        )
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    undo = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    # A user-defined token with ▁ in it is found in the normalised text. With a prefix its own normal form
    # would gain one, so it is then found only as written.
    _add_special(backend, tokens, types, normalized=not prefix)
    return backend


def _merges_of_scores(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Ranked merges that join what SentencePiece would join.

    SentencePiece joins the adjacent pair whose union scores highest; of equals, the leftmost. So every way to split
    a piece in two pieces is a merge, ranked by the score of the union. (Among the splits of one piece no order was
    found to matter in 10⁵ random trials; it is transformers', the longest left part first.)
    """
    joinable = {token: i for i, token in enumerate(tokens) if types[i] not in (_UNKNOWN, _CONTROL, _BYTE)}
    merges = []
    for token in sorted(joinable, key=lambda token: (-scores[joinable[token]], joinable[token])):
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in joinable and right in joinable:
                merges.append((left, right))
    return merges


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import models

    try:
        vocabulary = {token: i for i, token in enumerate(tokens)}
        return tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(
            f"the merges do not fit the vocabulary: {error}. The file is damaged; fetch or convert it again."
        ) from None


def _add_special(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int], normalized: bool = False) -> None:
    """Tokens that are found whole in a text before anything else is done to it."""
    from tokenizers import AddedToken

    kinds = list(zip(tokens, types, strict=True)) if types else []
    special = [token for token, kind in kinds if kind in (_UNKNOWN, _CONTROL) and token]
    plain = [token for token, kind in kinds if kind == _USER_DEFINED and token]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=normalized and _SPACE in token) for token in plain])


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise ValueError(
            f"{_KEY}merges holds {files.shown(merge)}; expected two pieces with a space between. Convert it again."
        )
    return left, right


def _no_duplicates(tokens: list[str]) -> None:
    if len(set(tokens)) != len(tokens):
        doubled = sorted(files.shown(token) for token, times in collections.Counter(tokens).items() if times > 1)
        raise ValueError(f"{_KEY}tokens holds these more than once: {files.listed(doubled)}. Convert the model again.")


def _list(metadata: Mapping[str, Any], name: str, kind: type, length: int | None = None) -> list[Any]:
    value = metadata.get(_KEY + name)
    sound = isinstance(value, list | tuple) and all(type(item) is kind for item in value)  # True is no number
    if not sound or not value or (length is not None and len(value) != length):
        got = f"{len(value)} items" if isinstance(value, list | tuple) else files.shown(value)
        raise ValueError(
            f"{_KEY}{name} is {got}; expected {length or 'some'} of type {kind.__name__}. Convert the model again."
        )
    return list(value)


def _id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    value = metadata.get(_KEY + name)
    if value is not None and not (type(value) is int and 0 <= value < count):
        raise ValueError(
            f"{_KEY}{name} is {files.shown(value)}; expected a token id below {count}. Convert the model again."
        )
    return value


def _refuse_unread(metadata: Mapping[str, Any], unused: Collection[str]) -> None:
    """Refuses keys that nothing reads and that could change what a text becomes; the `unused` do not here."""
    unread = []
    for key in metadata:
        name = key.removeprefix(_KEY)
        if name == key or name in _READ or name in unused or _NO_EFFECT.fullmatch(name):
            continue
        if not any(metadata[key] == value for value in _NEUTRAL.get(name, ())):
            unread.append(f"{files.printable(key)} = {files.shown(metadata[key])}")
    if unread:
        raise ValueError(
            "tokenizer metadata that is not implemented and could change the result:"
            f" {files.listed(sorted(unread), 5)}. Use the Hugging Face checkpoint of this model."
        )
