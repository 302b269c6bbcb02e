"""Object storage: paths such as gs://BUCKET/PATH, through `etils.epath`, and what a store lacks of a file system.

A store takes an object whole or not at all; it knows no renaming, no appending and no locks. So a file is made on this
machine and put when it is whole; a lock is an object that its holder renews; and what has to be a file here (to be
mapped into memory, or for a library that opens files only) is fetched, once for each version of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fnmatch
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etils import epath

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}  # of buckets, and the packages that reach them
_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs", "tensorflow")
UNFINISHED = ".unfinished"  # is in a directory as long as not all of it is there
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# What pathlib makes of a URL. A folder of that name on this machine is ./gs: to a shell, too.
_CRIPPLED = re.compile(r"(abfss?|az|file|ftp|gcs|gs|hdfs|hf|https?|s3a?):/(?!/)")
_RENEWED = 20.0  # seconds between two signs of life of who holds a lock
_DEAD = 60.0  # seconds without one, after which another may take it
_POLL = 1.0
_AT_A_TIME = 8  # objects
_reached: set[str] = set()  # buckets
_mine: set[str] = set()  # locks of this process


class HeldError(ValueError):
    """Says that another process holds what was to be written."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tells whether `path` is in a store, or in none that is known; ValueError where it was and lost a slash."""
    text = os.fspath(path)
    if _URL.match(text):
        return True
    if found := _CRIPPLED.match(text):
        raise ValueError(
            f"{text!r} has one slash after {found[1]}:, as pathlib leaves it of a URL; give the text {found[1]}://…, "
            f"or ./{found[1]}: for a folder of that name on this machine."
        )
    return False


def check_reachable(path: str | os.PathLike[str], *, here: bool = True) -> None:
    """Raises a ValueError where `path` is a URL that nothing can reach, on this machine (`here`); asks no network."""
    if is_remote(path):
        package = SCHEMES[_bucket(os.fspath(path))[0]]
        if not here:
            return
        if importlib.util.find_spec(package) is None and not _by_tensorflow():
            raise ValueError(f"{path}: needs the package {package}: pip install {package}.")


def _bucket(text: str) -> tuple[str, str]:
    """Scheme and bucket of a URL; ValueError where it has none that is known."""
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        known = " or ".join(f"{it}://BUCKET/PATH" for it in SCHEMES)
        raise ValueError(f"{text!r}: no way to read {scheme}:// is known; give a path on this machine, or {known}.")
    bucket = rest.partition("/")[0]
    if not bucket:
        raise ValueError(f"{text!r} names no bucket; write {scheme}://BUCKET/PATH.")
    return scheme, bucket


def connect(path: str | os.PathLike[str]) -> epath.Path:
    """Gives the path of a URL; ValueError where there is no such bucket, or no way to it."""
    from etils import epath

    text = os.fspath(path)
    bucket = "://".join(_bucket(text))
    if bucket in _reached:
        return epath.Path(text)
    with reaching(text):
        found = epath.Path(text)
        found.exists()
        if (filesystem := _filesystem(found)) is not None and hasattr(filesystem, "dircache"):
            filesystem.dircache.use_listings_cache = False  # what other processes put there is to be seen
    _reached.add(bucket)
    return found


@contextlib.contextmanager
def reaching(path: str | os.PathLike[str], what: str = "read") -> Iterator[None]:
    """Turns what goes wrong on the way to `path` into a ValueError that names it."""
    try:
        yield
    except ImportError as error:
        if (package := SCHEMES.get(str(path).partition("://")[0])) is None:
            raise
        raise ValueError(f"{path}: needs the package {package}: pip install {package} ({error}).") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be {what}: {error.strerror or error}.") from None
    except Exception as error:  # in a bucket: a client's own classes, of names, credentials and networks
        if not is_remote(path) or isinstance(error, ValueError):
            raise
        raise ValueError(f"{path} cannot be reached: {_reason(error)}.") from None


def in_words(error: BaseException) -> str | None:
    """Gives a line for an error of the clients of stores, which have classes of their own; None for any other."""
    if type(error).__module__.partition(".")[0] not in _CLIENTS:
        return None
    return f"the object store answers {_reason(error)}."


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0] or 'no reason given'}"


