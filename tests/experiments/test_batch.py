"""Batches: what a file asks for, what is run again, what is told of it; and, slow, real ones that are killed."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml
from absl import flags

from experiments import apart, batch
from experiments.units import Unit, check_units, read_units
from massive_jax.files import as_path, locked, read_json, write_json
from massive_jax.report import as_record
from massive_jax.report.batch import headline
from massive_jax.report.results import Batch
from tests.fixtures.buckets import bucket

__all__ = ["bucket"]

GRID = """
- experiment: [census, layerwise]
  model: [smollm2_135m, some/where]
  bos: false
- {experiment: intervene, places: [4:12, "0:507,0:247"], dim: [null, 5]}
- {experiment: layerwise, prompt: [[one, two], three]}
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return read_units(path)

    return read


class TestFile:
    def test_a_list_is_a_unit_for_each_of_its_values(self, read):
        units = read(GRID)
        assert [unit.arguments() for unit in units] == [
            *2 * [["--model=smollm2_135m", "--bos=false"], ["--model=some/where", "--bos=false"]],
            ["--places=4:12"],
            ["--places=4:12", "--dim=5"],
            ["--places=0:507,0:247"],
            ["--places=0:507,0:247", "--dim=5"],
            ["--prompt=one", "--prompt=two"],
            ["--prompt=three"],
        ]
        assert [unit.experiment for unit in units[:5]] == ["census", "census", "layerwise", "layerwise", "intervene"]
        assert units[1].title == "census where bos=false"
        assert len({unit.name for unit in units}) == len(units)

    def test_a_unit_keeps_its_directory_wherever_it_stands(self, read):
        (unit,) = read("- {experiment: census, model: a/b, windows: 8}")
        other = read("- {experiment: layerwise}\n- windows: [4, 8]\n  model: a/b\n  experiment: census")[2]
        assert (unit.id, unit.name) == (other.id, other.name)
        assert unit.name == f"census-b-windows=8-{unit.id}"
        assert Unit("layerwise", {"prompt": "../.. \n/" + 999 * "a"}).name.startswith("layerwise-prompt=..-..-aaa")
        assert len(Unit("layerwise", {"prompt": 999 * "é/"}).name) < 100

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected a list of groups"),
            ("experiment: census", "expected a list of groups"),
            ("- census", "line 1: expected a group"),
            ("- {experiment: census", "is no YAML"),
            ("- &a [*a]", "is no YAML|expected a group"),
            ("- model: a", "line 1: the group has no experiment"),
            ("- experiment: null", "the group has no experiment"),
            ("- experiment: [[census]]", "the group has no experiment"),
            (
                "- {experiment: layerwise}\n- {experiment: censsus}",
                "line 2: no experiment 'censsus'; did you mean census",
            ),
            ("- {experiment: batch}", "no experiment 'batch'"),
            ("- {experiment: census, Windows: 8}", "'Windows' is no name of a flag"),
            ("- {experiment: census, '<<': 8}", "'<<' is no name of a flag"),
            ("- {experiment: census, windows: 8, windows: 9}", "two of 'windows'"),
            ("- {experiment: census, workdir: here}", "leave out 'workdir'; the batch gives each unit its own"),
            ("- {experiment: census, distributed: true}", "leave out 'distributed'; give it to the batch"),
            ("- {experiment: census, process_id: 0}", "leave out 'process_id'; give it to the batch"),
            ("- {experiment: census, flagfile: a}", "leave out 'flagfile'; write its flags here"),
            ("- {experiment: census, undefok: a, a: 1}", "leave out 'undefok'"),
            (r'- {experiment: layerwise, prompt: [[b, "a\0"]]}', "prompt 'b' cannot stand in a command: it has a null"),
            (r'- {experiment: layerwise, prompt: "\ud800"}', r"'\\ud800' cannot stand in a command"),
            (f"- {{experiment: layerwise, prompt: {100_001 * 'a'}}}", "or more than 100,000 bytes"),
            ("- {experiment: census, windows: []}", "'windows' is an empty list"),
            ("- {experiment: census, windows: [8, 8]}", "'windows' lists 8 twice"),
            ("- {experiment: census, windows: {a: 8}}", "a value of 'windows' is no text"),
            (
                "- {experiment: census}\n- {experiment: [layerwise, census]}",
                "asked for twice, also in the group of line 1",
            ),
            (f"- {{experiment: census, a: {[*range(200)]}, b: {[*range(200)]}}}", "40,000 units or more"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, read, text, message):
        with pytest.raises(ValueError, match=message) as raised:
            read(text)
        assert "\n" not in str(raised.value)
        assert str(raised.value).startswith("--file=")


