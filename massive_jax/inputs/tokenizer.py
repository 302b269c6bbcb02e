"""Text to token ids and back, from a GGUF file or a Hugging Face directory.

Both become a `tokenizers.Tokenizer` (the Rust library that Hugging Face's fast tokenizers wrap).
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from massive_jax import files

if TYPE_CHECKING:
    import tokenizers

_LOG = logging.getLogger(__name__)
_SPACE = "▁"  # how SentencePiece writes a space
_JSON = "tokenizer.json"
# Files that transformers can build a tokenizer from where there is no tokenizer.json: any one of these sets.
_SLOW = (("tokenizer.model",), ("spiece.model",), ("vocab.json", "merges.txt"))


class Tokenizer:
    """Text ↔ token ids.

    Attributes:
      bos_id, eos_id: the tokens that begin and end a text; None where the model has none.

    Args:
      backend: does the work; or what builds it, called when the tokenizer is first used. It is taken over: its
        truncation and padding are switched off.
      bos_id, eos_id: as above.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer | Callable[[], tokenizers.Tokenizer],
        bos_id: int | None = None,
        eos_id: int | None = None,
    ):
        self._given = backend
        if not callable(backend):
            _ = self._backend
        self.bos_id = bos_id
        self.eos_id = eos_id

    @functools.cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        backend = self._given() if callable(self._given) else self._given
        backend.no_truncation()  # a tokenizer.json may ask for either; both would silently change a text
        backend.no_padding()
        return backend

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer a GGUF file describes.

        Args:
          metadata: the file's, with its "tokenizer.ggml.…" keys.

        Raises:
          ValueError: keys are missing, contradict each other, or name a kind of tokenizer this cannot rebuild.
        """
        from massive_jax.inputs import gguf_tokenizer

        return cls(*gguf_tokenizer.build(metadata))

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a Hugging Face directory: `tokenizer.json`, or the older files through transformers.

        Raises:
          ValueError: there is none, or its files cannot be used.
        """
        directory = files.existing_path(path, "Tokenizer directory")
        if (directory / _JSON).is_file():
            backend = _from_json(directory / _JSON)
        elif has_tokenizer(directory):
            backend = _from_transformers(directory)
        else:
            raise ValueError(
                f"tokenizer missing: {directory} has none of {_JSON}, {', '.join('+'.join(s) for s in _SLOW)}."
                " Copy them from the model's page into the directory."
            )
        return cls(backend, *(_special_id(directory, name, backend) for name in ("bos", "eos")))

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """The tokenizer whose tokens are the 256 bytes: the id of each is its value. It has no special tokens."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        backend = tokenizers.Tokenizer(models.BPE(vocab=dict(_byte_of_character()), merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with no special tokens added.

        Two things are as in Hugging Face. A special token written out in the text ("<|endoftext|>") becomes that
        token. Bytes that the vocabulary has no token for vanish (SmolLM's lacks 21 of the 256); that is logged.

        Raises:
          ValueError: not a string, or one that is not Unicode text (a lone surrogate).
        """
        if not isinstance(text, str):
            raise ValueError(f"expected a string to tokenize, got {type(text).__name__}. Tokenize texts one by one.")
        try:
            if self._missing_bytes and (lost := self._missing_bytes.intersection(text.encode())):
                _LOG.warning(
                    "The vocabulary has no token for the bytes %s: the text loses them.",
                    ", ".join(f"0x{byte:02X}" for byte in sorted(lost)),
                )
            return self._backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError):
            raise ValueError(
                f"text {text[:40]!r} is not valid Unicode (it holds half a surrogate pair). Decode it with"
                " errors='replace'."
            ) from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, each as `encode` gives them, on all processors; for its errors see there.

        Bytes that vanish are not logged.
        """
        try:
            return [found.ids for found in self._backend.encode_batch(list(texts), add_special_tokens=False)]
        except (TypeError, UnicodeError):
            return [self.encode(text) for text in texts]  # raises for the text that is wrong

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, special tokens included.

        Bytes that are not UTF-8 (half a character) come out as U+FFFD, as in Hugging Face.

        Raises:
          ValueError: not integers, or out of range.
        """
        try:
            wanted = [self._checked(token) for token in ids]
        except TypeError:
            raise ValueError(f"expected a one-dimensional sequence of token ids, got {type(ids).__name__}.") from None
        return self._backend.decode(wanted, skip_special_tokens=False)

    def token_text(self, token: int) -> str:
        r"""The text of one token, for labels: " the", "\n"; a byte that is no character by itself as "<0xE2>".

        Raises:
          ValueError: not an integer, or out of range.
        """
        token = self._checked(token)
        piece = self._backend.id_to_token(token)
        if piece is None:  # a hole: ids need not be contiguous
            return f"<id {token}>"
        if self._is_byte_level:
            table = _byte_of_character()
            if all(character in table for character in piece):
                return _show(bytes(table[character] for character in piece))
            return piece
        if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
            return _show(bytes([int(byte[1], 16)]))
        return piece.replace(_SPACE, " ")

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id. A model's embedding may have more rows than this, as padding."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def to_json(self) -> dict[str, Any]:
        """Everything about it as plain JSON, for `from_json`."""
        return {"tokenizer": self._backend.to_str(), "bos_id": self.bos_id, "eos_id": self.eos_id}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that `to_json` wrote; built when it is first used, which takes a tenth of a second.

        Raises:
          ValueError: `stored` is not what `to_json` writes. A damaged tokenizer inside it is one at the first use.
        """
        if not isinstance(stored, Mapping) or not {"tokenizer", "bos_id", "eos_id"} <= stored.keys():
            raise ValueError("the stored tokenizer cannot be read: it lacks tokenizer, bos_id or eos_id.")

        def build() -> tokenizers.Tokenizer:
            import tokenizers

            try:
                return tokenizers.Tokenizer.from_str(stored["tokenizer"])
            except Exception as error:  # the tokenizers package raises bare Exception
                raise ValueError(f"the stored tokenizer cannot be read: {error}. Convert the model again.") from None

        return cls(build, stored["bos_id"], stored["eos_id"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json`; it does not hold `bos_id` and `eos_id`.

        Raises:
          ValueError: the file cannot be written.
        """
        try:
            Path(path).write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        except (OSError, TypeError) as error:
            raise ValueError(f"the tokenizer cannot be written to {path!r}: {error}.") from None

    def _checked(self, token: object) -> int:
        try:
            number = operator.index(cast("int", token))
        except TypeError:
            raise ValueError(f"token id {token!r} is not an integer.") from None
        if not 0 <= number < self.vocab_size:
            raise ValueError(f"token id {number} is out of range; this tokenizer has 0 to {self.vocab_size - 1}.")
        return number

    @functools.cached_property
    def _missing_bytes(self) -> frozenset[int]:
        """The bytes that a byte-level vocabulary has no token for: usually none."""
        if not self._is_byte_level:
            return frozenset()
        alphabet = _byte_of_character().items()
        return frozenset(byte for character, byte in alphabet if self._backend.token_to_id(character) is None)

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        """Whether pieces spell bytes in GPT-2's alphabet."""
        decoder = self._backend.decoder
        return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def has_tokenizer(directory: Path) -> bool:
    """Whether a Hugging Face directory holds the files of a tokenizer."""
    return any(all((directory / name).is_file() for name in files) for files in ((_JSON,), *_SLOW))


