"""What the files beside a tokenizer.json say: tokenizer_config.json, special_tokens_map.json, added_tokens.json.

They are merged as transformers 5 does (`PreTrainedTokenizerBase._from_pretrained`), and their types are checked.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from massive_jax import files
from massive_jax.arguments import shown

if TYPE_CHECKING:
    import tokenizers

CONFIG, MAP, ADDED, MODEL = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"
TEMPLATE = "chat_template.jinja"
DECLARED = "added_tokens_decoder"
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
MAX_ID = 1 << 32  # from here on the tokenizers package raises OverflowError
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")  # of an added token


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Holds what the files beside tokenizer.json say.

    Attributes:
      directory: where they are.
      values: `tokenizer_config.json`, and `special_tokens_map.json` over it where that one counts.
      origin: the file that each of `values` comes from.
      model: `config.json`.
      own: special tokens by names of the model's own, of `extra_special_tokens`.
      declared: id → added token, of `added_tokens_decoder` or else `added_tokens.json`.
      declared_in: the file that `declared` comes from.
    """

    directory: Path
    values: Mapping[str, Any]
    origin: Mapping[str, str]
    model: Mapping[str, Any]
    own: Mapping[str, Any]
    declared: dict[int, tokenizers.AddedToken] = dataclasses.field(default_factory=dict)
    declared_in: str = CONFIG

    @classmethod
    def of(cls, directory: Path) -> TokenizerSettings:
        values = _optional_json(directory / CONFIG)
        origin = dict.fromkeys(values, CONFIG)
        model = _optional_json(directory / MODEL)
        own: dict[str, Any] = {}  # special tokens with names of the model's own
        if values.get(_OLD_EXTRA) is not None and not values.get(_EXTRA):
            values[_EXTRA], origin[_EXTRA] = values.pop(_OLD_EXTRA), CONFIG
        if isinstance(values.get(_EXTRA), dict):
            own |= values.pop(_EXTRA)
        older = DECLARED not in values  # then two older files count
        for key, value in (_optional_json(directory / MAP) if older else {}).items():
            if key == _EXTRA and isinstance(value, dict):
                own |= value
                continue
            both = key == _EXTRA and isinstance(value, list) and isinstance(values.get(key), list)
            values[key], origin[key] = ([*values[key], *value] if both else value), MAP
        found = cls(directory, values, origin, model, own)
        declared = found._added() if older else found._declared()
        if _OLD_EXTRA in values and _EXTRA not in values:  # as late as transformers does it
            values[_EXTRA], origin[_EXTRA] = values.pop(_OLD_EXTRA), origin[_OLD_EXTRA]
        return dataclasses.replace(found, declared=declared, declared_in=ADDED if older else CONFIG)

    def boolean(self, key: str) -> bool | None:
        """Gives a setting that is true, false, or null, which is the same as not there."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def name(self, file: str, key: str) -> str:
        """Gives a setting of a file that is a name; "" where there is none."""
        value = (self.model if file == MODEL else self.values).get(key)
        if value is not None and not isinstance(value, str):
            raise _wrong(self.directory / file, key, value, "a name")
        return value or ""

    def chat_template(self) -> str | None:
        """Gives the template of conversations: chat_template.jinja, or the setting; of several the "default" one."""
        if (file := self.directory / TEMPLATE).is_file():
            return file.read_text(encoding="utf-8")
        found = self.values.get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        return found if isinstance(found, str) else None

    def named(self) -> dict[str, tokenizers.AddedToken]:
        """Gives the special tokens by the key that names them: "pad_token", and a model's own ("image_token")."""
        others = [
            key
            for key, value in self.values.items()
            if key.endswith("_token") and key not in NAMED and isinstance(value, str | dict)
        ]
        found = {key: self.token(key, self.values.get(key)) for key in (*NAMED, *others)}
        found |= {key: self.token(_EXTRA, value) for key, value in self.own.items()}
        return {key: token for key, token in found.items() if token is not None}

    def special(self, defaults: Mapping[str, Any] | None = None) -> list[tokenizers.AddedToken]:
        """Lists all special tokens, in the order that transformers adds them.

        Args:
          defaults: texts of tokens that count where no file speaks of them, by key.
        """
        found = self.named()
        usual = {key: value for key, value in (defaults or {}).items() if key in NAMED and isinstance(value, str)}
        silent = {key: self.token(key, value) for key, value in usual.items() if key not in self.values}
        first = [token for key in NAMED if (token := found.get(key) or silent.get(key)) is not None]
        return [*first, *(token for key, token in found.items() if key not in NAMED), *self.extra()]

    def extra(self) -> list[tokenizers.AddedToken]:
        """Gives the special tokens without a name."""
        values = self.values.get(_EXTRA)
        if values is not None and not isinstance(values, list):
            raise self.wrong(_EXTRA, values, "a list of tokens")
        found = [self.token(_EXTRA, value) for value in values or ()]
        return [token for token in found if token is not None]

    def token(self, key: str, value: object) -> tokenizers.AddedToken | None:
        """Gives a special token, given as its text, as an object with its text and flags, or not at all."""
        import tokenizers

        if value is None:
            return None
        if isinstance(value, str):
            value = {"content": value, "special": True, "normalized": False}
        if not _is_token(value):
            raise self.wrong(key, value, f"a text, or an object with content (text) and {', '.join(_FLAGS)} (booleans)")
        assert isinstance(value, dict)
        special = value.get("special", self.origin.get(key) == MAP)
        return tokenizers.AddedToken(value["content"], **_flags(value | {"special": special}))

    def wrong(self, key: str, value: object, expected: str) -> ValueError:
        """Gives the error for a setting that is not what it should be."""
        return _wrong(self.directory / self.origin.get(key, CONFIG), key, value, expected)

    def _declared(self) -> dict[int, tokenizers.AddedToken]:
        """Of `added_tokens_decoder`: {"258": {"content": "<|turn|>", "special": true, …}, …}."""
        import tokenizers

        entries = self.values[DECLARED]
        if not isinstance(entries, dict):
            raise self.wrong(DECLARED, entries, "an object with an added token for each id")
        found = {}
        for number, value in entries.items():
            if not re.fullmatch("[0-9]{1,10}", number, re.ASCII) or int(number) >= MAX_ID:
                raise self.wrong(DECLARED, number, "ids as keys: whole numbers from 0, below 2^32")
            if not _is_token(value):
                expected = f"an object with content (text) and {', '.join(_FLAGS)} (booleans)"
                raise self.wrong(f"{DECLARED}[{number}]", value, expected)
            found[int(number)] = tokenizers.AddedToken(value["content"], **_flags(value))
        return found

    def _added(self) -> dict[int, tokenizers.AddedToken]:
        """Of `added_tokens.json`: {"<|turn|>": 258, …}."""
        import tokenizers

        named = [token for key, token in self.named().items() if key in NAMED]
        special = {token.content for token in (*named, *self.extra())}
        found: dict[int, tokenizers.AddedToken] = {}
        for content, number in _optional_json(self.directory / ADDED).items():
            sound = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < MAX_ID
            if not sound or not _is_token({"content": content}):
                raise _wrong(self.directory / ADDED, content, number, "an id, a whole number from 0, below 2^32")
            if number in found:
                both = f"{found[number].content!r} and {content!r}"
                raise _wrong(self.directory / ADDED, both, number, "an id each")
            is_special = content in special
            found[number] = tokenizers.AddedToken(content, special=is_special, normalized=not is_special)
        return found


def _is_token(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("content"), str)
        and value["content"] != ""
        and not re.search("[\ud800-\udfff]", value["content"])
        and all(isinstance(value.get(flag, False), bool) for flag in _FLAGS)
    )


def _flags(value: Mapping[str, Any]) -> dict[str, bool]:
    return {flag: value[flag] for flag in _FLAGS if flag in value}


def _wrong(file: Path, key: str, value: object, expected: str) -> ValueError:
    return ValueError(
        f"{file}: {key} is {shown(value)}; expected {expected}. Copy the file again from the model's page."
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return files.read_json_object(path) if path.is_file() else {}
