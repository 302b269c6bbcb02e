"""The emergence experiment: a training's own census, a folder of models, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from absl import flags

from experiments import emergence
from massive_jax.analysis import PARAMETERS, emergence_curve
from massive_jax.files import read_json

TRUE = dict(zip(PARAMETERS, (40.0, 0.5, 0.01, 1.0, 5.0), strict=True))
STEPS = list(range(0, 801, 40))


@pytest.fixture
def run(tmp_path, capsys, clean_flags):
    """`run("--checkpoints=…")`: what emergence.json then holds, and what was printed. No --model is given."""

    def emerge(*arguments):
        clean_flags()
        flags.FLAGS(["emergence", f"--workdir={tmp_path / 'results'}", *arguments])
        emergence.main()
        return read_json(tmp_path / "results" / "emergence.json"), capsys.readouterr().out

    return emerge


@pytest.fixture
def undrawn(monkeypatch):
    """The figure, which takes longest, is left out."""
    monkeypatch.setattr(emergence, "plot_fits", lambda *_: None)


@pytest.fixture
def training(tmp_path):
    """What a training of two layers leaves: layer 1's ratio follows a known curve, layer 2's does not change."""
    directory = tmp_path / "training"
    directory.mkdir()
    ratios = {1: emergence_curve(STEPS, **TRUE), 2: np.full(len(STEPS), 4.0)}
    with (directory / "census.jsonl").open("w") as file:
        for i, step in enumerate(STEPS):
            layers = [
                {"layer": layer, "largest": 2 * ratios[layer][i], "median": 2.0, "kurtosis": 3.0, "sink_rate": 0.1}
                | {"slot_rate": 0.0}
                for layer in (1, 2)
            ]
            file.write(json.dumps({"step": step, "layers": layers}) + "\n")
    (directory / "train_gpt2.json").write_text(json.dumps({"text": "backcopy", "dtype": "float32"}))
    return directory


def test_a_trainings_own_census(run, training, tmp_path):
    found, said = run(f"--checkpoints={training}")
    assert [record["step"] for record in found["census"]] == STEPS
    first, second = found["fits"]
    assert first["r_squared"] == found["r_squared"] == pytest.approx(1)
    for name, value in TRUE.items():
        assert first["parameters"][name]["value"] == pytest.approx(value, rel=1e-3)
        assert first["parameters"][name]["error"] < 1e-3
    assert second == {"layer": 2, "parameters": None, "r_squared": None, "peak": None, "problem": second["problem"]}
    assert "no curve through layer 2: the ratio does not change." in said
    assert (found["text"], found["dtype"], found["sink"]) == ("backcopy", "float32", "position 0")
    assert (tmp_path / "results" / "emergence.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_models_is_measured_in_order_of_steps(run, tiny_directory, text_file, tmp_path, states, tiny):
    for name in ("step10", "step9"):
        shutil.copytree(tiny_directory, tmp_path / "models" / name)
    arguments = (f"--text={text_file}", "--windows=2", "--context=16")
    found, said = run(f"--checkpoints={tmp_path / 'models'}", *arguments)
    assert [record["step"] for record in found["census"]] == [9, 10]
    assert [name.rsplit("/", 1)[1] for name in found["checkpoints"]] == ["step9", "step10"]
    assert (found["bos"], found["windows"], found["context"]) == (False, 2, 16)
    hidden = np.abs(states(tiny.tokenize(text_file.read_text())[:, :32].reshape(2, 16)))
    for layer, own in zip(found["census"][0]["layers"], hidden, strict=True):
        assert layer["largest"] == pytest.approx(own.max(axis=(1, 2)).mean(), rel=1e-5)
    assert all("2 points; a curve of five parameters needs at least six" in fit["problem"] for fit in found["fits"])
    assert "no curve through layers 1, 2, 3" in said
    assert found["r_squared"] is None


@pytest.mark.usefixtures("undrawn")
def test_revisions_of_a_hub_id(run, tiny, text_file, monkeypatch):
    asked = []
    monkeypatch.setattr(emergence.common, "load_model", lambda name, revision: asked.append((name, revision)) or tiny)
    arguments = ("--model=EleutherAI/pythia-70m", "--revisions=step0,step512", "--windows=1", "--context=16")
    found, _ = run(f"--text={text_file}", *arguments)
    assert asked == [("EleutherAI/pythia-70m", "step0"), ("EleutherAI/pythia-70m", "step512")]
    assert [record["step"] for record in found["census"]] == [0, 512]
    assert found["checkpoints"] == ["EleutherAI/pythia-70m@step0", "EleutherAI/pythia-70m@step512"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look at; give one of --checkpoints=DIR, --models="),
        (["--models=a1,a2", "--checkpoints=x"], "--checkpoints and --models are given; give one of"),
        (["--models=a2,a1"], "the checkpoints' steps do not rise: 2, 1; put them in order"),
        (["--models=a,b"], "give --at_steps, a whole number for each checkpoint"),
        (["--models=a,b", "--at_steps=1"], "--at_steps has 1 steps for 2 checkpoints"),
        (["--models=a,b", "--at_steps=1,x"], "give --at_steps, a whole number for each"),
        (["--checkpoints=no/such"], "--checkpoints=no/such: there is no such directory"),
        (["--checkpoints=."], "has neither the census.jsonl of a training nor models with a step at the end"),
    ],
)
def test_what_is_refused(run, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(*arguments)


def test_flags_that_a_training_does_not_read(run, training):
    with pytest.raises(ValueError, match="--model has no effect beside --checkpoints"):
        run(f"--checkpoints={training}", "--model=x")
    with pytest.raises(ValueError, match="--windows has no effect with a training, whose own census is read"):
        run(f"--checkpoints={training}", "--windows=2")


def test_a_wrong_model_shows_before_the_first_has_run(run, tiny_directory, monkeypatch):
    monkeypatch.setattr(emergence, "of_models", None)
    with pytest.raises(ValueError, match="no model '/nowhere'"):
        run(f"--models={tiny_directory},/nowhere", "--at_steps=0,1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", "census.jsonl: line 22 is no record of a training, 'no JSON'; remove that line"),
        ('{"step": 1}', "census.jsonl: a line has no 'layers'"),
        ('{"step": 900, "layers": []}', "its censuses have different layers, or none"),
    ],
)
def test_a_census_that_is_broken(run, training, line, message):
    with (training / "census.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        run(f"--checkpoints={training}")


def test_a_training_without_a_census_yet(run, training):
    (training / "census.jsonl").write_text("")
    with pytest.raises(ValueError, match="census.jsonl is empty: the training has not come to its first census"):
        run(f"--checkpoints={training}")
