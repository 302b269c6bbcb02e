"""Text to a token file: in parallel, resumable, checksummed.

The text is cut into chunks at line ends, which are tokenised side by side, and every few of them are written as one
part, whole or not at all. Killed half-way, the next run finds the parts that are done. Where a token would have spanned
the end of a chunk it is two: once in a quarter of a megabyte at most, at places that do not depend on the machine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from massive_jax.files import Path, atomic_write, locked, read_json, remove_tree, user_path, write_json
from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.train.data import DTYPES, FORMAT, TokenFile, sidecar

_CHUNK = 1 << 18  # characters
_CHUNKS = 64  # of a part


def prepare_tokens(
    text: str,
    out: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    text_name: str,
    tokenizer_name: str,
    chunk: int = _CHUNK,
    progress: Callable[[int], Any] | None = None,
) -> TokenFile:
    """Tokenises `text` into the token file `out`, or gives the one that is there if the same work made it.

    Args:
      text: the text, whole.
      out: where the tokens go.
      tokenizer: makes them, without special tokens.
      text_name: for the record.
      tokenizer_name: for the record.
      chunk: characters of a chunk, about.
      progress: called with the number of characters done.

    Raises:
      ValueError: something else is at `out`, or another process writes there; the text has no tokens.
    """
    out = user_path(out)
    with locked(out):
        return _prepare(text, out, tokenizer, text_name, tokenizer_name, chunk, progress)


def _prepare(
    text: str,
    out: Path,
    tokenizer: Tokenizer,
    text_name: str,
    tokenizer_name: str,
    chunk: int,
    progress: Callable[[int], Any] | None,
) -> TokenFile:
    stored = tokenizer.to_json()
    of_ids = {name: value for name, value in stored.items() if name not in ("adds_bos", "chat_template")}
    fingerprint = _fingerprint(text, of_ids, chunk)
    if out.exists() or sidecar(out).exists():
        found = TokenFile.open(out)
        if found.fingerprint != fingerprint:
            raise ValueError(
                f"{out} was made from another text or tokenizer ({found.text}, {found.tokenizer_name}); name another "
                "file, or remove it."
            )
        return found
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    parts = out.with_name(out.name + ".parts")
    plan = parts / "plan.json"
    if plan.is_file() and read_json(plan) != {"fingerprint": fingerprint}:
        remove_tree(parts)  # of other work
    write_json(plan, {"fingerprint": fingerprint})
    groups = _groups(_cut(text, chunk))
    files = []
    for number, chunks in enumerate(groups):
        part = parts / f"{number:06d}.bin"
        files.append(part)
        if not part.is_file():
            ids = np.concatenate([np.asarray(ids, DTYPES[dtype]) for ids in tokenizer.encode_batch(chunks)])
            with atomic_write(part) as temporary:
                ids.tofile(temporary)
        if progress is not None:
            progress(sum(map(len, chunks)))
    digest, size = hashlib.sha256(), 0
    with atomic_write(out) as temporary, temporary.open("wb") as file:
        for part in files:
            data = part.read_bytes()
            digest.update(data)
            size += len(data)
            file.write(data)
        if not size:
            raise ValueError(f"the text {text_name!r} has no tokens.")
    made = TokenFile(
        path=out,
        dtype=dtype,
        count=size // np.dtype(DTYPES[dtype]).itemsize,
        vocab_size=tokenizer.vocab_size,
        sha256=digest.hexdigest(),
        text=text_name,
        tokenizer_name=tokenizer_name,
        tokenizer=stored,
        fingerprint=fingerprint,
    )
    made.write_sidecar()
    remove_tree(parts)
    return made


def _cut(text: str, chunk: int) -> Iterator[str]:
    """Chunks of `text` of at least `chunk` characters, each to the end of its last line."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + chunk - 1)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end


def _groups(chunks: Iterator[str]) -> Iterator[list[str]]:
    while group := list(itertools.islice(chunks, _CHUNKS)):
        yield group


def _fingerprint(text: str, tokenizer: Any, chunk: int) -> str:
    digest = hashlib.sha256(f"{FORMAT} {chunk} ".encode())
    digest.update(json.dumps(tokenizer, sort_keys=True).encode())
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