def _from_json(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(
            f"{path} is not a tokenizer the tokenizers package ({tokenizers.__version__}) can read: {error}."
            " Copy it again from the model's page, or update tokenizers."
        ) from None


def _from_transformers(directory: Path) -> tokenizers.Tokenizer:
    """A tokenizer from SentencePiece or vocab.json + merges.txt files; which class is transformers' business."""
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
        )
        backend = getattr(found, "backend_tokenizer", None)
    except Exception as error:
        raise ValueError(
            f"transformers cannot build the tokenizer in {directory}: {error} Add the model's {_JSON} to the directory."
        ) from None
    if backend is None:
        raise ValueError(
            f"{directory}: transformers has only a Python tokenizer for it ({type(found).__name__}); add the"
            f" model's {_JSON} to the directory."
        )
    return backend


def _special_id(directory: Path, name: str, backend: tokenizers.Tokenizer) -> int | None:
    """The id of the "bos" or "eos" token.

    From the first file that speaks of it, in the order transformers uses. One that says null ends the search:
    Qwen2's tokenizer has no BOS, although its config.json gives an id for one.
    """
    for file, key in (
        ("tokenizer_config.json", f"{name}_token"),
        ("special_tokens_map.json", f"{name}_token"),
        ("config.json", f"{name}_token_id"),
    ):
        settings = _optional_json(directory / file)
        if key not in settings:
            continue
        value = settings[key]
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, list):  # several EOS ids: the first is the text's own end
            value = value[0] if value else None
        token = backend.token_to_id(value) if isinstance(value, str) else value
        if value is None:
            return None
        # bool is an int to Python; from 2³² on the library would raise OverflowError.
        sound = isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 1 << 32
        if token is None or not sound or backend.id_to_token(token) is None:
            raise ValueError(
                f"{directory / file}: {key} is {value!r}, which is no token of the tokenizer beside it."
                " Copy both from the same revision."
            )
        return token
    return None


def _optional_json(path: Path) -> dict[str, Any]:
    return files.read_json_object(path) if path.is_file() else {}


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, every other byte for a character from 256 on.

    Source: `bytes_to_unicode` in OpenAI's gpt-2 `encoder.py`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _show(raw: bytes) -> str:
    """Bytes as text, those that are not UTF-8 as <0xNN>."""
    text = raw.decode("utf-8", errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>", text)
