"""What importing costs, and what is never imported."""

import ast
import pathlib
import subprocess
import sys

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
        "smollm2_135m",
        "100.0",
    ]
