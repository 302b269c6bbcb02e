import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

import massive_jax
from massive_jax import files, loading, storage
from massive_jax.data import list_images, load_text
from massive_jax.files import atomic_directory, atomic_write, locked, read_json, write_arrays, write_json
from tests.fixtures.buckets import Bucket, bucket

ROOT = pathlib.Path(massive_jax.__file__).parent.parent
BASE = "gs://results/run"

__all__ = ["bucket"]


def test_the_same_bytes_go_to_a_store_and_to_a_directory(bucket, tmp_path):
    for root in (BASE, str(tmp_path / "here")):
        write_json(f"{root}/a.json", {"x": [1.5, float("inf")]})
        write_json(files.as_path(root) / "sub" / "b.json", {"path": "ä"})
        write_arrays(f"{root}/c.npz", values=np.arange(5))
        assert read_json(f"{root}/a.json")["x"] == [1.5, float("inf")]
    here = tmp_path / "here"
    assert bucket.objects("results/run/") == {
        str(file.relative_to(here)): file.read_bytes() for file in here.rglob("*") if file.is_file()
    }


def test_what_is_cut_short_leaves_the_old_object(bucket):
    write_json(f"{BASE}/a.json", "old")
    before = bucket.objects()
    with pytest.raises(KeyboardInterrupt), atomic_write(f"{BASE}/a.json") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert bucket.objects() == before
    Bucket.fail_after.append(1)
    with pytest.raises(ValueError, match=r"^gs://results/run/a.json cannot be written: the connection broke[^\n]*$"):
        write_json(f"{BASE}/a.json", "new")
    assert bucket.objects() == before
    with pytest.raises(IsADirectoryError), atomic_write(BASE):
        pass


def test_a_directory_is_there_when_all_of_it_is(bucket):
    def write():
        with atomic_directory(f"{BASE}/model") as directory:
            for name in ("a", "config.json"):
                (directory / name).write_text(name)

    Bucket.fail_after.append(2)  # the mark, one file
    with pytest.raises(ValueError, match="cannot be written: the connection broke"):
        write()
    assert bucket.objects() == {}
    Bucket.fail_after.clear()
    # What a killed process leaves: some files, and the mark. Readers refuse it, the next writer replaces it.
    bucket.pipe({f"{BASE}/model/{name}": b"" for name in ("a", "old", storage.UNFINISHED)})
    with pytest.raises(ValueError, match="is not whole: its writer was stopped"):
        files.local(f"{BASE}/model")
    write()
    assert bucket.objects("results/run/model/") == {"a": b"a", "config.json": b"config.json"}
    with pytest.raises(ValueError, match="exists already; name another directory"):
        write()


def test_locks_in_a_store(bucket, monkeypatch):
    monkeypatch.setattr(storage, "_DEAD", 0.05)
    lock = "results/.run.lock"
    with locked(BASE):
        assert json.loads(bucket.objects()[lock])["pid"] == os.getpid()
        with (
            pytest.raises(files.HeldError, match=rf"'{BASE}' is being written by process {os.getpid()} on"),
            locked(BASE),
        ):
            pass
    assert bucket.objects() == {}
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    holders = {
        "of this machine, ended": {**storage._machine(), "pid": ended.pid},
        "of another, and silent": {"host": "another", "pids": "", "pid": 1},
    }
    for holder in holders.values():
        bucket.pipe(f"gs://{lock}", json.dumps({"id": "other", **holder, "time": "then"}).encode())
        with locked(BASE):
            assert json.loads(bucket.objects()[lock])["id"] != "other"
    assert bucket.objects() == {}


def test_a_holder_that_gives_signs_of_life_keeps_its_lock(bucket, monkeypatch):
    lock, reads = "gs://results/.run.lock", []
    alive = storage._Lease._read

    def read(self):  # renewed between two looks
        reads.append(1)
        bucket.pipe(lock, json.dumps({"id": "other", "host": "another", "pid": 7, "time": str(len(reads))}).encode())
        return alive(self)

    bucket.pipe(lock, b"{}")
    monkeypatch.setattr(storage._Lease, "_read", read)
    with pytest.raises(files.HeldError, match="by process 7 on another, which said so at 2; wait"), locked(BASE):
        pass


def test_a_lock_that_was_taken_over_is_an_error_of_its_first_holder(bucket, monkeypatch):
    monkeypatch.setattr(storage, "_RENEWED", 0.01)
    lock, leases, acquire = "gs://results/.run.lock", [], storage._Lease.acquire
    monkeypatch.setattr(storage._Lease, "acquire", lambda self: acquire(leases.append(self) or self))
    with pytest.raises(files.HeldError, match="was taken over by another process"), locked(BASE):  # noqa: PT012
        taken = json.dumps({"id": "other"}).encode()
        while not leases[0].lost:
            bucket.pipe(lock, taken)
            time.sleep(0.005)
    assert bucket.cat_file(lock) == taken  # it is the other's


