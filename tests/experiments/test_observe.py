"""Everything of a model at once: it is what the parts say, and one table of it."""

import json

import numpy as np
import pytest

from massive_jax.files import read_json
from massive_jax.report import METRICS, as_record
from massive_jax.report.results import Observatory


@pytest.fixture
def observed(run, text_file, monkeypatch):
    from experiments import observe

    monkeypatch.setattr(observe, "_EDITED", 3)
    read = f"--text={text_file}", "--windows=4", "--context=16"
    with pytest.raises(FileNotFoundError):
        run("observe", *read, "--massive_ratio=500")  # the fixture looks for observe.json
    return read_json(run.workdir / "observatory.json"), run.workdir


@pytest.mark.slow
def test_it_is_what_its_parts_say(observed):
    found, workdir = observed
    without, with_bos = found["models"]
    assert (without["bos"], with_bos["bos"]) == (False, True)
    assert (found["windows"], found["context"]) == (4, 16)
    folders = sorted(path.name for path in workdir.iterdir() if path.is_dir())
    assert len(folders) == 2
    for name, one in zip(folders, (without, with_bos), strict=True):
        census = read_json(workdir / name / "census.json")
        assert census["bos"] == one["bos"] == one["census"]["bos"] == name.endswith("-bos")
        assert one["metrics"]["sink_rate"]["value"] == census["sink_rate"] == one["census"]["sink_rate"]
        assert one["finding"] == census["finding"]
        changed = read_json(workdir / name / "intervene.json")
        assert one["metrics"]["perplexity"]["value"] == changed["perplexity"]["original"]
        assert (workdir / name / "census.png").exists()
        weights = read_json(workdir / name / "super_weights.json")
        confirmed = sum(weight["confirmed"] for weight in weights["tested"])
        assert one["metrics"]["super_weights"]["value"] == confirmed
        assert one["attention"]["finding"] == read_json(workdir / name / "attention.json")["finding"]
    assert with_bos["metrics"]["largest"]["value"] == pytest.approx(3000, rel=0.05)
    assert with_bos["metrics"].keys() <= METRICS.keys()
    assert "perplexity_zero" in with_bos["metrics"]
    assert "perplexity_zero" not in without["metrics"]  # nothing is massive there
    assert without["finding"].startswith("no massive activations")
    peak = np.mean([layer["sink_mass"] for layer in without["census"]["layers"]])
    assert without["metrics"]["sink_mass"]["value"] == pytest.approx(peak)
    assert (workdir / "observatory.png").stat().st_size > 10_000
    page = (workdir / "report.html").read_text()
    data = json.loads(page.partition("id='explored'>")[2].partition("</script>")[0])
    assert [one["input"] for one in data["inputs"]] == ["no BOS", "BOS in front"]
    assert [one["massive"] for one in data["inputs"]] == [[], [0]]
    assert data["what_if"][0]["bos"] is True
    assert data["what_if"][0]["places"][0].startswith("massive: position 0, dim")
    assert data["headline"].endswith(without["finding"])
    assert all(one["finding"].split(":")[0] in page for one in found["models"])
    assert as_record(Observatory, found).models[1].census.massive


def test_windows_that_do_not_fit_with_bos_show_before_anything_is_measured(run, text_file, monkeypatch):
    from experiments import observe

    monkeypatch.setattr(observe, "observe", None)
    with pytest.raises(ValueError, match="96 tokens and BOS is longer than the model's 96"):
        run("observe", f"--text={text_file}", "--windows=1", "--context=96")


def test_bos_is_not_a_flag_of_it():
    import subprocess
    import sys

    process = subprocess.run(
        [sys.executable, "-m", "experiments.observe", "--bos"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "--bos has no effect here" in process.stderr
