import gzip
import json
import os
import re
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from massive_jax.data import DATASETS, load_text
from massive_jax.data import text as module

LINES = ["", " = Title = \n", " One sentence . \n", "", " Another , déjà vu . \n"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, and a cache of its own."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_built_in_text_is_long_english_prose():
    text = load_text()
    assert text == load_text("python")
    assert len(text) > 80_000
    words = text.split()
    assert sum(word in ("the", "a", "of", "is", "to") for word in words) > 0.15 * len(words)
    assert not re.search(r"^[ \t]|[ \t]$|::=|>>>|[*{}\\]", text, re.MULTILINE)


def test_a_file(tmp_path):
    path = tmp_path / "some text.txt"
    path.write_text("Größe\n", encoding="utf-8")
    assert load_text(str(path)) == "Größe\n"


def test_a_file_whose_name_starts_like_a_dataset_is_reached_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "c4.txt").write_text("x", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_text("c4.txt") == "x"


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"the text '.*empty\.txt' is empty"):
        load_text(str(path))


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text \(byte 2\)"):
        load_text(str(path))


@pytest.mark.parametrize("name", ["nowhere.txt", "wikitext", "", "/"])
def test_no_such_text(name):
    with pytest.raises(
        ValueError, match=r"no text file .*; give the path .*'python', or a dataset: wikitext2, c4, pg19"
    ):
        load_text(name)


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)


@pytest.fixture
def wikitext(tmp_path):
    """A copy of the repository Salesforce/wikitext, with two of its configurations."""
    directory = tmp_path / "wikitext"
    entries = []
    for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        for split in ("test", "train"):
            rows = LINES if (config, split) == ("wikitext-2-raw-v1", "test") else [f"{config} {split}\n"]
            write_parquet(directory / config / f"{split}-00000-of-00001.parquet", rows)
        files = "\n".join(f"  - split: {split}\n    path: {config}/{split}-*" for split in ("test", "train"))
        entries.append(f"- config_name: {config}\n  data_files:\n{files}\n")
    (directory / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n# WikiText\n")
    return directory


def test_a_local_copy_of_wikitext(wikitext):
    assert load_text(f"wikitext2:{wikitext}") == "\n\n".join(LINES)


def test_a_local_copy_of_c4_is_cut_to_its_first_rows(tmp_path):
    (tmp_path / "c4" / "en").mkdir(parents=True)
    with gzip.open(tmp_path / "c4" / "en" / "c4-validation.00000-of-00008.json.gz", "wt") as file:
        for i in range(1200):
            file.write(json.dumps({"text": f"row{i}", "url": "u", "timestamp": "2019-04-25T12:57:54Z"}) + "\n")
    words = load_text(f"c4:{tmp_path / 'c4'}").split(" ")
    assert len(words) == DATASETS["c4"].rows == 1100
    assert words[::1099] == ["row0", "row1099"]


def test_a_local_copy_of_pg19(tmp_path):
    write_parquet(tmp_path / "pg19" / "data" / "validation-00000-of-00001.parquet", [f"book {i}" for i in range(12)])
    assert load_text(f"pg19:{tmp_path / 'pg19'}") == "\n\n".join(f"book {i}" for i in range(10))


def test_a_local_copy_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no directory '.*nowhere' with a copy of Salesforce/wikitext"):
        load_text(f"wikitext2:{tmp_path / 'nowhere'}")


def test_a_local_copy_that_is_something_else(tmp_path):
    (tmp_path / "notes.md").write_text("nothing here")
    with pytest.raises(ValueError, match=r"the dataset 'wikitext2' \(.*\) cannot be loaded: .*give a local copy"):
        load_text(f"wikitext2:{tmp_path}")


def test_no_network_and_no_copy():
    with pytest.raises(ValueError, match=r"'wikitext2' \(Salesforce/wikitext\) cannot be loaded.*wikitext2:DIRECTORY"):
        load_text("wikitext2")


def test_without_the_package_that_reads_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package 'datasets': pip install massive_jax\[data\]"):
        load_text("pg19")


def test_only_datasets_import_the_package(tmp_path):
    code = "import sys; from massive_jax.data.text import load_text; load_text(); print('datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert module.BUILT_IN == "python"


@pytest.mark.parametrize("read", [str, lambda path: path])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, read):
    path = tmp_path / "marked.txt"
    path.write_bytes(b"\xef\xbb\xbfone\xef\xbb\xbf two")
    assert load_text(read(path)) == "one\ufeff two"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "shift-jis"])
def test_other_encodings_are_refused(tmp_path, encoding):
    path = tmp_path / "other.txt"
    path.write_bytes(("ein Fluß" if encoding == "latin-1" else "river").encode(encoding) + b"\x83\x65" * 2)
    with pytest.raises(ValueError, match=r"other\.txt (is not UTF-8|holds null characters)"):
        load_text(str(path))


@pytest.mark.parametrize("name", [None, 5, b"python", ["python"], 1.5])
def test_a_name_of_another_type(name):
    with pytest.raises(ValueError, match="expected the name of a text or the path of a file, got"):
        load_text(name)


def test_names_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for name in (tmp_path / "pipe.txt", "/dev/zero", "x" * 5000, "a\0b", "~nouser/x.txt", tmp_path):
        with pytest.raises(ValueError, match="no text file"):
            load_text(name)
    with pytest.raises(ValueError, match="no directory"):
        load_text("wikitext2:~nouser/x")


def test_a_file_larger_than_memory(tmp_path):
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"huge\.txt has 1024\.0 GiB; give a text of up to 8"):
        load_text(str(tmp_path / "huge.txt"))