def test_inputs_are_fetched_once_for_each_version(bucket, tmp_path):
    bucket.pipe(f"{BASE}/book.txt", "\ufeffone\r\ntwo".encode())
    assert load_text(f"{BASE}/book.txt") == "one\ntwo"
    first = files.local(f"{BASE}/book.txt")
    assert first == files.local(epath.Path(BASE) / "book.txt")
    assert first.is_relative_to(tmp_path / "cache" / "objects" / "gs" / "results" / "run")
    bucket.pipe(f"{BASE}/book.txt", b"other")
    assert load_text(f"{BASE}/book.txt") == "other"
    with pytest.raises(ValueError, match="no text file 'gs://results/run/none.txt'"):
        load_text(f"{BASE}/none.txt")


def test_images_and_models_are_fetched_without_the_rest(bucket, tmp_path):
    names = ("a/1.png", "b/2.JPG", "b/notes.txt")
    bucket.pipe({f"{BASE}/images/{name}": b"x" for name in names})
    found = list_images(f"{BASE}/images")
    assert ([path.name for path in found.paths], found.classes) == (["1.png", "2.JPG"], ("a", "b"))
    bucket.pipe({f"{BASE}/model/{name}": b"{}" for name in ("config.json", "pytorch_model.bin")})
    with pytest.raises(ValueError, match="has no weights"):
        loading.load(f"{BASE}/model")
    with pytest.raises(ValueError, match="gs://results/run/none holds no finished checkpoint"):
        loading.load(f"{BASE}/none")
    bucket.pipe({f"{BASE}/m-{i:05}-of-00002.gguf": b"GGUF" for i in (1, 2)})
    with pytest.raises(ValueError, match="m-00002-of-00002.gguf"):
        loading.load(f"{BASE}/m-00002-of-00002.gguf")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("foo://bucket/x", "no way to read foo:// is known; give a path on this machine, or gs://BUCKET/PATH or s3://"),
        ("file:///tmp/x", "no way to read file://"),
        ("gs://", "names no bucket; write gs://BUCKET/PATH"),
        ("gs:///x", "names no bucket"),
        ("gs://bucket/x", "needs the package gcsfs: pip install gcsfs"),
        ("s3://bucket/x", "needs the package s3fs: pip install s3fs"),
        ("gs:/bucket/x", "has one slash after gs:, as pathlib leaves it of a URL; give the text gs://"),
        (pathlib.Path("gs://bucket/x"), "has one slash after gs:"),
    ],
)
def test_no_url_becomes_a_folder_of_this_machine(path, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage, "_by_tensorflow", lambda: False)
    for use in (
        storage.check_reachable,
        files.as_path,
        files.user_path,
        lambda path: write_json(path, {}),
        lambda path: locked(path).__enter__(),
        lambda path: files.existing(path, "Text"),
        read_json,
    ):
        with pytest.raises(ValueError, match=match) as caught:
            use(path)
        assert "\n" not in str(caught.value)
    assert not os.listdir(tmp_path)


# Modules that open files of their own: what they ship, what they keep in the cache, what is on this machine by nature.
_THEIRS = {
    "massive_jax/files.py",
    "massive_jax/storage.py",
    "massive_jax/weights/wheel.py",
    "massive_jax/weights/wheel_download.py",
    "massive_jax/weights/hub.py",
    "massive_jax/weights/gguf_source.py",
    "experiments/launch/command.py",  # what it sends along, which is here
}
_OF_OS = {
    "exists",
    "lexists",
    "isfile",
    "isdir",
    "getsize",
    "makedirs",
    "mkdir",
    "listdir",
    "remove",
    "replace",
    "rename",
}


def _name(func):
    """ "os.path.isdir" of that expression; "" of one that is no dotted name."""
    if isinstance(func, ast.Attribute):
        return f"{above}.{func.attr}" if (above := _name(func.value)) else ""
    return func.id if isinstance(func, ast.Name) else ""


def _opened(tree):
    """Calls that make a path of this machine of what they are given, or open one: (line, what)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func).startswith(("pathlib.", "Path", "open", "shutil.", "os.")):
            called = _name(node.func)
            if called in ("pathlib.Path", "Path", "open") or called in ("shutil.rmtree", "shutil.copy", "shutil.move"):
                given = " ".join(map(ast.unparse, node.args))
                ours = all(isinstance(it, ast.Constant) for it in node.args)
                if not (ours or re.search("__file__|matplotlib|devnull", given)):
                    yield node.lineno, called
            elif called.startswith("os.") and called.rpartition(".")[2] in _OF_OS:
                yield node.lineno, called


@pytest.mark.parametrize("folder", ["massive_jax", "experiments", "checkpoints"])
def test_paths_of_users_go_through_one_interface(folder):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {called}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in _THEIRS
        for line, called in _opened(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


def test_modules_of_that_list_open_files():
    assert not [name for name in _THEIRS if not any(_opened(ast.parse((ROOT / name).read_text(encoding="utf-8"))))]
