"""The notebooks: without outputs in git, and each runs from its first cell to its last."""

import ast
import json
import pathlib

import pytest

import massive_jax as mj

NOTEBOOKS = sorted((pathlib.Path(mj.__file__).parent.parent / "examples").glob("*.ipynb"))


def cells(path, kind="code"):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_all_are_listed():
    listed = (NOTEBOOKS[0].parent / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) >= 5
    assert [path.name for path in NOTEBOOKS if f"`{path.name}`" not in listed] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_shows_and_holds_no_outputs(path):
    assert "".join(cells(path, "markdown")[0]["source"]).startswith("# ")
    for cell in cells(path):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        ast.parse("".join(cell["source"]))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=540, resources={"metadata": {"path": str(tmp_path)}}).execute()
