"""Rooms stand on floors: imports go down, in no circle, lazy ones inside functions included."""

import ast
import functools
import pathlib

import pytest

import massive_jax

ROOT = pathlib.Path(massive_jax.__file__).parent
# From the ground up. A room may import those of the floors below it.
FLOORS = (
    ("arguments", "dtypes", "memory", "storage"),
    ("files",),
    ("cards", "chips"),
    ("inputs", "parallel"),
    ("probe",),
    ("models",),
    ("weights", "forward", "model_card", "checksums"),
    ("zoo", "generate", "nnx_bridge", "lens", "attribution", "gradients", "sweep", "compile_cache"),
    ("model",),
    ("loading", "exporting", "data", "analysis", "bias", "random_models"),
    ("quantize",),
    ("evaluate",),
    ("report", "train", "collect"),
    ("plan",),
)


def imports_of(path):
    """What a file imports of the package, as (module, name or None), types only left out."""

    class Finder(ast.NodeVisitor):
        found: tuple = ()

        def visit_If(self, node):
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_ImportFrom(self, node):
            self.found += tuple((node.module, alias.name) for alias in node.names)

        def visit_Import(self, node):
            self.found += tuple((alias.name, None) for alias in node.names)

    finder = Finder()
    finder.visit(ast.parse(path.read_text(encoding="utf-8")))
    return [(module, name) for module, name in finder.found if (module or "").split(".")[0] == "massive_jax"]


def module_name(path):
    parts = ("massive_jax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def graph():
    """Module -> what it imports of the package. Not when the tests are collected, which every process does."""
    return {
        importer: {f"{module}.{name}" if f"{module}.{name}" in MODULES else module for module, name in imports_of(path)}
        - {importer, "massive_jax"}
        for importer, path in MODULES.items()
    }


def room(module):
    return module.split(".")[1] if "." in module else None


def test_imports_go_down():
    level = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    assert set(map(room, MODULES)) - {None} == set(level), "a room without a floor, or a floor without its room"
    upward = [
        f"{importer} imports {imported}"
        for importer, all_imported in graph().items()
        for imported in sorted(all_imported)
        if room(importer) and room(imported) != room(importer) and level[room(imported)] >= level[room(importer)]
    ]
    assert not upward


def test_no_module_imports_itself_by_way_of_others():
    done, circles = set(), []

    def visit(module, path):
        if module in path:
            circles.append(" -> ".join((*path[path.index(module) :], module)))
        elif module not in done:
            for imported in sorted(graph().get(module, ())):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph():
        visit(module, ())
    assert not circles


@pytest.mark.parametrize("folder", ["experiments", "checkpoints", "benchmarks", "tests"])
def test_the_library_stands_alone(folder):
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert f"from {folder}" not in text, path
        assert f"import {folder}" not in text, path
