"""`experiments.reproduce` end to end on the tiny model, its report, and the binaries as processes of their own."""

import html.parser
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from massive_jax.files import read_json

ROOT = pathlib.Path(__file__).parents[2]
PLANTED = 5  # as in conftest.py
FILES = {
    *(
        f"{name}.{kind}"
        for name in ("layerwise", "feature_map", "attention_map", "intervene")
        for kind in ("json", "png")
    ),
    "attention_map.npz",
    "summary.json",
    "report.html",
    "report.png",
}


class Page(html.parser.HTMLParser):
    """What a page asks for from elsewhere, and its cells and images."""

    def __init__(self, text):
        super().__init__()
        self.requests, self.images, self.tags, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            value = attributes.get(name)
            if value is not None and not value.startswith(("data:", "#")):
                self.requests.append(value)
        if tag == "img":
            self.images.append(attributes)

    def handle_data(self, data):
        self.text.append(data)


def explored(page):
    """The JSON that a page holds."""
    return json.loads(re.search(r"<script type='application/json' id='explored'>(.*?)</script>", page, re.S)[1])


def test_with_massive_activations(run, text_file, tiny_directory):
    summary = run("reproduce", "--bos", f"--text={text_file}", "--windows=3", "--context=24", "--ops=zero,mean")
    assert {path.name for path in run.workdir.iterdir()} == FILES
    parts = {name: read_json(run.workdir / f"{name}.json") for name in ("layerwise", "attention_map", "intervene")}
    (found,) = summary["massive"]
    assert (found["layer"], found["position"], found["dim"], found["token"]) == (1, 0, PLANTED, "<s>")
    assert found["value"] == parts["layerwise"]["layers"][0]["top"][0]["value"]
    assert summary["perplexity"] == parts["intervene"]["perplexity"]
    assert set(summary["perplexity"]) == {"original", "zero", "mean", "random_zero", "random_mean"}
    assert summary["times_worse"] == summary["perplexity"]["zero"] / summary["perplexity"]["original"]
    shares = parts["attention_map"]["shares"]
    assert summary["attention_share"] == max(shares) == shares[summary["attention_layer"] - 1]

    text = (run.workdir / "report.html").read_text()
    page = Page(text)
    assert page.requests == []
    assert page.tags.count("script") == 3  # the data, the charts' library, ours
    assert "url(" not in text
    assert "@import" not in text
    assert len(page.images) == 4
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.images)
    data = explored(text)
    here, other = data["inputs"]
    assert (here["input"], other["input"]) == ("BOS in front", "no BOS")
    assert (here["tokens"][1:], here["massive"], other["massive"]) == (other["tokens"], [0], [])
    for layer, summarised in zip(here["layers"], parts["layerwise"]["layers"], strict=True):
        top = max(range(len(here["tokens"])), key=lambda t: abs(layer["values"][t]))
        largest = summarised["top"][0]
        assert (top, layer["dims"][top]) == (largest["position"], largest["dim"])
        assert layer["values"][top] == pytest.approx(largest["value"], rel=1e-5)
        assert layer["median"] == pytest.approx(summarised["median"], rel=1e-5)
    assert [layer["share"] for layer in here["layers"]] == pytest.approx(shares, rel=1e-5)
    assert all(abs(sum(row) - 1000) <= len(row) for head in here["attention"]["maps"][1] for row in head)
    (panel,) = data["what_if"]
    assert panel["places"][0] == f"massive: position 0, dim {PLANTED}"
    assert (panel["text"], panel["bos"], panel["tokens"]) == (str(text_file), True, 25)
    assert len(panel["edits"]) == len(panel["places"]) * len(panel["operations"]) * 3
    assert all(1 <= edit["layer"] <= 3 and len(edit["top"]) == 5 for edit in panel["edits"])
    assert f"--model={tiny_directory}" in data["provenance"]["Command"]
    words = " ".join(page.text)
    for expected in ("one number to zero", "“<s>”, dim 5", "book.txt: 3 windows of 24", "magnitude above 100"):
        assert expected in words
    assert "one number to zero" in run.out
    assert str(run.workdir / "report.html") in run.out


def test_without(run, text_file):
    summary = run("reproduce", f"--text={text_file}", "--windows=3", "--context=24")
    assert {path.name for path in run.workdir.iterdir()} == FILES
    assert summary["massive"] == []
    assert (summary["attention_share"], summary["times_worse"]) == (None, None)
    assert set(summary["perplexity"]) == {"original"}
    assert read_json(run.workdir / "intervene.json")["sites"] == []
    assert "no massive activations" in run.out
    assert "so nothing was changed" in (run.workdir / "report.html").read_text()


@pytest.mark.slow
def test_places_and_layer_given(run, text_file):
    summary = run(
        *("reproduce", f"--text={text_file}", "--windows=2", "--context=24", "--layer=2", "--sites=0:1,1:2"),
        *("--ops=set=4", "--nocontrols", "--head=1"),
    )
    assert summary["layer"] == 2
    assert summary["intervention"]["layer"] == 2
    assert [(s["position"], s["dim"]) for s in summary["intervention"]["sites"]] == [(0, 1), (1, 2)]
    assert set(summary["perplexity"]) == {"original", "set=4"}


def start(*arguments, unbuffered=""):
    """Starts Python in the repository."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def binary(name, *arguments, **options):
    """Starts an experiment as a user does."""
    return start("-m", f"experiments.{name}", *arguments, **options)


STOPS_IN_THE_MIDDLE = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from experiments import common, layerwise
from massive_jax.files import atomic_write

def plot(result, path):
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(60)

layerwise.plot_layerwise = plot
common.run_experiment(layerwise.main)
"""


class TestProcess:
    @pytest.mark.parametrize("name", ["layerwise", pytest.param("intervene", marks=pytest.mark.slow)])
    def test_help(self, name):
        process = binary(name, "--help")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert err == ""
        for word in (f"python -m experiments.{name}", f"{name}.json", "--workdir", "traceback", "--model", "--text"):
            assert word in out

    def test_success(self, tiny_directory, tmp_path):
        process = binary("layerwise", f"--model={tiny_directory}", f"--workdir={tmp_path / 'out'}")
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert out.splitlines()[-1].startswith("wrote ")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"layerwise.json", "layerwise.png"}
        assert json.loads((tmp_path / "out" / "layerwise.json").read_text())["model"] == str(tiny_directory)

    @pytest.mark.parametrize(
        ("name", "argument"),
        [
            ("intervene", "--sites=nonsense"),
            pytest.param("train_gpt2", "--text=book.txt", marks=pytest.mark.slow),
        ],
    )
    def test_bad_input(self, tmp_path, name, argument):
        process = binary(name, argument, f"--workdir={tmp_path / 'new'}")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert out == ""
        assert err.startswith("error: ")
        assert argument.partition("=")[0] in err
        assert err.count("\n") == 1
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
    )
    def test_a_signal_while_writing(self, tiny_directory, tmp_path, number, status):
        process = start(f"-c{STOPS_IN_THE_MIDDLE}", f"--model={tiny_directory}", f"--workdir={tmp_path}")
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert err == ("error: interrupted.\n" if number == signal.SIGINT else "")
        assert [path.name for path in tmp_path.iterdir()] == ["layerwise.json"]

    @pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
    def test_a_reader_that_has_seen_enough(self, tiny_directory, tmp_path, unbuffered):
        model = f"--model={tiny_directory}"
        process = binary("layerwise", model, f"--workdir={tmp_path}", unbuffered=unbuffered)
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        assert (process.wait(timeout=60), err) == (0, "")
        assert (tmp_path / "layerwise.png").exists()
