"""Finding a wheel with pip and downloading it so that a kill loses nothing; used by `wheel`."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

_CHUNK = 1 << 18
_TIMEOUT_S = 60.0  # of one read
_RESOLVE_TIMEOUT_S = 300.0
_ATTEMPTS = 5  # in a row that bring no byte
_PAUSE_S = 0.25  # before the next attempt, doubled each time
# Other OSErrors are the disk's, and no reason to try again.
_NETWORK = (
    http.client.HTTPException,
    urllib.error.URLError,
    ssl.SSLError,
    ConnectionError,
    TimeoutError,
    EOFError,
)


@dataclasses.dataclass(frozen=True)
class Link:
    """Names a wheel on an index: where it is, and its sha256 where the index gives one."""

    url: str
    sha256: str | None


def resolve(package: str, version: str) -> Link:
    """Asks pip where the wheel is. Nothing is downloaded or installed.

    Raises:
      ValueError: pip is missing, cannot reach an index, or the index has no such wheel.
    """
    environment = dict(os.environ)
    if index := os.environ.get("MASSIVE_JAX_INDEX_URL"):
        environment["PIP_INDEX_URL"] = index  # not as an argument, which other users could read
    failed = f"The first use of {package} {version} needs a package index, and pip could not find it there: "
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        # Wheels only: resolving a source distribution would run its build.
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
        command += ["--no-cache-dir", "--only-binary=:all:", "--quiet", "--retries=2", "--no-input"]
        command += ["--disable-pip-version-check", f"--report={report}", f"{package}=={version}"]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace",
                timeout=_RESOLVE_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ValueError(f"{failed}{error}.") from None
        if done.returncode:
            said = [line for line in _hide(done.stderr).splitlines() if line.strip()][-3:]
            reason = " / ".join(said) or f"exit status {done.returncode}"
            raise ValueError(f"{failed}{reason}.")
        try:
            found = json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]
            sha256 = found.get("archive_info", {}).get("hashes", {}).get("sha256")
            return Link(str(found["url"]), sha256)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{failed}its report has no link ({error!r}); pip 23 or later is needed.") from None


def download(link: Link, folder: Path, what: str) -> Path:
    """Gives the wheel as a local file whose hash has been checked.

    It grows in `folder` as a .part file, and goes on from there when it was cut off: by the server, the network
    or a kill. A `file://` wheel is used where it is.

    Raises:
      ValueError: it cannot be downloaded, or is not what the index promised.
    """
    parts = urllib.parse.urlsplit(link.url)
    if parts.scheme == "file":
        local = Path(urllib.request.url2pathname(parts.path))
        _check(local, link, local.name, "replace it")
        return local
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"The index links to {_safe(link.url)}; expected an http, https or file address.")
    # Named after what it will be, so that a part of another wheel is never continued.
    identity = hashlib.sha256(f"{link.sha256 or link.url}".encode()).hexdigest()[:16]
    part = folder / f"{identity}.part"
    resumed = part.exists() and part.stat().st_size > 0
    _complete(link, part, what)
    try:
        _check(part, link, _safe(link.url), "run again")
    except ValueError:
        part.unlink(missing_ok=True)
        if not resumed:
            raise
        # What was there before may be what is wrong (a disk that was full, say): once more from nothing.
        _complete(link, part, what)
        try:
            _check(part, link, _safe(link.url), "run again")
        except ValueError:
            part.unlink(missing_ok=True)
            raise
    return part


def _complete(link: Link, part: Path, what: str) -> None:
    """Downloads what `part` still lacks, trying again while the network brings something."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _request(link, part, what)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 429):  # timeout, too many requests
                raise ValueError(
                    f"{_safe(link.url)} answered {error.code} {error.reason}. If the index needs credentials, put"
                    " them in MASSIVE_JAX_INDEX_URL, or set MASSIVE_JAX_WHEEL to a local copy."
                ) from None
            reason = f"{error.code} {error.reason}"
        except _NETWORK as error:
            reason = _hide(str(getattr(error, "reason", None) or error)) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        fruitless = 0 if now > before else fruitless + 1
        if fruitless >= _ATTEMPTS:
            raise ValueError(
                f"{_safe(link.url)} could not be downloaded: {reason}. {now / 1e6:.1f} MB are kept; run again to"
                " go on from there, or set MASSIVE_JAX_WHEEL to a local copy of the wheel."
            )
        time.sleep(_PAUSE_S * 2**fruitless)


def _request(link: Link, part: Path, what: str) -> None:
    """One request: appends to `part` where the server can go on from its end, else starts it again."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(link.url, headers={"Accept-Encoding": "identity"})
    if secret := _credentials(link.url):
        request.add_unredirected_header("Authorization", secret)  # not for the host it may redirect to
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after what there is: it is whole, or it is something else
            error.close()
            return
        raise
    with response:
        sent = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        goes_on = response.status == 206 and sent is not None and int(sent[1]) == have
        if response.status == 206 and not goes_on:
            part.unlink(missing_ok=True)
            raise EOFError("the server answered a request for the rest with another range")
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        with open(part, "ab" if goes_on else "wb") as out, _bar(what, total, have) as bar:
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
                have += len(chunk)
            out.flush()
            os.fsync(out.fileno())
    if total is not None and have != total:  # http.client gives a short read, not an error
        raise EOFError(f"the connection ended after {have} of {total} bytes")


def _bar(what: str, total: int | None, have: int):
    import tqdm

    # A log file wants a line now and then, a terminal a moving bar.
    return tqdm.tqdm(
        total=total, initial=have, desc=f"Fetching {what}, once", unit="B", unit_scale=True, file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip


def _check(path: Path, link: Link, name: str, remedy: str) -> None:
    """Compares a whole download with the index's hash; the member's own hash is checked in any case."""
    if not path.is_file():
        raise ValueError(f"The index links to {path}, which is not there.")
    if link.sha256 is None:
        return
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != link.sha256.lower():
        raise ValueError(
            f"{name} has sha256 {got}, but its index promises {link.sha256}. It was damaged or changed on the way;"
            f" {remedy}, or set MASSIVE_JAX_WHEEL to another copy of the wheel."
        )


def _credentials(url: str) -> str | None:
    """The index's user and password, for a wheel on the same server: pip's report leaves them out."""
    wheel = urllib.parse.urlsplit(url)
    for name in ("MASSIVE_JAX_INDEX_URL", "PIP_INDEX_URL"):
        index = urllib.parse.urlsplit(os.environ.get(name, ""))
        same = (index.scheme, index.hostname, index.port) == (wheel.scheme, wheel.hostname, wheel.port)
        if same and index.username is not None:
            pair = f"{urllib.parse.unquote(index.username)}:{urllib.parse.unquote(index.password or '')}"
            return "Basic " + base64.b64encode(pair.encode()).decode()
    return None


def _safe(url: str) -> str:
    """An address for a message: without credentials, query or fragment."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _hide(text: str) -> str:
    """Text of another program, with the credentials of any address in it blanked."""
    return re.sub(r"(?<=//)[^/@\s]+@", "****@", text)
