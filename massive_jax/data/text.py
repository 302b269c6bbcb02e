"""Text to measure or train on: a file, a named dataset, prose that every CPython ships, or a made-up language."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from massive_jax.arguments import shown
from massive_jax.data.backcopy import backcopy_text, multicopy_text
from massive_jax.data.prose import PINNED, checksum, prose
from massive_jax.files import as_path, is_directory, is_file, local, one_line, size_of

# Prose that needs no download, about 84,000 characters: see `massive_jax.data.prose`.
BUILT_IN = "python"
# Made here: see `massive_jax.data.backcopy`.
MADE_UP = {"backcopy": backcopy_text, "multicopy": multicopy_text}
_MADE_UP_LENGTH = 1_000_000
_MOST_BYTES = 1 << 33  # of a file: it is read whole, and its tokens take four bytes each


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Names a text dataset on the hub.

    Attributes:
      hub_id: repository.
      config: configuration of the repository, or None.
      split: which split to read.
      column: which column holds the text.
      join: what to put between rows.
      files: data files to read, for a repository too large to read whole.
      rows: how many rows to read; None for all.
    """

    hub_id: str
    config: str | None
    split: str
    column: str
    join: str
    files: str | None = None
    rows: int | None = None


# The paper's three texts (section 3.1): the whole WikiText-2 test set, and beginnings of the two large ones.
# PG-19 from its Parquet mirror: deepmind/pg19 is a loading script, which `datasets` 4 and later do not run.
DATASETS: Mapping[str, Dataset] = {
    "wikitext2": Dataset("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text", "\n\n"),
    "c4": Dataset("allenai/c4", None, "train", "text", " ", files="en/c4-validation.00000-of-00008.json.gz", rows=1100),
    "pg19": Dataset("emozilla/pg19", None, "validation", "text", "\n\n", rows=10),
}


def load_text(name: str | os.PathLike[str] = BUILT_IN) -> str:
    """Loads the text called `name`.

    Args:
      name: "python" (English paragraphs of the reference that CPython ships), "backcopy" or "multicopy" (a million
        characters of a made-up language), a dataset ("wikitext2", "c4", "pg19"), a dataset with the
        directory of a local copy in the hub's layout ("wikitext2:/data/wikitext"), or the path of a UTF-8 file; a
        byte-order mark at its start is no part of the text.

    Raises:
      ValueError: no such file or dataset, a file that is not UTF-8 or larger than 8 GiB, an empty text, no network and
        no local copy.
    """
    if not isinstance(name, str | os.PathLike) or not isinstance(os.fspath(name), str):
        raise ValueError(f"expected the name of a text or the path of a file, got {shown(name)}.")
    name = os.fspath(name)
    dataset, _, directory = name.partition(":")
    if name == BUILT_IN:
        text = prose()
    elif name in MADE_UP:
        text = MADE_UP[name](_MADE_UP_LENGTH)
    elif dataset in DATASETS:
        text = _from_dataset(DATASETS[dataset], dataset, directory or None)
    else:
        text = _from_file(name)
    if not text.strip():
        raise ValueError(f"the text {name!r} is empty.")
    return text


def text_name(name: str) -> str:
    """Gives what results call the text `name`: the built-in one of a Python that lacks some of it has a checksum too.

    So results of two machines that both say "python" are on the same text.
    """
    if name != BUILT_IN or (found := checksum(prose())) == PINNED:
        return name
    return f"{name} (sha256 {found})"


def _from_file(name: str) -> str:
    path = as_path(os.path.expanduser(name))
    if not is_file(path):  # a pipe neither: reading it waits for a writer
        raise ValueError(
            f"no text file {name!r}; give the path of a UTF-8 file, {BUILT_IN!r}, or a dataset: {', '.join(DATASETS)}."
        )
    try:
        if (size := size_of(path)) > _MOST_BYTES:
            raise ValueError(f"{name} has {size / 2**30:.1f} GiB; give a text of up to {_MOST_BYTES >> 30}.")
        text = local(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text (byte {error.start}); convert it first.") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}.") from None
    except MemoryError:
        raise ValueError(f"{name} has {size / 2**30:.1f} GiB, more than memory holds; give a part of it.") from None
    if "\0" in text:  # UTF-16 without a mark, say
        raise ValueError(f"{name} holds null characters: it is binary, or not UTF-8 text; convert it first.")
    return text


def _from_dataset(dataset: Dataset, name: str, directory: str | None) -> str:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"the text {name!r} needs the package 'datasets': pip install massive_jax[data].") from None
    if directory is not None and not is_directory(as_path(os.path.expanduser(directory))):
        raise ValueError(f"no directory {directory!r} with a copy of {dataset.hub_id}.")
    split = dataset.split if dataset.rows is None else f"{dataset.split}[:{dataset.rows}]"
    options: dict[str, Any] = {"split": split}
    if dataset.files is not None:
        options["data_files"] = {dataset.split: dataset.files}
    location = str(local(os.path.expanduser(directory))) if directory else dataset.hub_id
    try:
        rows = datasets.load_dataset(location, dataset.config, **options)
    except Exception as error:  # `datasets` raises dozens of types; each of them means the text cannot be had
        raise ValueError(
            f"the dataset {name!r} ({location}) cannot be loaded: {type(error).__name__}: {one_line(error)}. "
            f"With no network, give a local copy in the hub's layout: {name}:DIRECTORY."
        ) from None
    return dataset.join.join(rows[dataset.column])
