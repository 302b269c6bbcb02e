"""What the documentation takes from elsewhere in the repository when it is built, so that nothing is written twice.

Whole files (README.md, BUILD.md, …), the sites and operations of `massive_jax.probe`, the docstrings of the
experiments, the atlas and a reference page for every room.
"""

from __future__ import annotations

import ast
import pathlib
import posixpath
import re
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Page -> the file that it is.
WHOLE = {
    "index.md": "README.md",
    "installing.md": "BUILD.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "checkpoints.md": "checkpoints/README.md",
    "parity.md": "benchmarks/PARITY.md",
    "zoo.md": "massive_jax/zoo/README.md",
}
# Page -> the source that it is generated from, which a link leads to where there is no site.
GENERATED = {
    "atlas.md": "massive_jax/zoo/atlas/atlas.json",
    "sites.md": "massive_jax/probe/sites.py",
    "experiments.md": "experiments",
    "reference/train.md": "massive_jax/train",
}
# Page of the reference -> modules whose public names it shows; of a room, those that its `__init__` lists.
REFERENCE = {
    "massive_jax": [
        *("massive_jax.loading", "massive_jax.random_models", "massive_jax.model", "massive_jax.forward"),
        *("massive_jax.exporting", "massive_jax.nnx_bridge", "massive_jax.compile_cache"),
    ],
    "lens": ["massive_jax.lens", "massive_jax.attribution", "massive_jax.gradients"],
    "generate": ["massive_jax.generate"],
    "inputs": ["massive_jax.inputs.tokenizer", "massive_jax.inputs.images"],
    **{
        room: [f"massive_jax.{room}"]
        for room in (
            "analysis", "bias", "collect", "data", "evaluate", "models", "parallel", "plan", "probe", "quantize",
            "report", "sweep", "train", "zoo",
        )
    },
}  # fmt: skip
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def relinked(text: str, source: str) -> str:
    """Points the relative links of `source`, a file of the repository, at the pages that show their targets.

    A target that the site does not show loses its link: the words stay.
    """
    pages = {path: page for page, path in (WHOLE | GENERATED).items()}

    def replace(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        if target in pages:
            return f"]({pages[target]}{found[2] or ''})"
        if target.startswith("docs/"):
            return f"]({target.removeprefix('docs/')}{found[2] or ''})"
        return "]{.elsewhere}"

    return re.sub(r"\[([^\]]*)\]\{\.elsewhere\}", r"\1", _LINK.sub(replace, text))


def experiments_page() -> str:
    """Renders the docstrings of the experiments and of the other programs, a section each."""
    parts = [
        "# Experiments\n\n`--help` says everything about the flags of each. Generated from the programs' docstrings.\n"
    ]
    for room in ("experiments", "benchmarks", "checkpoints"):
        for path in sorted([*(ROOT / room).glob("*.py"), *(ROOT / room).glob("launch/__main__.py")]):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            is_program = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
            if is_program and (text := ast.get_docstring(tree)):
                name = path.stem if path.parent.name == room else path.parent.name
                parts.append(f"## {room}.{name}\n\n{_as_markdown(text)}\n")
    return "\n".join(parts)


def _as_markdown(docstring: str) -> str:
    """Fences the indented lines of a docstring, which are commands; a continuation stays with its command."""
    blocks = []
    for block in docstring.split("\n\n"):
        lines = block.split("\n")
        if all(line.startswith("  ") for line in lines):
            blocks.append("```sh\n" + "\n".join(line[2:] for line in lines) + "\n```")
        else:
            # A file's keys stand between brackets that are no links, and <…> that is no markup.
            words = " ".join(line.strip() for line in lines)
            parts = re.split(r"(`[^`]*`)", words)  # every other one is code
            parts[::2] = [re.sub(r"([\[\]<>{}*_|])", r"\\\1", part) for part in parts[::2]]
            blocks.append("".join(parts))
    return "\n\n".join(blocks)


def sites_page() -> str:
    """Renders the sites and the operations of `massive_jax.probe`."""
    from massive_jax.probe import ALL_SITES, EXPERT_SITES, OPERATIONS, RULES, VISION_SITES
    from massive_jax.probe import sites as module

    letters = (module.__doc__ or "").split("Axis letters, here and in every file that names them:")[1]
    rows = ["| site | shape | in every block | what it is |", "| --- | --- | --- | --- |"]
    for site in ALL_SITES.values():
        only = " (mixtures of experts)" if site.name in EXPERT_SITES else ""
        only = " (vision models)" if site.name in VISION_SITES else only
        shape = ", ".join(site.axes)
        rows.append(f"| `{site.name}` | [{shape}] | {'yes' if site.per_layer else '–'} | {site.meaning}{only} |")
    table = ["| operation | what it does | value |", "| --- | --- | --- |"]
    table += [f"| `{name}` | {op.words} | {op.number or '–'} |" for name, op in OPERATIONS.items()]
    return f"""# Sites and operations

Every place of a network that can be read can be edited: `mj.Capture(site, …)` keeps it, `mj.Edit(site, …)` changes it.
What is captured of a site in every block has one axis more in front, the layers that were asked for. Layers count from
1: layer l is the output of block l, Hugging Face's `hidden_states[l]`. Generated from `massive_jax.probe.sites`.

{chr(10).join(rows)}

Axis letters: {" ".join(letters.split())}

## Operations of an edit

{chr(10).join(table)}

A position is an integer, one for each sequence, or a rule: {", ".join(f"`{rule!r}`" for rule in RULES)}, and
of language models `'first_delimiter'`.
"""


def atlas_page() -> str:
    """Renders the atlas: a row a model, and what its sources are."""
    from massive_jax.zoo import atlas

    heads = ("model", "largest", "median", "ratio", "dims", "tokens", "layers", "BOS", "source", "note")
    right = ("largest", "median", "ratio")
    rows = ["| " + " | ".join(heads) + " |", "|" + "|".join(" ---: " if h in right else " --- " for h in heads) + "|"]
    for entry in atlas.entries().values():
        ratio = entry.largest / entry.median if entry.largest and entry.median else None
        name = f"`{entry.name}`"
        cells = (
            f"[{name}](https://huggingface.co/{entry.hub_id})" if entry.hub_id else name,
            *("–" if number is None else f"{number:,.6g}" for number in (entry.largest, entry.median)),
            "–" if ratio is None else f"{ratio:,.0f}",
            ", ".join(map(str, entry.dims)) or "–",
            entry.positions or "–",
            "–" if entry.layers is None else f"{entry.layers[0]} to {entry.layers[1]}",
            {True: "yes", False: "no", None: "–"}[entry.bos],
            ", ".join(entry.sources),
            entry.note[:1].upper() + entry.note[1:],
        )
        rows.append("| " + " | ".join(cells) + " |")
    said = "\n".join(f"- **{name}**: {_linked_papers(words)}" for name, words in atlas.sources().items())
    return f"""# Atlas

What is known of each model's massive activations, as others reported it and as it was measured here. Layers count from
1, and the first and last are those whose output has them; the ratio is the largest magnitude over the median;
– is what nobody reported. A click on a head sorts the table, and the field above it keeps the rows that have its words.

<div class="browse" markdown>

{chr(10).join(rows)}

</div>

{said}

`python -m experiments.verify --model=NAME` measures a model and says where it agrees; in Python,
`massive_jax.zoo.atlas.find(NAME)` is the row. More measurements of this project, each with its setting:
[two models on WikiText-2](observatory.md), with and without BOS; [ten variants trained side by side](emergence.md) over
three seeds; [vision transformers](vision.md); [the ledger](ledger.md), what papers claim beside what was found.
"""


def _linked_papers(words: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", words)


def reference_pages() -> dict[str, str]:
    """Makes the pages of the reference: name -> text."""
    pages = {
        "reference/index.md": "# Reference\n\nThe public names of every room, from their docstrings. The examples run "
        "in the tests, after\n\n```python\nimport jax\nimport numpy as np\n\nimport massive_jax as mj\n\n"
        'model = mj.load("smollm2_135m")\n```\n'
    }
    for name, modules in REFERENCE.items():
        title = "massive_jax" if name == "massive_jax" else f"massive_jax.{name}"
        blocks = []
        for module in modules:
            listed = _listed(module)
            members = f"\n    options:\n      members: {listed}" if listed else ""
            blocks.append(f"::: {module}{members}\n")
        pages[f"reference/{name}.md"] = f"# {title}\n\n" + "\n".join(blocks)
    return pages


def _listed(module: str) -> list[str]:
    """The functions and classes in a room's `__all__`, constants left out; none where it has no `__all__`."""
    path = ROOT.joinpath(*module.split(".")) / "__init__.py"
    if not path.exists():
        return []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(name for name in ast.literal_eval(node.value) if not name.isupper())
    return []


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points the links of the pages in docs/ at pages, in the repository they lead to files; gives wide tables room."""
    if page.file.src_uri in ("ledger.md", "atlas.md"):
        page.meta["hide"] = ["toc"]
    return relinked(markdown, f"docs/{page.file.src_uri}") if page.file.generated_by is None else markdown


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Has a page take from the site itself what its search needs under file://, so that it works without network."""
    from mkdocs.utils import get_relative_url

    return output.replace("https://unpkg.com/iframe-worker/shim", get_relative_url("assets/iframe-worker.js", page.url))


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are generated."""
    from mkdocs.structure.files import File

    pages = {page: relinked((ROOT / path).read_text(encoding="utf-8"), path) for page, path in WHOLE.items()}
    pages |= {"experiments.md": experiments_page(), "sites.md": sites_page(), "atlas.md": atlas_page()}
    pages |= reference_pages()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files