@pytest.fixture
def sweep(tmp_path, clean_flags, monkeypatch, capsys):
    """`sweep("--retry")` runs a batch of four units, `ALL`; what becomes of them is played by `sweep.plays`."""
    path, ran = tmp_path / "sweep.yaml", []
    path.write_text("- {experiment: [intervene, layerwise], layer: [1, 2]}", encoding="utf-8")
    plays = {}

    def run(experiment, arguments, log):
        ran.append((experiment, arguments[0]))
        result = {"perplexity": {"original": 2.5, "zero": math.inf}, "layer": 3, "finding": "It is so."}
        write_json(as_path(arguments[-1].removeprefix("--workdir=")) / f"{experiment}.json", result)
        with log.open("a") as file:
            file.write("working\nerror: no such layer\n")
        return plays.get(ran[-1], lambda: 0)()

    monkeypatch.setattr(apart, "run", run)
    monkeypatch.setattr(batch, "check_units", lambda *_: None)
    workdir = tmp_path / "out"

    sweep: Any

    def run_batch(*arguments):
        ran.clear()
        clean_flags()
        flags.FLAGS(["batch", f"--file={path}", f"--workdir={workdir}", *arguments])
        status: Any = 0
        try:
            batch.main()
        except SystemExit as ended:
            status = ended.code
        sweep.out = capsys.readouterr()
        return status, list(ran)

    sweep = run_batch
    sweep.plays, sweep.workdir, sweep.out = plays, workdir, None
    return sweep


ALL = [("intervene", "--layer=1"), ("intervene", "--layer=2"), ("layerwise", "--layer=1"), ("layerwise", "--layer=2")]


