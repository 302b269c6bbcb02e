"""Files: results that are written whole or not at all, JSON, and paths that have to be there.

Every path that a user gives comes through here, of this machine or of an object store (gs://…, s3://…; see
`massive_jax.storage`). A path of this machine is a `pathlib.Path`, one of a store an `etils.epath.Path`, which speaks
the same language but for what a store has not.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from massive_jax import storage
from massive_jax.storage import HeldError, is_remote

if TYPE_CHECKING:
    from etils import epath

Path: TypeAlias = "pathlib.Path | epath.Path"

NON_FINITE = "non_finite"  # the key under which `write_json` keeps what it had to write as null

# C0, DEL and C1; line and paragraph separator; direction marks (Trojan Source, CVE-2021-42574); halves of surrogates;
# the byte-order mark, which is invisible.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


_discarding = False


@contextlib.contextmanager
def discarding() -> Iterator[None]:
    """Keeps nothing of what is written in the block by the functions here: another process writes the same."""
    global _discarding
    _discarding, before = True, _discarding
    try:
        yield
    finally:
        _discarding = before


def is_discarding() -> bool:
    """Tells whether this is in a `discarding` block: what was written before may not be there yet."""
    return _discarding


def as_path(path: str | os.PathLike[str]) -> Path:
    """Gives `path` as what reads and writes it: in a store where it is a URL, else on this machine, "~" as it is.

    Raises:
      ValueError: a URL of a store that is not known, cannot be reached, or whose package is not installed.
    """
    return storage.connect(path) if is_remote(path) else pathlib.Path(path)


def user_path(path: str | os.PathLike[str]) -> Path:
    """Gives `path` as `as_path` does, with "~" and "~user" spelled out; ValueError where there is no such user, too."""
    if is_remote(path):
        return storage.connect(path)
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r}: there is no home directory of that user. Check the path.") from None


def absolute(path: Path) -> Path:
    """Gives a path that does not depend on the working directory."""
    return path if is_remote(path) else path.absolute()


def local(path: str | os.PathLike[str], patterns: Sequence[str] = ("*",)) -> pathlib.Path:
    """Gives a path on this machine: of what is in a store, that of a copy in the cache (`storage.fetched`).

    For what has to be a file: to be mapped into memory, or for a library that opens files only.
    """
    return storage.fetched(storage.connect(path), patterns) if is_remote(path) else pathlib.Path(path)


def is_there(path: str | os.PathLike[str]) -> bool:
    """Tells whether anything is at `path`, a link to nothing among it."""
    found = as_path(path)
    return found.exists() if is_remote(found) else os.path.lexists(found)


def is_file(path: Path) -> bool:
    """Tells whether a file is there, and not a directory or a pipe; False where that cannot be told."""
    return path.is_file() if is_remote(path) else os.path.isfile(path)


def is_directory(path: Path) -> bool:
    """Tells whether a directory is there; False where that cannot be told."""
    return path.is_dir() if is_remote(path) else os.path.isdir(path)


def size_of(path: Path) -> int:
    """Gives the bytes of a file."""
    found: Any = path.stat()
    return found.length if is_remote(path) else found.st_size


def make_directory(path: Path) -> None:
    """Makes a directory and its parents, unless it is there; a store needs none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_tree(path: Path) -> None:
    """Removes a directory and all that is in it."""
    if is_remote(path):
        storage.remove_tree(cast("epath.Path", path))
    else:
        shutil.rmtree(path)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    r"""Gives a temporary path beside `path`, renamed to `path` when the block ends without an error.

    The temporary file exists (empty) when the block starts, is in the same directory (so the rename cannot
    cross a file system), and keeps the suffix of `path` (so a writer that goes by the suffix does the right
    thing). When the block raises, the temporary file is removed and what was at `path` before is untouched.
    Missing parent directories are made. Of a `path` in a store the temporary file is on this machine, and is put there
    in the end.

    Examples:
      with atomic_write("out/table.csv") as temporary:
        temporary.write_text("a,b\n")

    Raises:
      IsADirectoryError: `path` is a directory.
      ValueError: a store cannot be reached, or does not take it.
    """
    if _discarding:
        with tempfile.TemporaryDirectory() as nowhere:
            temporary = pathlib.Path(nowhere) / pathlib.PurePath(path).name
            temporary.touch()
            yield temporary
        return
    if is_remote(path):
        with storage.written(storage.connect(path)) as temporary:
            yield temporary
        return
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is a directory; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp{path.suffix}"
    # Not tempfile: that makes the file readable by its owner only, and the rename would keep it so.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk: the error of a write does not say where
            error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives an empty temporary directory beside `path`, renamed to `path` when the block ends without an error.

    When the block raises, the temporary directory is removed. Missing parent directories are made. One process at a
    time may write to `path`: see `locked`. Of a `path` in a store it is on this machine: see
    `storage.written_directory`.

    Raises:
      HeldError: another process, or another block of this one, writes there.
      ValueError: something is at `path`, or it cannot be written.
    """
    if _discarding:
        with tempfile.TemporaryDirectory() as nowhere:
            yield pathlib.Path(nowhere)
        return
    if is_remote(path):
        with locked(path), storage.written_directory(storage.connect(path)) as temporary:
            yield temporary
        return
    path = pathlib.Path(path)
    with locked(path):
        if path.exists():
            raise ValueError(f"{path} exists already; name another directory, or remove it.")
        temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
        try:
            temporary.mkdir()
            yield temporary
            os.rename(temporary, path)
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror or error}.") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the right to write `path`, a file or a directory: one process at a time has it, the others are refused.

    The lock is a file beside it, `.NAME.lock`, which is removed at the end. What a killed process leaves of it blocks
    nobody: the system lets go of a lock with the process that held it. Missing parent directories are made. In a store,
    which has no such locks, see `storage.leased`.

    Args:
      path: what is going to be written; it need not be there. To lock a directory whose parent cannot be written
        (a mount point, say), name something inside it.

    Raises:
      HeldError: another process, or another block of this one, holds it.
      ValueError: no file can be made beside it.
    """
    if _discarding:
        yield
        return
    if is_remote(path):
        with storage.leased(storage.connect(path)):
            yield
        return
    import filelock

    where = pathlib.Path(path).expanduser().resolve()
    file = where.parent / f".{where.name}.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(file, thread_local=False)
        while not lock.is_locked:
            file.touch()  # where no file can be made filelock, too, says that another process has it
            lock.acquire(timeout=0)
            if not file.exists():  # whoever held it before removed it between our opening and locking it
                lock.release()
    except filelock.Timeout:
        raise HeldError(
            f"{str(path)!r} is being written by another process; wait for it to end, or give another name."
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{str(path)!r} cannot be written: no lock at {str(file)!r}: {reason}.") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: nobody else's can be there
        lock.release()


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes `obj` as standard JSON (RFC 8259), which has no infinity and no NaN.

    A number that is not finite becomes null. So that nothing is lost, an object at the top gets one more key,
    `"non_finite"`, that says what each such null was, by JSON pointer (RFC 6901); `read_json` puts them back:

      {"perplexity": {"zero": null}, "non_finite": {"/perplexity/zero": "inf"}}

    The key is absent when every number is finite. Besides plain JSON types, takes numpy and jax scalars and
    arrays (any float type; written as exact float64), dataclasses, paths, tuples, and sets (sorted).

    Raises:
      TypeError: something else is in `obj`; the message says where.
      ValueError: two keys of one object are the same text (1 and "1"), or `obj` already has a key "non_finite".
    """
    text = json_text(obj, indent=2)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def json_text(obj: Any, indent: int | None = None) -> str:
    """Gives what `write_json` writes as text; without an `indent` in one line and without spaces.

    Raises:
      TypeError: as `write_json`.
      ValueError: as `write_json`.
    """
    found: dict[str, str] = {}
    plain = _plain(obj, "", found)
    if isinstance(plain, dict) and found:
        if NON_FINITE in plain:
            raise ValueError(f"{NON_FINITE!r} is reserved for write_json's own note: rename that key")
        plain[NON_FINITE] = found
    between = (",", ":") if indent is None else None
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=indent, separators=between)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)  # half a surrogate pair


def write_arrays(path: str | os.PathLike[str], **arrays: np.ndarray) -> None:
    """Writes named arrays as an .npz file, which `path` should end in."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads what `write_json` wrote, with the infinities and NaNs back in their places.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not JSON, or not as `write_json` writes it; the message names the file.
    """
    text = as_path(path).read_bytes().decode("utf-8", errors="replace")
    try:
        obj = json.loads(text)
        notes = obj.pop(NON_FINITE, {}) if isinstance(obj, dict) else {}
        for pointer, value in notes.items():
            *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
            holder = obj
            for part in parents:
                holder = holder[int(part) if isinstance(holder, list) else part]
            holder[int(last) if isinstance(holder, list) else last] = float(value)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged, or no result: {one_line(error)}. Make it again.") from None
    return obj


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads the JSON object in a file; ValueError where it is absent, not JSON, or not an object."""
    if path.exists() and not path.is_file():  # reading a pipe could wait for ever
        raise ValueError(f"{path} is no file; expected a JSON object. Copy it again from the model's page.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unambiguous)
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} has no {path.name}; a Hugging Face checkpoint needs it. Copy it from the model's page."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}. Copy it again from the model's page.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}; expected a JSON object. Copy it again.")
    return value


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where it gives one key two values, of which readers take the one or the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted({key for key, value in pairs if found[key] != value})
        if twice:
            raise ValueError(f"one object has two values of {listed(map(repr, twice))}")
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Lists where two records of arguments differ: (name, value before, value now); None where one lacks the name."""
    names = dict.fromkeys([*now, *before])
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def check_same(before: object, now: Mapping[str, Any], began: str, this: str, again: str) -> None:
    """Raises a ValueError where what is to go on was begun with other arguments; it names the first that differs.

    Args:
      before: the arguments that a file says; what is no record has none.
      now: those of this run, as JSON has them.
      began: how the message begins: "the activations in DIRECTORY are".
      this: what it says of this run: "these would be".
      again: what it asks for, a sentence.
    """
    for name, was, is_now in differences(before if isinstance(before, Mapping) else {}, now):
        raise ValueError(f"{began} with {name} {shown(was, 80)}, {this} with {shown(is_now, 80)}. {again}")


def listed(items: Iterable[object], limit: int = 20) -> str:
    """Lists offenders for an error message, `printable`: all of them up to `limit`, then how many more."""
    names = [printable(item) for item in items]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def printable(text: object, keep: str = "") -> str:
    r"""Escapes what could steer or disguise a terminal: control characters, line ends, marks that turn the direction.

    Everything else stays as it is, letters of any script among it. For what comes from a file (a token, a name, a
    setting) and goes to a terminal or into a message.

    Examples:
      >>> printable("a\x1b[2Jb\n")
      'a\\x1b[2Jb\\n'

    Args:
      text: a string, or anything that `str` takes.
      keep: characters that are let through, such as "\n" for a message of several lines.
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], str(text))