def put(file: pathlib.Path, path: epath.Path) -> None:
    """Puts a file of this machine as one object: `path` is all of it, or what it was before."""
    from etils import epath

    with reaching(path, "written"):
        filesystem = _filesystem(path)
        if filesystem is None:
            epath.Path(file).copy(path, overwrite=True)
        else:  # epath's own copy, interrupted, would close the object, and so put what had been copied of it
            filesystem.put_file(str(file), str(path))


@contextlib.contextmanager
def written(path: epath.Path) -> Iterator[pathlib.Path]:
    """Gives an empty file on this machine, of the same name, that is put when the block ends without an error."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is a directory; give the name of a file")
    with tempfile.TemporaryDirectory(prefix="massive_jax.") as directory:
        temporary = pathlib.Path(directory, path.name)
        temporary.touch()
        yield temporary
        put(temporary, path)


@contextlib.contextmanager
def written_directory(path: epath.Path) -> Iterator[pathlib.Path]:
    """Gives an empty directory on this machine whose files are put when the block ends without an error.

    While they are put an object `.unfinished` is there, too, so that a half of them is not taken for all. What an
    earlier process that was killed left so is replaced.

    Raises:
      ValueError: something whole is at `path`.
    """
    if path.exists():
        if not (path / UNFINISHED).exists():
            raise ValueError(f"{path} exists already; name another directory, or remove it.")
        remove_tree(path)
    with tempfile.TemporaryDirectory(prefix="massive_jax.") as directory:
        temporary = pathlib.Path(directory, path.name)
        temporary.mkdir()
        yield temporary
        mark = pathlib.Path(directory, UNFINISHED)
        mark.touch()
        names = [str(file.relative_to(temporary)) for file in sorted(temporary.rglob("*")) if file.is_file()]
        put(mark, path / UNFINISHED)
        try:
            _side_by_side(lambda name: put(temporary / name, path / name), names)
        except BaseException:
            with contextlib.suppress(Exception):  # the first failure is the one to report
                remove_tree(path)
            raise
        with reaching(path, "written"):
            (path / UNFINISHED).unlink()


def remove_tree(path: epath.Path) -> None:
    """Removes all objects below `path`, the mark of an unfinished directory last."""
    with reaching(path, "removed"):
        below = objects_below(path)
        for marks in (False, True):
            wanted = [name for name in below if (name == UNFINISHED) is marks]
            _side_by_side(lambda name: (path / name).unlink(missing_ok=True), wanted)


def _side_by_side(work: Callable[[str], Any], names: Sequence[str]) -> None:
    """Does so with objects, some at a time; the first failure is raised, and what has not begun by then is left."""
    pool = futures.ThreadPoolExecutor(_AT_A_TIME)
    try:
        for _ in pool.map(work, names):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def objects_below(path: epath.Path) -> dict[str, str]:
    """Lists the objects below `path`, by their names from there on, each with what changes when it is put again."""
    filesystem = _filesystem(path)
    if filesystem is None:
        found = [pathlib.PurePosixPath(os.fspath(folder), file) for folder, _, files in path.walk() for file in files]
        names = [str(file)[len(os.path.normpath(str(path))) + 1 :] for file in found]
        return {name: _version_of(path / name) for name in names}
    root = filesystem._strip_protocol(str(path))
    listed = filesystem.find(root, detail=True)
    return {
        name[len(root) + 1 :]: repr(sorted(info.items(), key=str))
        for name, info in listed.items()
        if name.startswith(root + "/") and not name.endswith("/")
    }


def cache_dir() -> pathlib.Path:
    """Says where fetched files are kept (it need not exist yet)."""
    if own := os.environ.get("MASSIVE_JAX_CACHE"):
        return pathlib.Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(shared) if shared else pathlib.Path("~/.cache").expanduser()) / "massive_jax"


def fetched(path: epath.Path, patterns: Sequence[str] = ("*",)) -> pathlib.Path:
    """Gives a copy of an object, or of the objects below a directory, in the cache on this machine.

    It is fetched the first time, and again when what is in the store has changed. Several processes of one machine
    share it.

    Args:
      path: of the object or the directory.
      patterns: of a directory those objects whose name in lower case, from there on, matches one (`fnmatch`).

    Raises:
      ValueError: nothing is there, or a directory of which not all is there; it cannot be fetched or kept.
    """
    with reaching(path):
        if not path.exists():
            raise ValueError(f"{path} is not there. Check the path.")
        folder = path.is_dir()
        if folder:
            versions: Mapping[str, str] = objects_below(path)
            if UNFINISHED in versions:
                raise ValueError(f"{path} is not whole: its writer was stopped, or is still at it. Write it again.")
            versions = {n: v for n, v in versions.items() if any(fnmatch.fnmatchcase(n.lower(), p) for p in patterns)}
        else:
            versions = {"": _version_of(path)}
    version = hashlib.sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16]
    scheme, _, rest = str(path).partition("://")
    where = pathlib.PurePosixPath(rest)
    kept = cache_dir() / "objects" / scheme / where.parent / version
    target = kept / where.name
    if target.exists():
        return target
    import filelock

    try:
        kept.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(kept / ".lock"), reaching(path):
            if not target.exists():  # another process may have fetched it while this one waited
                _fetch(path, list(versions), kept, target)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be kept in {kept}: {error.strerror or error}. Free some space, or set MASSIVE_JAX_CACHE to "
            "a directory that can be written."
        ) from None
    return target


def _fetch(path: epath.Path, names: list[str], kept: pathlib.Path, target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".", dir=kept) as directory:
        partial = pathlib.Path(directory, target.name)
        if "" not in names:
            partial.mkdir()
        here = [partial / name if name else partial for name in names]
        there = [path / name if name else path for name in names]
        for file in here:
            file.parent.mkdir(parents=True, exist_ok=True)
        filesystem = _filesystem(path)
        if filesystem is None:
            for source, file in zip(there, here, strict=True):
                source.copy(file, overwrite=True)
        else:
            from fsspec.callbacks import TqdmCallback

            bar = TqdmCallback({"desc": f"fetching {path}", "unit": "file", "delay": 2.0})
            filesystem.get([str(source) for source in there], [str(file) for file in here], callback=bar)
        os.rename(partial, target)


@contextlib.contextmanager
def leased(path: epath.Path) -> Iterator[None]:
    """Holds the right to write `path`: an object `.NAME.lock` beside it, removed at the end, says who has it.

    The holder renews it every 20 s. Who finds one waits for the next renewal: where it comes, the holder is alive;
    where none comes for a minute, or the holder was a process of this machine that has ended, the lock is taken over.

    Raises:
      HeldError: another process holds it; or took it over, as this one gave no sign of life for a minute.
      ValueError: it cannot be written.
    """
    lease = _Lease(path, path.parent / f".{path.name}.lock")
    with reaching(path, "written"):
        lease.acquire()
    stop = threading.Event()
    thread = threading.Thread(target=lease.renew_until, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(Exception):  # what went wrong in the block is what to tell
            lease.release()
    if lease.lost:
        raise HeldError(
            f"{str(path)!r} was taken over by another process, as this one gave no sign of life for {_DEAD:.0f} s: "
            "what is there may be of both. Run it again in another place."
        )


@dataclasses.dataclass
class _Lease:
    """A lock in a store."""

    path: epath.Path
    lock: epath.Path
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    lost: bool = False

    def acquire(self) -> None:
        """Takes it, as soon as it is known to be nobody's."""
        seen: dict[str, Any] | None = None
        since = time.monotonic()
        while not self._create():
            found = self._read()
            if found is None:  # it has just been removed
                continue
            if found.get("id") in _mine or (seen is not None and found != seen):
                raise self._held(found)
            seen = found
            if _has_ended(found) or time.monotonic() - since > _DEAD:
                self._write()
                time.sleep(_POLL)
                if (self._read() or {}).get("id") == self.id:  # and not another's who waited, too
                    break
            time.sleep(_POLL)
        _mine.add(self.id)

    def _held(self, found: Mapping[str, Any]) -> HeldError:
        return HeldError(
            f"{str(self.path)!r} is being written by process {found.get('pid')} on {found.get('host')}, which said so "
            f"at {found.get('time')}; wait for it to end, or give another name."
        )

    def renew_until(self, stop: threading.Event) -> None:
        """Gives signs of life, unless another has taken it."""
        while not stop.wait(_RENEWED):
            with contextlib.suppress(Exception):  # a network that is away comes back, or the writing itself fails
                if (self._read() or {"id": self.id})["id"] != self.id:
                    self.lost = True
                    return
                self._write()

    def release(self) -> None:
        """Removes it, where it is still this one's."""
        _mine.discard(self.id)
        if not self.lost and (self._read() or {}).get("id") == self.id:
            self.lock.unlink(missing_ok=True)

    def _text(self) -> str:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        return json.dumps({"id": self.id, **_machine(), "pid": os.getpid(), "time": now})

    def _read(self) -> dict[str, Any] | None:
        """What the object says; None where there is none."""
        try:
            found = json.loads(self.lock.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        return found if isinstance(found, dict) and "id" in found else {"id": None}

    def _write(self) -> None:
        with tempfile.TemporaryDirectory(prefix="massive_jax.") as directory:
            file = pathlib.Path(directory, "lock")
            file.write_text(self._text())
            put(file, self.lock)

    def _create(self) -> bool:
        """Whether there was none, and now there is this one."""
        filesystem = _filesystem(self.lock)
        if filesystem is not None:
            try:
                filesystem.pipe_file(str(self.lock), self._text().encode(), mode="create")
                return True
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError):  # a store, or a version of its package, that has no such thing
                pass
        if self.lock.exists():
            return False
        self._write()
        return (self._read() or {}).get("id") == self.id