class TestRun:
    def test_only_what_is_missing_or_failed_is_run_again(self, sweep):
        sweep.plays[ALL[1]] = lambda: 1
        sweep.plays[ALL[3]] = lambda: sys.exit(143)
        assert sweep() == (143, ALL)
        assert "stopped after 3 of 4 units; the same command goes on" in sweep.out.err
        assert not (sweep.workdir / "summary.json").exists()
        sweep.plays[ALL[3]] = lambda: -9
        assert sweep("--noretry") == (2, [ALL[3]])
        result = as_record(Batch, read_json(sweep.workdir / "summary.json"))
        assert [unit.status for unit in result.units] == ["done", "failed", "done", "failed"]
        assert [unit.error for unit in result.units[1::2]] == [
            "no such layer",
            "ended by SIGKILL, as where memory runs out; its last line: error: no such layer",
        ]
        sweep.plays.clear()
        assert sweep() == (0, [ALL[1], ALL[3]])
        assert sweep() == (0, [])
        assert len((sweep.workdir / "results.jsonl").read_text().splitlines()) == 4

    def test_missing_ones_come_before_those_that_failed(self, sweep):
        sweep.plays[ALL[0]] = lambda: 1
        sweep.plays[ALL[2]] = lambda: sys.exit(143)
        sweep()
        assert sweep()[1] == [ALL[2]]
        del sweep.plays[ALL[2]]
        assert sweep()[1] == [ALL[2], ALL[3], ALL[0]]

    def test_shards_are_put_together(self, sweep):
        assert sweep("--shard=1/3") == (0, [ALL[1]])
        assert sweep("--shard=0/3") == (0, [ALL[0], ALL[3]])
        assert "3 of 4 units done, 1 missing" in (sweep.workdir / "report.html").read_text()
        assert sweep() == (0, [ALL[2]])
        names = sorted(path.name for path in sweep.workdir.glob("*.jsonl"))
        assert names == ["results.0.jsonl", "results.1.jsonl", "results.jsonl"]
        assert sweep("--shard=0/1") == (0, [])

    def test_a_dry_run_writes_nothing(self, sweep):
        assert sweep("--dry_run") == (0, [])
        assert "python -m experiments.layerwise --layer=2 --workdir=" in sweep.out.out
        assert "4 of 4 units to run" in sweep.out.out
        assert not sweep.workdir.exists()

    def test_what_it_writes(self, sweep):
        sweep.plays[ALL[2]] = lambda: 1
        sweep()
        with (sweep.workdir / "summary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["--layer"] for row in rows] == ["1", "2", "1", "2"]
        assert [rows[0][key] for key in ("status", "perplexity original", "perplexity zero")] == ["done", "2.5", "inf"]
        assert rows[2]["error"] == "no such layer"
        page = (sweep.workdir / "report.html").read_text()
        assert "3 of 4 units done, 1 failed." in page
        assert "Failed: no such layer" in page
        assert f"href='units/{rows[0]['name'].replace('=', '%3D')}/unit.log'" in page
        assert "failed: layerwise layer=1: no such layer" in sweep.out.out
        lines = (sweep.workdir / "results.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["headline"] == {"perplexity original": 2.5, "perplexity zero": "inf"}

    def test_results_in_a_store(self, sweep, bucket):
        sweep.plays[ALL[3]] = lambda: 1
        assert sweep("--workdir=gs://results/sweep") == (2, ALL)
        assert sweep("--workdir=gs://results/sweep") == (2, [ALL[3]])
        objects = bucket.objects("results/sweep/")
        assert {"results.jsonl", "summary.json", "summary.csv", "report.html"} <= set(objects)
        (log,) = (
            text for name, text in objects.items() if name.startswith("units/layerwise-layer=2-") and "log" in name
        )
        assert log.count(b"$ python -m experiments.layerwise --layer=2 --workdir=gs://results/sweep/units/") == 2
        assert not sweep.workdir.exists()

    def test_a_line_that_is_none(self, sweep):
        sweep()
        (sweep.workdir / "results.jsonl").write_text('{"id": 1}\n')
        with pytest.raises(ValueError, match=r"results.jsonl: line 1 is no result.*remove that line"):
            sweep()

    def test_two_at_once_are_refused(self, sweep):
        with locked(sweep.workdir / "results.jsonl"), pytest.raises(ValueError, match="written by another process"):
            sweep()


class TestHosts:
    def test_every_unit_has_one_shard(self, clean_flags):
        found = []
        for index in range(3):
            clean_flags()
            flags.FLAGS(["batch", f"--shard={index}/3"])
            i, n = batch.shard()
            found += [*range(10)][i::n]
        assert sorted(found) == [*range(10)]

    @pytest.mark.parametrize("shard", ["3/3", "1", "-1/2", "a/b", "0/0", "auto"])
    def test_no_shard(self, clean_flags, monkeypatch, shard):
        for name in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "TPU_WORKER_ID"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(batch, "_of_tpu_vm", lambda _: "")
        clean_flags()
        flags.FLAGS(["batch", f"--shard={shard}"])
        with pytest.raises(ValueError, match=f"--shard={shard}: .*give --shard=I/N|--shard={shard}: give I/N"):
            batch.shard()

    def test_the_launcher_says_which(self, clean_flags, monkeypatch):
        clean_flags()
        flags.FLAGS(["batch", "--shard=auto"])
        said = {"agent-worker-number": "2", "worker-network-endpoints": "a:1,b:2,c:3,d:4"}
        monkeypatch.setattr(batch, "_of_tpu_vm", said.get)
        for name in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "TPU_WORKER_ID"):
            monkeypatch.delenv(name, raising=False)
        assert batch.shard() == (2, 4)
        monkeypatch.setenv("TPU_WORKER_ID", "1")
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c")
        assert batch.shard() == (1, 3)
        monkeypatch.setenv("SLURM_PROCID", "5")
        monkeypatch.setenv("SLURM_NTASKS", "8")
        assert batch.shard() == (5, 8)

    def test_flags_of_processes_are_for_every_unit(self, clean_flags):
        clean_flags()
        flags.FLAGS(["batch", "--mesh=fsdp:2"])
        assert batch.together() == (["--mesh=fsdp:2"], 0)
        clean_flags()
        flags.FLAGS(["batch", "--coordinator=a:1", "--num_processes=2", "--process_id=1"])
        passed, host = batch.together()
        assert sorted(passed) == ["--coordinator=a:1", "--num_processes=2", "--process_id=1"]
        assert host == 1
        flags.FLAGS(["batch", "--shard=0/2"])
        with pytest.raises(ValueError, match="--shard has no effect beside --"):
            batch.together()


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (1, "a\nerror: two\nlines\n", "two; lines"),
        (1, "Traceback\nKeyError: 'x'\n\n", "exit status 1: KeyError: 'x'"),
        (3, "", "exit status 3"),
        (-11, "", "ended by SIGSEGV; its last line: it printed nothing"),
    ],
)
def test_why_a_run_failed(status, said, reason):
    assert apart.reason(status, said) == reason


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"layers": 3}'])
def test_a_result_that_cannot_be_read_has_no_numbers(tmp_path, content):
    assert headline("census", tmp_path) == (None, {})
    (tmp_path / "census.json").write_text(content)
    assert headline("census", tmp_path) == (None, {})


