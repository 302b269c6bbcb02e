import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from massive_jax import files
from massive_jax.files import atomic_write, locked, read_json, write_json


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".csv"
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["table.csv"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    target = tmp_path / "new" / "results"
    with locked(target):
        assert not target.exists()
        with pytest.raises(ValueError, match="results' is being written by another process"), locked(str(target)):
            pass
        with locked(target.parent / "others"):
            pass
    with locked(target):
        pass
    with pytest.raises(KeyError), locked(target):
        raise KeyError
    with locked(target):
        pass
    assert os.listdir(tmp_path / "new") == []


def test_a_killed_process_holds_no_lock(tmp_path):
    program = """
import sys
from massive_jax.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "it")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process"), locked(tmp_path / "it"):
            pass
        other.kill()
    assert os.listdir(tmp_path) == [".it.lock"]
    with locked(tmp_path / "it"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file/it' cannot be written: no lock at"), locked(tmp_path / "file" / "it"):
        pass


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    write_json(tmp_path / "ours.json", {})
    assert (tmp_path / "ours.json").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a directory"), atomic_write(tmp_path):
        pass


@dataclasses.dataclass(frozen=True)
class _Found:
    value: float
    token: str


def test_json_is_standard_and_keeps_what_is_not_finite_in_a_note(tmp_path):
    path = tmp_path / "result.json"
    result = {
        "perplexity": {"zero": math.inf, "a/b~": -math.inf, "mean": 23.8},
        "tops": np.array([1.0, np.nan], np.float32),
        "half": ml_dtypes.bfloat16(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "found": (_Found(206.1, "中\ud83d\n"),),
        "path": pathlib.Path("a"),
        "dims": {507, 14},
    }
    write_json(path, result)

    def refuse(constant):
        raise AssertionError(constant)

    text = path.read_text(encoding="utf-8")
    plain = json.loads(text, parse_constant=refuse)
    assert plain[files.NON_FINITE] == {
        "/perplexity/zero": "inf",
        "/perplexity/a~1b~0": "-inf",
        "/tops/1": "nan",
    }
    assert plain["perplexity"]["zero"] is None
    assert "中" in text
    back = read_json(path)
    assert math.isnan(back["tops"].pop())
    assert back == {
        "perplexity": {"zero": math.inf, "a/b~": -math.inf, "mean": 23.8},
        "tops": [1.0],
        "half": 0.5,
        "count": 3,
        "flag": True,
        "found": [{"value": 206.1, "token": "中\ud83d\n"}],
        "path": "a",
        "dims": [14, 507],
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "\xff", "[" * 9999, '{"non_finite": [1]}', '{"non_finite": {"": 1}}'),
        *('{"non_finite": {"/a/b": "inf"}, "b": 1}', '{"a": [1], "non_finite": {"/a/7": "inf"}}'),
        '{"a": 1, "non_finite": {"/a": "x"}}',
    ],
)
def test_json_that_is_damaged_is_refused_by_the_files_name(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"a.json is damaged, or no result: .+\. Make it again\.$"):
        read_json(path)


def test_json_has_no_note_when_all_is_finite(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None, "x"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5, None, "x"]}


@pytest.mark.parametrize(
    ("obj", "error", "words"),
    [
        ({"a": [object()]}, TypeError, "/a/0"),
        ({"a": {(1, 2): 3}}, TypeError, "key of type tuple at /a"),
        ({1: 2, "1": 3}, ValueError, "both '1'"),
        ({"non_finite": 1, "x": math.nan}, ValueError, "reserved"),
    ],
)
def test_what_is_not_json_is_refused_by_name_and_nothing_is_written(tmp_path, obj, error, words):
    with pytest.raises(error, match=words):
        write_json(tmp_path / "a.json", obj)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\r\n\t\0\x7f\x9b", r"\r\n\t\x00\x7f\x9b"),
        ("user\u202enimda\u2066\u2028\ufeff", r"user\u202enimda\u2066\u2028\ufeff"),
        ("\ud83d", r"\ud83d"),
        ("é 中 🙂 👩\u200d🚀 \\ \u00a0 👍", "é 中 🙂 👩\u200d🚀 \\ \u00a0 👍"),
        (pathlib.Path("a\nb"), r"a\nb"),
    ],
)
def test_what_steers_a_terminal_is_escaped_and_nothing_else(text, shown):
    assert files.printable(text) == shown
    assert files.printable(shown) == shown


def test_line_ends_of_a_message_are_kept_on_demand():
    assert files.printable("one\ntwo\x1b\r", keep="\n") == "one\ntwo\\x1b\\r"


def test_offenders_and_other_libraries_messages_are_escaped_and_on_one_line():
    assert files.listed(["a\x1b[2J", "b\n"]) == r"a\x1b[2J, b\n"
    assert files.one_line("two\n  lines.\x1b.") == r"two lines.\x1b"
    assert files.one_line(MemoryError()) == "MemoryError"
    assert files.one_line("x" * 1000, 10) == "x" * 9 + "…"


def test_where_no_file_can_be_made_nobody_else_is_blamed():
    with pytest.raises(ValueError, match=r"^'/proc/x' cannot be written: no lock at '/proc/.x.lock': [^\n]+\.$"):
        files.locked("/proc/x").__enter__()


def test_what_another_process_writes_is_not_kept(tmp_path):
    with files.discarding():
        files.write_json(tmp_path / "a" / "b.json", {})
        files.write_arrays(tmp_path / "c.npz", x=np.zeros(2))
        with files.atomic_directory(tmp_path / "d") as directory, files.locked(tmp_path / "d"):
            (directory / "e").touch()
        with files.locked(tmp_path / "d"), files.atomic_write(tmp_path / "f.txt") as path:
            assert (path.name, path.read_bytes()) == ("f.txt", b"")
    assert not list(tmp_path.iterdir())
    files.write_json(tmp_path / "b.json", {})
    assert files.read_json(tmp_path / "b.json") == {}
