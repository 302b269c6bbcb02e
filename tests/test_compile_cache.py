"""`mj.keep_compiled`: compiled programs on disk."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import massive_jax as mj
from massive_jax import compile_cache


@pytest.fixture(autouse=True)
def _settings():
    """Leaves jax's settings as they were."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_program_is_kept_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "_WORTH_KEEPING", 0.0)
    assert mj.keep_compiled(tmp_path / "new" / "kept") == str(tmp_path / "new" / "kept")
    jax.jit(lambda x: 3 * x + 41)(1.0)
    assert os.listdir(tmp_path / "new" / "kept")


def test_the_usual_place(tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("MASSIVE_JAX_CACHE", str(tmp_path))
    assert mj.keep_compiled() == jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "compiled")


def test_what_the_user_has_told_jax_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert mj.keep_compiled() == jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)


@pytest.mark.parametrize("given", [3, "", b"x", ["a"], "a\0b"])
def test_what_is_no_directory_is_refused(given):
    before = jax.config.values["jax_compilation_cache_dir"]
    with pytest.raises(ValueError, match="give a path|cannot keep compiled programs"):
        mj.keep_compiled(given)
    assert jax.config.values["jax_compilation_cache_dir"] == before


def test_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file' cannot keep compiled programs: File exists"):
        mj.keep_compiled(tmp_path / "file")
