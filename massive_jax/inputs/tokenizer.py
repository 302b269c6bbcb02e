"""Text to token ids and back, from a GGUF file or a Hugging Face directory.

Both become a `tokenizers.Tokenizer` (the Rust library that Hugging Face's fast tokenizers wrap).
"""

from __future__ import annotations

import functools
import itertools
import logging
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from massive_jax import files
from massive_jax.inputs import tokenizer_directory

if TYPE_CHECKING:
    import tokenizers

_LOG = logging.getLogger(__name__)
_SPACE = "▁"  # how SentencePiece writes a space
has_tokenizer = tokenizer_directory.has_tokenizer


class Tokenizer:
    """Turns text into token ids and back.

    Attributes:
      bos_id: the token that begins a text; None where the model has none.
      eos_id: the token that ends a text; None where the model has none.
      chat_template: the Jinja template that makes a text of a conversation; None where the model has none.

    Args:
      backend: does the work; or what builds it, called when the tokenizer is first used. It is taken over: its
        truncation and padding are switched off.
      bos_id: as above.
      eos_id: as above.
      adds_bos: see the property; None for what the backend does when it is asked to add special tokens.
      chat_template: as above.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer | Callable[[], tokenizers.Tokenizer],
        bos_id: int | None = None,
        eos_id: int | None = None,
        adds_bos: bool | None = None,
        chat_template: str | None = None,
    ):
        self._given = backend
        if not callable(backend):
            _ = self._backend
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.chat_template = chat_template
        self._adds_bos = adds_bos

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Tells whether the model was made to have BOS in front of every text; `encode` adds none all the same."""
        if self.bos_id is None or self._adds_bos is not None:
            return self.bos_id is not None and bool(self._adds_bos)
        return self._backend.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Gives the ids of the special tokens: those that are no text."""
        return frozenset(id for id, added in self._backend.get_added_tokens_decoder().items() if added.special)

    @functools.cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        backend = self._given() if callable(self._given) else self._given
        backend.no_truncation()  # a tokenizer.json may ask for either; both would silently change a text
        backend.no_padding()
        return backend

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Builds the tokenizer that a GGUF file describes.

        Args:
          metadata: the file's, with its "tokenizer.ggml.…" keys.

        Raises:
          ValueError: keys are missing, contradict each other, or name a kind of tokenizer this cannot rebuild.
        """
        from massive_jax.inputs import gguf_tokenizer

        return cls(*gguf_tokenizer.build(metadata))

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads the tokenizer of a Hugging Face directory: tokenizer.json, or older files through transformers.

        What the files beside it say (added tokens, `add_prefix_space` …) counts as in transformers 5; see
        `massive_jax.inputs.tokenizer_directory`.

        Raises:
          ValueError: there is none, or its files cannot be used, or contradict each other.
        """
        return cls(
            *tokenizer_directory.read_directory(
                files.existing_path(path, "Tokenizer directory", tokenizer_directory.FILES)
            )
        )

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """Makes the tokenizer whose tokens are the 256 bytes: the id of each is its value. No special tokens.

        Examples:
          >>> from massive_jax.inputs.tokenizer import Tokenizer
          >>> tokenizer = Tokenizer.of_bytes()
          >>> tokenizer.encode("Hi!"), tokenizer.decode([72, 105])
          ([72, 105, 33], 'Hi')
        """
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        backend = tokenizers.Tokenizer(models.BPE(vocab=dict(_byte_of_character()), merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        """Turns a text into ids, with no special tokens added.

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
        """Turns several texts into ids as `encode` does, on all processors; for its errors see there.

        Bytes that vanish are not logged.
        """
        try:
            return [found.ids for found in self._backend.encode_batch(list(texts), add_special_tokens=False)]
        except (TypeError, UnicodeError):
            return [self.encode(text) for text in texts]  # raises for the text that is wrong

    def decode(self, ids: Iterable[int]) -> str:
        """Turns ids into their text, special tokens included.

        Bytes that are not UTF-8 (half a character) come out as U+FFFD, as in Hugging Face. An added token comes out as
        its text, also where that has letters which stand for bytes in the ordinary vocabulary (Hugging Face takes the
        added token "é" for a byte). Spaces in front of punctuation stay, whatever `clean_up_tokenization_spaces` says.

        Raises:
          ValueError: not integers, or out of range.
        """
        try:
            wanted = [self._checked(token) for token in ids]
        except TypeError:
            raise ValueError(f"expected a one-dimensional sequence of token ids, got {type(ids).__name__}.") from None
        if self._misread.isdisjoint(wanted):
            return self._backend.decode(wanted, skip_special_tokens=False)
        text = []
        for added, run in itertools.groupby(wanted, self._misread.__contains__):
            if added:
                text += [self._added[token] for token in run]
            else:
                text.append(self._backend.decode(list(run), skip_special_tokens=False))
        return "".join(text)

    def chat(self, messages: Sequence[Mapping[str, str]], *, reply: bool = True) -> str:
        """Makes a text of a conversation, by the model's chat template.

        Args:
          messages: of each its "role" and "content".
          reply: whether the text ends where the model is to answer; else it ends with the last message, unfinished.

        Raises:
          ValueError: there is no chat template, or it does not take these messages.
        """
        if self.chat_template is None:
            raise ValueError("the tokenizer has no chat template; give the text as the model was trained on it.")
        from transformers.utils.chat_template_utils import render_jinja_template

        ends = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        options: dict[str, Any] = {name: "" if id is None else self.token_text(id) for name, id in ends.items()}
        options |= {"add_generation_prompt": reply, "continue_final_message": not reply}
        try:
            found = render_jinja_template(
                [[dict(message) for message in messages]], chat_template=self.chat_template, **options
            )
        except Exception as error:  # templates raise what they like
            raise ValueError(f"the chat template does not take these messages: {files.one_line(error)}") from None
        return found[0][0]

    def token_text(self, token: int) -> str:
        r"""Gives the text of one token, for labels: " the", "\n"; a byte that is no character by itself as "<0xE2>".

        An added token's is its text as it was added. Where a label goes to a terminal, see `files.printable`.

        Raises:
          ValueError: not an integer, or out of range.
        """
        token = self._checked(token)
        if (text := self._added.get(token)) is not None:
            # Gemma's runs of spaces are added tokens and pieces: a text's spaces become them.
            return text.replace(_SPACE, " ") if self._is_piece(text) and not self._is_byte_level else text
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
        """Gives one more than the largest id. A model's embedding may have more rows than this, as padding."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def to_json(self) -> dict[str, Any]:
        """Writes everything about it as plain JSON, for `from_json`."""
        stored = {"tokenizer": self._backend.to_str(), "bos_id": self.bos_id, "eos_id": self.eos_id}
        # The package's own text does not hold this.
        stored |= {"split_special_tokens": True} if self._backend.encode_special_tokens else {}
        more = {"adds_bos": self._adds_bos, "chat_template": self.chat_template}
        return stored | {name: value for name, value in more.items() if value is not None}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Tokenizer:
        """Reads the tokenizer that `to_json` wrote; built when it is first used, which takes a tenth of a second.

        Raises:
          ValueError: `stored` is not what `to_json` writes. A damaged tokenizer inside it is one at the first use.
        """
        if not isinstance(stored, Mapping) or not {"tokenizer", "bos_id", "eos_id"} <= stored.keys():
            raise ValueError("the stored tokenizer cannot be read: it lacks tokenizer, bos_id or eos_id.")

        def build() -> tokenizers.Tokenizer:
            import tokenizers

            try:
                backend = tokenizers.Tokenizer.from_str(stored["tokenizer"])
                backend.encode_special_tokens = stored.get("split_special_tokens", False)
            except Exception as error:  # the tokenizers package raises bare Exception
                raise ValueError(
                    f"the stored tokenizer cannot be read: {files.one_line(error)}. Convert the model again."
                ) from None
            return backend

        more = stored.get("adds_bos"), stored.get("chat_template")
        return cls(build, stored["bos_id"], stored["eos_id"], *more)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json`; it does not hold `bos_id` and `eos_id`.

        Raises:
          ValueError: the file cannot be written.
        """
        try:
            files.as_path(path).write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        except (OSError, TypeError) as error:
            raise ValueError(f"the tokenizer cannot be written to {path!r}: {error}.") from None

    def save_directory(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer's files to a directory: tokenizer.json, and tokenizer_config.json beside it.

        `from_directory`, and transformers, read them. What else a model's own files say is not part of a `Tokenizer`.

        Raises:
          ValueError: the files cannot be written.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # which takes tokenizer.json as it is
            "clean_up_tokenization_spaces": False,
        }
        for name, token in (("bos_token", self.bos_id), ("eos_token", self.eos_id)):
            config[name] = None if token is None else self._backend.id_to_token(token)
        if self._backend.encode_special_tokens:
            config["split_special_tokens"] = True
        more = {"add_bos_token": self._adds_bos, "chat_template": self.chat_template}
        config |= {name: value for name, value in more.items() if value is not None}
        self.save(files.as_path(path) / tokenizer_directory.JSON)
        files.write_json(files.as_path(path) / tokenizer_directory.CONFIG, config)

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
        return frozenset(byte for character, byte in alphabet if not self._is_piece(character))

    @functools.cached_property
    def _added(self) -> dict[int, str]:
        """The added tokens' texts by id."""
        return {token: added.content for token, added in self._backend.get_added_tokens_decoder().items()}

    @functools.cached_property
    def _misread(self) -> frozenset[int]:
        """The added tokens that a byte-level decoder takes for bytes."""
        if not self._is_byte_level:
            return frozenset()
        table = _byte_of_character()
        return frozenset(
            token
            for token, text in self._added.items()
            if all(c in table for c in text) and bytes(table[c] for c in text) != text.encode()
        )

    def _is_piece(self, text: str) -> bool:
        """Whether the vocabulary has a token, apart from the added ones."""
        return self._backend.model.token_to_id(text) is not None

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        """Whether pieces spell bytes in GPT-2's alphabet."""
        decoder = self._backend.decoder
        return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


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