def shown(value: object, limit: int = 60) -> str:
    """Writes a value from a file for an error message as Python does, on one line, at most `limit` letters of it."""
    text = printable(repr(value))
    return text if len(text) <= limit else f"{text[:limit]}…"


def one_line(message: object, limit: int = 300) -> str:
    """Gives another library's message on one line, `printable`, cut to `limit` characters, without its full stop.

    An exception without a message gives its type.
    """
    text = printable(" ".join(str(message).split())).rstrip(".") or type(message).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def short_name(address: str) -> str:
    """Gives what a model at `address` (a path, a URL, a hub id, a name) is called where there is room for a name only.

    That is its last part, without .gguf; of a snapshot in the hub's cache, the model's.
    """
    path = pathlib.PurePath(address)
    if path.name in ("", ".."):
        path = pathlib.Path(address).resolve()
    parts = path.parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rpartition("--")[2]
    return path.name.removesuffix(".gguf") or address


def existing(path: object, what: str) -> Path:
    """Gives `path` as `user_path` does; ValueError where it is not a path or nothing is there."""
    try:
        if is_remote(text := os.fspath(cast("str", path))):
            found: Path = storage.connect(text)
            with storage.reaching(text):
                if not found.exists():
                    raise ValueError(f"{what} {text!r} is not there. Check the path.")
            return found
    except TypeError:
        raise ValueError(f"{what}: expected a path, got {path!r}.") from None
    try:
        found = pathlib.Path(text).expanduser()
        found.stat()
    except (OSError, RuntimeError, ValueError) as error:
        # ValueError: a null byte in the name; RuntimeError: "~user" of no such user.
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{what} {str(path)!r} cannot be opened: {reason}. Check the path.") from None
    return found