def _machine() -> dict[str, str]:
    """What pids are told on: a host, and one of its containers."""
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        container = ""
    return {"host": socket.gethostname(), "pids": container}


def _has_ended(holder: Mapping[str, Any]) -> bool:
    """Whether a holder was a process of this machine, and is none any more."""
    here = all(holder.get(name) == value for name, value in _machine().items())
    if not here or not isinstance(pid := holder.get("pid"), int):
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _version_of(path: epath.Path) -> str:
    filesystem = _filesystem(path)
    if filesystem is not None:
        return repr(sorted(filesystem.info(str(path)).items(), key=str))
    found = path.stat()
    return repr((found.length, found.mtime))


def _filesystem(path: epath.Path) -> Any:
    """The fsspec file system that epath goes through; None where it goes through TensorFlow."""
    of: Callable[[str], Any] | None = getattr(getattr(path, "_backend", None), "fs", None)
    return None if of is None else of(str(path))


def _by_tensorflow() -> bool:
    """Whether epath goes through TensorFlow, which it prefers where it is installed."""
    if os.environ.get("EPATH_USE_TF", "").lower() in ("false", "no", "f", "0"):
        return False
    return importlib.util.find_spec("tensorflow") is not None


class Mirror:
    """Lets files grow that go into a store, where nothing can be appended: they grow here, and are put now and then.

    Attributes:
      directory: where they grow: what was given, if that is on this machine.
    """

    def __init__(self, path: pathlib.Path | epath.Path, *, seconds: float = 30.0):
        """Takes the directory for the files; they are put at most every `seconds`."""
        self._remote = path if is_remote(path) else None
        self._seconds, self._put_at = seconds, time.monotonic()
        self._sizes: dict[pathlib.Path, int] = {}
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="massive_jax.") if self._remote else path)

    def file(self, name: str) -> pathlib.Path:
        """Gives a file to add to, with what there is of it already; it need not be there."""
        here = self.directory / name
        if self._remote is not None and not here.exists():
            there = connect(self._remote) / name
            with reaching(there):
                if there.is_file():
                    here.write_bytes(there.read_bytes())
        return here

    def put(self, *, now: bool = False) -> None:
        """Puts those that have grown, if the last time is long enough ago, or `now`."""
        if self._remote is None or not (now or time.monotonic() - self._put_at >= self._seconds):
            return
        for file in sorted(file for file in self.directory.rglob("*") if file.is_file()):
            size = file.stat().st_size
            if self._sizes.get(file) != size:
                put(file, connect(self._remote) / file.relative_to(self.directory))
                self._sizes[file] = size
        self._put_at = time.monotonic()

    def close(self) -> None:
        """Puts them, and removes what is left of them here."""
        if self._remote is not None:
            try:
                self.put(now=True)
            finally:
                shutil.rmtree(self.directory, ignore_errors=True)
