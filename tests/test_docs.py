"""The documentation: its code runs, its links lead somewhere, and what is generated is there."""

import importlib.util
import pathlib
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import transformers

import massive_jax as mj
from massive_jax import loading
from massive_jax.probe import ALL_SITES, OPERATIONS
from massive_jax.zoo import atlas

ROOT = pathlib.Path(mj.__file__).parent.parent
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
NOT_RUN = "<!-- not run"
_FENCE = re.compile(r"(<!-- not run[^\n]*\n)?```python\n(.*?)```", re.DOTALL)
_FILE = re.compile(r'```\w+ title="([^"\n]+)"\n(.*?)```', re.DOTALL)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code_of(name):
    return "\n".join(code for skipped, code in _FENCE.findall(read(name)) if not skipped)


@pytest.fixture(scope="session")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def names(name, default_model, request):
    """What the code of a page finds: the default model, or where it compares with PyTorch the same tiny model twice."""
    if name != "docs/coming_from.md":
        return {"model": default_model, "tokens": default_model.tokenize("Summer is warm.")}
    from tests.fixtures import hf_reference

    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch_model = hf_reference.random_model(hf_reference.LLAMA, config)
    directory = request.getfixturevalue("tmp_path") / "llama"
    hf_reference.save(torch_model, directory)
    tokens = np.random.default_rng(0).integers(0, 250, (1, 9), np.int32)
    return {"model": mj.load(directory, progress=False), "torch_model": torch_model, "tokens": tokens}


QUICK = ("README.md",)  # the others compile many programs


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PAGES if code_of(n)]
)
def test_the_code_of_a_page_runs(name, names, default_model, monkeypatch, tmp_path, capsys):
    real = loading.load
    monkeypatch.setattr(loading, "load", lambda model, **k: default_model if model == "smollm2_135m" else real(model))
    monkeypatch.chdir(tmp_path)
    for path, content in _FILE.findall(read(name)):  # that the page has the reader write
        pathlib.Path(path).parent.mkdir(exist_ok=True)
        pathlib.Path(path).write_text(content, encoding="utf-8")
    exec(compile(code_of(name), name, "exec"), names)


def test_code_that_is_not_run_says_why():
    """A fence of Python is run, or says that it is not; what belongs to other libraries is fenced as `py`."""
    assert {name for name in PAGES if NOT_RUN in read(name)} == {"docs/vision.md"}


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "BUILD.md", "checkpoints/README.md"])
def test_links_lead_somewhere(name):
    """In the repository; `mkdocs build` finds out whether they do on the site."""
    base = ROOT / pathlib.Path(name).parent
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)", read(name)) if not t.startswith(("http:", "https:", "mailto:"))]
    assert [target for target in targets if not (base / target).exists()] == []


def test_the_readme_is_short_and_its_figures_come_first():
    text = read("README.md")
    assert len(text.split()) < 900
    assert text.index("](docs/layerwise.png)") < text.index("## ")


def test_every_site_and_operation_is_on_the_page(hooks):
    page = hooks.sites_page()
    assert [name for name in (*ALL_SITES, *OPERATIONS) if f"| `{name}` |" not in page] == []
    assert "| `query` | [B, T, H, N] | yes |" in page


def test_every_model_of_the_atlas_is_on_its_page(hooks):
    page = hooks.atlas_page()
    rows = [row for row in page.splitlines() if row.startswith("| ")]
    assert [name for name in atlas.entries() if sum(f"`{name}`" in row for row in rows) != 1] == []
    assert len({row.count("|") for row in rows}) == 1
    assert "| 23,147.1 | 1.721 | 13,450 | 507 | first token | 12 to 28 | no | measured |" in page
    assert "[arXiv 2503.22329](https://arxiv.org/abs/2503.22329)" in page


def test_every_program_is_on_the_page_of_experiments(hooks):
    page = hooks.experiments_page()
    programs = {path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text("utf-8")}
    assert len(programs) >= 13
    assert [name for name in programs if f"## experiments.{name}\n" not in page] == []
    assert "```sh\npython -m experiments.layerwise --workdir=results\n" in page
    assert "## experiments.launch\n\n" in page


def test_words_of_a_docstring_are_no_markup(hooks):
    text = "Does it.\n\n  python -m x --a=[b]\n\nx.json: [{a_b, c}] of\n`a_b`; <d>."
    expected = "Does it.\n\n```sh\npython -m x --a=[b]\n```\n\nx.json: \\[\\{a\\_b, c\\}\\] of `a_b`; \\<d\\>."
    assert hooks._as_markdown(text) == expected


def test_the_reference_shows_what_the_rooms_show(hooks):
    pages = hooks.reference_pages()
    for room in (
        "analysis",
        "bias",
        "collect",
        "data",
        "evaluate",
        "models",
        "parallel",
        "probe",
        "report",
        "train",
        "zoo",
    ):
        shown = getattr(mj, room).__all__ if room in dir(mj) else importlib.import_module(f"massive_jax.{room}").__all__
        page = pages[f"reference/{room}.md"]
        assert [name for name in shown if not name.isupper() and f"'{name}'" not in page] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](BUILD.md#x)", "[a](installing.md#x)"),
        ("![a](docs/a.png)", "![a](a.png)"),
        ("[a](docs/first_steps.md)", "[a](first_steps.md)"),
        ("[a](experiments)", "[a](experiments.md)"),
        ("[the atlas](massive_jax/zoo/atlas/atlas.json)", "[the atlas](atlas.md)"),
        ("[the flags](pyproject.toml)", "the flags"),
        ("[a](https://b.c/d), [e](#f)", "[a](https://b.c/d), [e](#f)"),
    ],
)
def test_links_of_a_file_point_at_pages(hooks, text, expected):
    assert hooks.relinked(text, "README.md") == expected
    assert (
        hooks.relinked("[a](../BUILD.md#x), [b](vision.md)", "docs/training.md")
        == "[a](installing.md#x), [b](vision.md)"
    )


def test_the_picture_is_well_formed():
    assert xml.etree.ElementTree.parse(ROOT / "docs" / "concepts.svg").getroot().tag.endswith("svg")