@pytest.mark.slow
def test_every_experiment_looks_at_its_own_flags(read, tiny_directory, tmp_path):
    """Real ones: a flag of another, a value refused, flags that do not go together, no such model, the same twice."""

    def problem(text):
        with pytest.raises(ValueError, match="sweep.yaml: line") as raised:
            check_units(read(text), [], "sweep.yaml")
        return str(raised.value)

    model = f"model: {tiny_directory}"
    check_units(read(f"- {{experiment: [census, layerwise], {model}, windows: [2, 4], context: 16}}"), [], "")
    assert "Unknown command line flag 'windos'" in problem(f"- {{experiment: census, {model}, windos: 2}}")
    assert "--layer has no effect here; leave it out" in problem(f"- {{experiment: observe, {model}, layer: 2}}")
    assert "no flag --only_check_args" in problem(f"- {{experiment: census, {model}, only_check_args: true}}")
    assert "--windows=x" in problem(f"- {{experiment: census, {model}, windows: x}}")
    assert "--prompt has no effect beside" in problem("- {experiment: layerwise, prompt: a, windows: 2}")
    assert "no model 'nowhere/at/all'" in problem("- {experiment: census, model: [smollm2_135m, nowhere/at/all]}")
    assert "is the same as" in problem(f"- {{experiment: census, {model}, bos: [false, null]}}")
    assert "--windows is given 2 times" in problem(f"- {{experiment: census, {model}, windows: [[2, 3]]}}")
    assert "no --workdir" in problem("- {experiment: prepare_data, text: python}")
    assert "--preset=no: there are" in problem("- {experiment: train_gpt2, preset: [small, 'no']}")


@pytest.mark.slow
def test_killed_twice_and_finished(tiny_directory, tmp_path):
    """SIGKILL, then SIGTERM, in the middle of a unit; the results are those of a batch that nothing befell."""
    models = []
    for i in range(3):
        models.append(str(tmp_path / f"model_{i}"))
        os.symlink(tiny_directory, models[-1])
    groups = [{"experiment": ["census", "layerwise"], "model": models, "windows": 2, "context": 16, "text": "python"}]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump([*groups, {"experiment": "layerwise", "model": models[0], "prompt": 99 * "a"}]))

    def start(workdir):
        command = [sys.executable, "-m", "experiments.batch", f"--file={file}", f"--workdir={workdir}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def stop(done, how):
        """Sends a signal when so many units are done and the next has begun to write its log."""
        running = start(tmp_path / "killed")
        logs = lambda: len([*(tmp_path / "killed").glob("units/*/unit.log")])  # noqa: E731
        while running.poll() is None and logs() <= done:
            time.sleep(0.05)
        running.send_signal(how)
        running.communicate()
        lines = (tmp_path / "killed" / "results.jsonl").read_text().splitlines()
        return running.returncode, len(lines)

    assert stop(2, signal.SIGKILL) == (-signal.SIGKILL, 2)
    assert stop(4, signal.SIGTERM) == (143, 4)
    for workdir in ("killed", "whole"):
        running = start(tmp_path / workdir)
        _, errors = running.communicate()
        assert running.returncode == 2, errors  # one unit's prompt is too long
    killed, whole = (
        as_record(Batch, read_json(tmp_path / name / "summary.json")).units for name in ("killed", "whole")
    )
    assert [unit.status for unit in whole] == 6 * ["done"] + ["failed"]
    assert "99 tokens are more than the model's context of 96" in whole[-1].error
    for one, other in zip(killed, whole, strict=True):
        assert (one.id, one.status, one.headline, one.error) == (other.id, other.status, other.headline, other.error)
        if one.status == "done":
            paths = [tmp_path / name / "units" / one.name / f"{one.experiment}.json" for name in ("killed", "whole")]
            assert read_json(paths[0]) == read_json(paths[1])
