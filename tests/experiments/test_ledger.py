"""The ledger's binary: reads what is there, runs what is not, refuses results on another text."""

import pytest
from absl import flags

from experiments import apart, ledger
from massive_jax.files import write_json
from massive_jax.report.ledger import MissingError, Results, claims, judge


@pytest.fixture
def run(tmp_path, clean_flags, capsys):
    """`run("--norun", …)`: the page that is then written, and what was printed."""

    def make(*arguments):
        clean_flags()
        page = tmp_path / "page.md"
        flags.FLAGS(["ledger", f"--workdir={tmp_path / 'results'}", f"--page={page}", *arguments])
        ledger.main()
        return page.read_text(encoding="utf-8"), capsys.readouterr().out

    return make


def test_a_page_of_what_is_there(run, tmp_path):
    logits = {"relative_difference": 3e-6}
    pair, int8 = {"original": 10.0, "explicit": 10.0}, {"original": 40.0, "explicit": 20.0}
    found = {"text": "python", "logits": logits, "perplexity": pair, "largest": int8, "int8_per_tensor": int8}
    write_json(tmp_path / "results" / "smollm2" / "explicit_bias.json", found)
    page, said = run("--norun")
    assert "3.0e-06 of the logits' norm" in page
    assert "smollm2/census was not run" in page
    assert "python -m experiments.observe --models=smollm2_135m,gemma3_270m_q4_k_m --text=TEXT" in page
    assert "`python`, " in page
    assert "python -m experiments.explicit_bias --model=smollm2_135m" in page
    assert "undecided" in said


def test_results_on_another_text_are_refused(run, tmp_path):
    write_json(tmp_path / "results" / "gemma" / "intervene.json", {"text": "book.txt"})
    with pytest.raises(ValueError, match=r"is on the text 'book.txt', not 'python'; give --text=book.txt, or another"):
        run("--norun")


def test_only_what_is_missing_is_run(run, tmp_path, monkeypatch):
    """And a run that fails is named, and costs no other."""
    commands = []

    def fake(experiment, arguments):
        commands.append((experiment, *arguments))
        return int("--attention_bias=kv" in arguments)

    monkeypatch.setattr(apart, "run", fake)
    write_json(tmp_path / "results" / "smollm2" / "explicit_bias.json", {"text": "python"})
    _, said = run()
    assert len(commands) == len(ledger.runs()) - 1
    assert not any(c[0] == "explicit_bias" and c[-1].endswith("/smollm2") for c in commands)
    assert "failed, and their claims undecided: backcopy/kv" in said


def test_every_result_that_a_claim_asks_for_has_a_run(tmp_path):
    asked = set()

    class Asked(Results):
        def __getitem__(self, name):
            asked.add(name)
            raise MissingError(name)

    for section in claims().values():
        for claim in section:
            judge(claim, Asked({}))
    assert asked <= set(ledger.files_of(tmp_path)), asked - set(ledger.files_of(tmp_path))


@pytest.mark.parametrize("page", ["page.txt", "no/such/page.md"])
def test_a_page_that_cannot_be_written(run, page):
    with pytest.raises(ValueError, match="give a .md file in a directory that is there"):
        run("--norun", f"--page={page}")
