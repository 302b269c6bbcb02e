"""What importing costs, and what is never imported."""

import ast
import inspect
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import massive_jax as mj

ROOT = pathlib.Path(mj.__file__).parent


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_brings_next_to_nothing_beyond_jax():
    """What would take time to import is imported when it is used: `import massive_jax` takes about a millisecond."""
    found = run("import sys, jax; before = set(sys.modules); import massive_jax; print(*set(sys.modules) - before)")
    assert {name for name in found if not name.startswith("massive_jax")} == set()
    assert len(found) < 5


def test_running_a_model_brings_no_torch():
    code = """
import sys
import numpy as np
import massive_jax as mj, massive_jax.analysis, massive_jax.data, massive_jax.evaluate, massive_jax.report
for name in mj.__all__:
    getattr(mj, name)
print(*{"torch", "transformers", "datasets", "tensorflow"} & set(sys.modules), "done")
"""
    assert run(code) == ["done"]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_torch(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(str(node.module).split(".")[0])
    assert "torch" not in imported


def test_every_public_name_is_there_and_listed():
    for name in mj.__all__:
        assert getattr(mj, name) is not None
    assert set(mj.__all__) <= set(dir(mj))
    assert {"load", "Capture", "Edit", "Model", "zoo"} <= set(mj.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        mj.laod  # noqa: B018


def test_rooms_are_reached_without_an_import():
    assert run("import massive_jax as mj; print(mj.zoo.DEFAULT_MODEL, mj.analysis.DEFINITION.magnitude)") == [
        "smollm2_135m_instruct_q4_1",
        "100.0",
    ]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A clone in a folder called massive_jax, and the directory that `pip install --editable` of it fills."""
    top = tmp_path_factory.mktemp("editable")
    clone, site = top / "massive_jax", top / "site"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "massive_jax/__init__.py"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT.parent / name, clone / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(top)], cwd=clone, capture_output=True, check=True)
    (wheel,) = top.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return clone, site


@pytest.mark.parametrize("where", ["beside the clone", "/", "in the clone", "in the package"])
def test_an_editable_install_is_found_from_everywhere(installed, where):
    """Beside the clone its folder looks like a namespace package; only a regular one on the path comes before that."""
    clone, site = installed
    directory = {"/": pathlib.Path("/"), "in the clone": clone, "in the package": clone / "massive_jax"}.get(
        where, clone.parent
    )
    code = f"import site; site.addsitedir({str(site)!r}); import massive_jax as mj; print(mj.__file__, mj.__version__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=directory, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(clone / "massive_jax" / "__init__.py"), mj.__version__]


def test_the_version_is_in_one_place():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "massive_jax.__version__"}
    citation = (ROOT.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert not [line for line in citation.splitlines() if line.startswith("version")]


def test_type_checkers_of_a_users_code_read_the_types():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["massive_jax"]
    assert (ROOT / "py.typed").is_file()


def test_generate_is_a_verb_and_a_module(tiny_model):
    from massive_jax.generate import left_pad

    tokens, mask = left_pad([[1, 2], [3]])
    assert mj.generate(tiny_model, tokens, mask=mask, max_new_tokens=1).tokens.shape == (2, 3)
    assert getattr(mj.generate, "left_pad") is left_pad  # noqa: B009
    assert list(inspect.signature(mj.generate).parameters)[-1] == "keep_logits"


def test_load_without_a_name_loads_the_default():
    assert inspect.signature(mj.load).parameters["model"].default == mj.zoo.DEFAULT_MODEL