def existing_path(path: object, what: str, patterns: Sequence[str] = ("*",)) -> pathlib.Path:
    """Gives `path` on this machine (see `local`); ValueError where it is not a path or nothing is there."""
    return local(existing(path, what), patterns)


def existing_file(path: object, what: str) -> pathlib.Path:
    """Gives `path` as a `pathlib.Path`; ValueError where no file is there: a pipe could be waited for for ever."""
    found = existing_path(path, what)
    if not found.is_file():
        raise ValueError(f"{what} {str(path)!r} is a directory, a pipe or a device; give a file.")
    return found


def _plain(obj: Any, where: str, found: dict[str, str]) -> Any:
    """`obj` in JSON's own types; notes the numbers that are not finite in `found`."""
    if obj is None or isinstance(obj, bool | str):
        return str(obj) if isinstance(obj, str) else obj
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return _finite(float(obj), where, found)
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        obj = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        plain: dict[str, Any] = {}
        for key, value in obj.items():
            if not isinstance(key, str | int | np.integer) or isinstance(key, bool):
                raise TypeError(f"cannot write a key of type {type(key).__name__} at {where or '/'}: use text")
            name = str(key)
            if name in plain:
                raise ValueError(f"two keys at {where or '/'} are both {name!r} as text")
            pointer = name.replace("~", "~0").replace("/", "~1")
            plain[name] = _plain(value, f"{where}/{pointer}", found)
        return plain
    if isinstance(obj, Set):
        obj = sorted(obj)
    if isinstance(obj, Sequence) and not isinstance(obj, bytes | bytearray):
        return [_plain(item, f"{where}/{i}", found) for i, item in enumerate(obj)]
    if isinstance(obj, np.ndarray | np.generic) or hasattr(obj, "__array__"):
        array = np.asarray(obj)
        if array.ndim:
            return [_plain(item, f"{where}/{i}", found) for i, item in enumerate(array)]
        if array.dtype.kind in "biuU":
            return array.item()
        try:  # bfloat16 and its kin are not numpy's own kinds of float
            return _finite(float(array), where, found)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"cannot write a {type(obj).__name__} as JSON at {where or '/'}: make it plain data first")


def _finite(value: float, where: str, found: dict[str, str]) -> float | None:
    if math.isfinite(value):
        return value
    found[where] = str(value)
    return None
