"""Public docstrings: they begin with a verb, and their examples run."""

import doctest
import importlib
import inspect
import pathlib

import jax
import numpy as np
import pytest

import massive_jax as mj

ROOT = pathlib.Path(mj.__file__).parent
# What a thing does comes first: a noun leaves a reader to guess who does what. Add a verb here if one is missing.
VERBS = """
Accepts Bounds Declares Initialises Prepares
Adds Applies Asks Attends Averages Builds Changes Checks Chooses Closes Compares Compiles Completes
Computes Configures Continues Converts Copies Counts Cuts Decides Describes Does Downloads Draws Drops Edits
Embeds Escapes Fetches Fills Finds Fits Gates Gathers Gives Groups Has Holds Joins Keeps Lays Lets Lists Loads
Locates Makes Maps Marks Measures Mixes Moves Multiplies Names Normalises Notes Opens Orders Pads Passes Places
Preprocesses Prints Puts Raises Reads Records Reduces Refuses Removes Renders Replaces Resizes Restores Returns
Rounds Runs Samples Saves Says Sends Sets Shortens Shows Sows Spells Splits Spreads Stacks Starts States Steps
Stops Streams Takes Taps Tells Tokenises Trains Turns Unpacks Waits Works Wraps Writes
"""
SOURCES = sorted(ROOT.rglob("*.py"))


FACES = (
    "massive_jax",
    *(f"massive_jax.{p.parent.name}" for p in SOURCES if p.parent.parent == ROOT and p.stem == "__init__"),
)


def public_docstrings(face):
    """Name -> docstring of every function and class that a room shows, and of their methods that have one."""
    module = importlib.import_module(face)
    for name in getattr(module, "__all__", ()):
        shown = getattr(module, name)
        if not (inspect.isfunction(shown) or inspect.isclass(shown)):
            continue
        yield name, shown.__doc__
        for inner, method in vars(shown).items() if inspect.isclass(shown) else ():
            text = getattr(getattr(method, "__func__", method), "__doc__", None)
            described = isinstance(method, property | classmethod | staticmethod) or inspect.isfunction(method)
            if described and not inner.startswith("_") and text:
                yield f"{name}.{inner}", text


@pytest.mark.parametrize("face", FACES)
def test_docstrings_begin_with_a_verb(face):
    wrong = [name for name, text in public_docstrings(face) if not text or text.split()[0] not in VERBS.split()]
    assert not wrong, f"{wrong}: say what it does, beginning with one of {VERBS}"


def examples():
    """The docstrings with `>>>` in them."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for path in SOURCES:
        if ">>> " not in path.read_text(encoding="utf-8"):
            continue
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        yield from (test for test in finder.find(importlib.import_module(name), name) if test.examples)


EXAMPLES = {test.name: test for test in examples()}
# What compiles most of programs that no other example runs; what they show has quick tests of its own.
SLOW = {
    "massive_jax.bias.transforms.absorb_prefix",
    "massive_jax.evaluate.attention.measure_attention",
    "massive_jax.evaluate.explore.explore",
    "massive_jax.evaluate.quantize_table.measure_quantization",
    "massive_jax.gradients.gradient",
    "massive_jax.probe.rows.stack_edits",
    "massive_jax.sweep.run.sweep",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in EXAMPLES])
def test_examples_give_what_they_say(name, default_model, capsys):
    """With the default model as `model`, and `mj`, `np` and `jax` imported: the reference says so."""
    test = EXAMPLES[name]
    test.globs |= {"mj": mj, "np": np, "jax": jax, "model": default_model}
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert not failed, capsys.readouterr().out


def test_the_most_used_names_have_examples():
    """The dozen that a newcomer meets first."""
    assert set(EXAMPLES) >= SLOW
    found = {name.rpartition(".")[2] for name in EXAMPLES}
    expected = {"load", "Capture", "Edit", "stack_edits", "generate", "perplexity", "measure_layers", "find_massive"}
    assert expected | {"cut_windows", "absorb_prefix", "AttentionBias", "of_bytes", "Model"} <= found
