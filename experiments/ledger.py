"""The replication ledger: claims of papers on massive activations, what is measured of them here, and verdicts.

  python -m experiments.ledger --workdir=results/ledger --page=docs/ledger.md          (make ledger)
  python -m experiments.ledger --workdir=results/ledger --page=docs/ledger.md --norun

Runs what is not in --workdir yet (`observe` of two language models, BOS as an explicit bias; five small
trainings), each by its own experiment, one after another, and writes the page. All of it takes about 40 minutes on 2
cores, half of it the trainings, and fetches both models once (93 and 253 MB). A run that fails leaves its claims
undecided. --register_means is the file of register means that the paper's authors released with DINOv2;
without it two claims are undecided.

The claims and their rules are in `massive_jax.report.ledger`. docs/ledger.md in the repository is this page for
WikiText-2's test text (TEXT=…).
"""

from __future__ import annotations

import datetime
import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import flags

from experiments import apart, common
from experiments.flags import paths, text
from massive_jax.data import load_text, text_name
from massive_jax.data.prose import checksum
from massive_jax.files import Path, atomic_write, is_remote, read_json, user_path, write_json
from massive_jax.report.ledger import RELEASED, Results, claims, judge, write_page
from massive_jax.weights.npz import read_arrays

_PAGE = paths.define("page", "ledger.md", "Where the page goes.")
_RUN = flags.DEFINE_bool("run", True, "Runs what is missing; else what is there is read.")
_MEANS = paths.define("register_means", None, "DINOv2's released register means, an .npz file.")

if __name__ == "__main__":
    flags.adopt_module_key_flags(common)
    for name in ("workdir", "text"):
        flags.declare_key_flag(name)


class Run(NamedTuple):
    """An experiment, where its results go (beside those of others), its file there, and its flags."""

    experiment: str
    directory: str
    file: str
    flags: tuple[str, ...]
    on_text: bool = True

    def arguments(self, workdir: pathlib.PurePath, of_text: str) -> list[str]:
        """Its flags, filled in."""
        given = [flag.format(workdir=workdir) for flag in self.flags]
        given += [f"--text={of_text}"] if self.on_text else []
        return [*given, f"--workdir={workdir / self.directory}"]

    def command(self, workdir: pathlib.PurePath, of_text: str) -> str:
        """What to type for it."""
        return " ".join(["python", "-m", f"experiments.{self.experiment}", *self.arguments(workdir, of_text)])


# What `observe` calls the folder of each model, by its name in claims.
_OBSERVED = {
    "smollm2": "smollm2_135m",
    "smollm2_bos": "smollm2_135m-bos",
    "gemma": "gemma3_270m_q4_k_m",
    "gemma_bos": "gemma3_270m_q4_k_m-bos",
}


def runs() -> Mapping[str, Run]:
    """Every run, by the name of its result in claims; `files_of` has those that have several results."""
    smol, gemma = (f"--model={_OBSERVED[name]}" for name in ("smollm2", "gemma"))
    models = f"--models={_OBSERVED['smollm2']},{_OBSERVED['gemma']}"
    # Its largest are 958 times the median: by hand, as no place meets the definition.
    places = ("--bos", "--layer=15", "--places=0:163", "--windows=16", "--context=64", "--draws=2")
    found = {
        "observe": Run("observe", "observe", "observatory.json", (models,)),
        "smollm2/explicit_bias": Run("explicit_bias", "smollm2", "explicit_bias.json", (smol,)),
        "gemma/explicit_bias": Run("explicit_bias", "gemma", "explicit_bias.json", (gemma, "--context=256")),
        "gemma_bos/edited": Run("intervene", "gemma", "intervene.json", (gemma, *places)),
    }
    for kind in ("none", "kv", "sink_token", "gate_element", "softmax1"):
        options = ("--preset=backcopy", f"--attention_bias={kind}")
        found[f"backcopy/{kind}"] = Run("train_gpt2", f"backcopy/{kind}", "train_gpt2.json", options, on_text=False)
    none = "{workdir}/backcopy/none"
    followed = (f"--checkpoints={none}",)
    found["backcopy/emergence"] = Run("emergence", "backcopy", "emergence.json", followed, on_text=False)
    trained = (f"--model={none}/model", "--text=backcopy", "--windows=32", "--context=64", "--bos")
    found["backcopy/census"] = Run("census", "backcopy", "census.json", trained, on_text=False)
    return found


