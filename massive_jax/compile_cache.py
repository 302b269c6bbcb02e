"""Compiled programs that outlive the process, so that a second run of a script does not compile again."""

from __future__ import annotations

import os

import jax
from jax.experimental.compilation_cache import compilation_cache

from massive_jax.arguments import shown
from massive_jax.files import absolute, is_remote, make_directory, user_path
from massive_jax.storage import cache_dir

_WORTH_KEEPING = 0.2  # seconds of compiling


def keep_compiled(directory: str | os.PathLike[str] | None = None) -> str:
    """Keeps compiled programs on disk, and reads back those of earlier runs: one call at the start of a script.

    Programs that took 0.2 s or more to compile are kept, and on a GPU what was found to be the fastest way to compute
    their parts (jax's default for `jax_persistent_cache_enable_xla_caches`). Where the user has chosen a directory for
    jax (`JAX_COMPILATION_CACHE_DIR`, or jax's config) and none is given here, that choice stays. Importing the package
    does not do this, since it changes the whole process; the experiments do it.

    Args:
      directory: where; it is made if need be. None for `compiled` in `~/.cache/massive_jax` (or `MASSIVE_JAX_CACHE`).

    Returns:
      The directory in use.

    Raises:
      ValueError: `directory` is no path, or cannot be made.
    """
    if directory is None:
        if chosen := jax.config.values["jax_compilation_cache_dir"]:
            return chosen
        directory = cache_dir() / "compiled"  # made by jax, which warns and goes on where that fails
    elif not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
        raise ValueError(f"directory is {shown(directory)}; give a path, or None for the usual place.")
    elif not is_remote(directory):  # a bucket is jax's to reach
        path = absolute(user_path(directory))
        try:
            make_directory(path)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{str(path)!r} cannot keep compiled programs: {reason}.") from None
        directory = path
    jax.config.update("jax_compilation_cache_dir", os.fspath(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    compilation_cache.reset_cache()  # where something was compiled before, jax would stay with the place it had then
    return os.fspath(directory)
