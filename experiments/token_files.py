"""Texts as the token files that a training reads; apart from prepare_data, whose flags are nobody else's."""

from __future__ import annotations

from experiments.tables import progress as progress_bar
from massive_jax.data import load_text, text_name
from massive_jax.files import Path
from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.loading import open_source
from massive_jax.train import TokenFile, prepare_tokens

BYTES = "bytes"  # the tokenizer that needs no model


def prepare(name: str, tokenizer: str, out: Path, words: str | None = None) -> TokenFile:
    """Makes the token file `out` of the text called `name` where it is not there; see `prepare_tokens` for the errors.

    `words` is that text, where it has been read.
    """
    words, called = load_text(name) if words is None else words, text_name(name)
    if tokenizer == BYTES:
        made_by = Tokenizer.of_bytes()
    else:
        with open_source(tokenizer) as source:
            made_by = source.tokenizer()
    if made_by is None:
        raise ValueError(f"--tokenizer={tokenizer}: that model has no tokenizer.")
    with progress_bar(len(words), "tokenising") as progress:
        return prepare_tokens(words, out, made_by, text_name=called, tokenizer_name=tokenizer, progress=progress)