def files_of(workdir: Path) -> dict[str, Path]:
    """The file of every result that claims ask for."""
    files = {name: workdir / run.directory / run.file for name, run in runs().items()}
    for name, folder in _OBSERVED.items():
        for of in ("census", "attention", "intervene", "super_weights"):
            files[f"{name}/{of}"] = workdir / "observe" / folder / f"{of}.json"
    return {**files, "smollm2/edited": files["smollm2/intervene"], RELEASED: workdir / "register_means.json"}


def run_missing(workdir: Path, of_text: str) -> list[str]:
    """Runs what has no file yet; names those that failed."""
    failed = []
    for name, run in runs().items():
        if (workdir / run.directory / run.file).is_file():
            continue
        print(run.command(workdir, of_text), flush=True)
        if apart.run(run.experiment, run.arguments(workdir, of_text)):
            failed.append(name)
    return failed


def check_texts(workdir: Path, of_text: str) -> None:
    """ValueError where results in `workdir` are on another text."""
    for run in runs().values():
        path = workdir / run.directory / run.file
        if run.on_text and path.is_file() and (said := read_json(path).get("text")) != of_text:
            raise ValueError(
                f"{path} is on the text {said!r}, not {of_text!r}; give --text={said}, or another --workdir."
            )


def register_means(path: str, out: Path) -> None:
    """Writes the released means as a result."""
    arrays = read_arrays(path, "Register means")
    write_json(out, {name: {"values": array.tolist()} for name, array in arrays.items()})


def made_with(of_text: str, content: str) -> Sequence[tuple[str, str]]:
    """What the page was made with."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "numpy"))
    name = pathlib.PurePath(text_name(of_text)).name
    return (
        ("date", datetime.date.today().isoformat()),
        (
            "versions",
            f"massive_jax {importlib.metadata.version('massive_jax')}, {versions}, Python {platform.python_version()}",
        ),
        ("text", f"`{name}`, {len(content):,} characters, sha256 {checksum(content)}…; float32, on CPU"),
    )


def main() -> None:
    """Runs the binary."""
    content = load_text(text.name())
    workdir = common.workdir()
    page = user_path(_PAGE.value)
    if page.suffix != ".md" or not (is_remote(page) or page.absolute().parent.is_dir()):
        raise ValueError(f"--page={page}: give a .md file in a directory that is there.")
    files = files_of(workdir)
    check_texts(workdir, text_name(text.name()))
    if _MEANS.value is not None:
        register_means(_MEANS.value, files[RELEASED])
    failed = run_missing(workdir, text.name()) if _RUN.value else []
    results = Results(files)
    sections = {title: [judge(claim, results) for claim in rows] for title, rows in claims().items()}
    shown = pathlib.PurePath("results/ledger")
    commands = [run.command(shown, "TEXT") for run in runs().values()]
    with atomic_write(page) as temporary:
        temporary.write_text(write_page(sections, made_with(text.name(), content), commands), encoding="utf-8")
    verdicts = [entry.verdict for entries in sections.values() for entry in entries]
    common.print_table(("verdict", "claims"), [(one, verdicts.count(one)) for one in dict.fromkeys(verdicts)])
    if failed:
        print(f"failed, and their claims undecided: {', '.join(failed)}")
    print(f"wrote {page}")


if __name__ == "__main__":
    common.run_experiment(main)
