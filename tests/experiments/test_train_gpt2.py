"""The training binary: what it writes, what a SIGTERM does to its loss curve, and bad input."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import pytest
from absl import flags

from experiments import common

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
FLAGS = flags.FLAGS
TINY = ("--context=16", "--batch=4", "--steps=12", "--checkpoint_every=4", "--eval_every=6", "--census_every=6")


def command(workdir, *arguments):
    return [sys.executable, "-m", "experiments.train_gpt2", f"--workdir={workdir}", *TINY, *arguments]


def losses(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_resumed_gives_the_same_curve(tmp_path, text_file, signum):
    """As processes: one left alone, one stopped mid-run and started again."""
    data = f"--data={text_file}"
    subprocess.run(command(tmp_path / "whole", data), check=True, capture_output=True)
    process = subprocess.Popen(
        command(tmp_path / "stopped", data, "--log_every=1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 300
    while len(losses(tmp_path / "stopped")) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signum)
    out, _ = process.communicate(timeout=120)
    stopped = len(losses(tmp_path / "stopped"))
    assert 5 <= stopped < 12
    done = subprocess.run(command(tmp_path / "stopped", data), check=True, capture_output=True, text=True)
    if signum == signal.SIGTERM:
        assert process.returncode == 143, out
        assert f"stopped by SIGTERM after step {stopped}" in out
        assert f"going on after step {stopped}" in done.stdout
    else:
        assert process.returncode == -signal.SIGKILL, out
        found = re.search(r"going on after step (\d+)", done.stdout)
        assert found is None or int(found[1]) in (4, 8)  # the last checkpoint that was whole, if one was
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 12


@pytest.fixture
def binary(clean_flags, tmp_path):
    """Runs the binary in-process with bad input: gives the message."""

    def run(capsys, name, *arguments):
        clean_flags()
        module = importlib.import_module(f"experiments.{name}")

        def main():
            common.guarded(module.main, common.parse_flags([name, f"--workdir={tmp_path / 'results'}", *arguments]))

        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset=paper"], "--preset=paper needs --data"),
        (["--preset=huge"], "--preset=huge: there are paper, gpu, small, backcopy, emergence"),
        (["--mesh=2"], "give two numbers of devices"),
        (["--mesh=4,4", "--context=16"], "a mesh of 4 × 4 needs 16 devices"),
        (["--attention_bias=nothing"], "should be one of"),
        (["--attention_bias=gate_head", "--slots=2"], "has no slots"),
        (["--context=4096"], "more than the model's max_position 128"),
        (["--bos_token=256"], "bos is 256, no token of the model's (0 to 255)"),
        (["--context=128"], "a longer text or a shorter context"),
        (["--data=missing.bin"], "no token file 'missing.bin'"),
        (["--learning_rate=0"], "give a positive one"),
        (["--clip_residual=nan"], "give a positive one"),
        (["--weight_decay=inf"], "give a finite one"),
        (["--learning_rate=0.1", "--final_learning_rate=0.2"], "a final one that is no larger"),
        (["--norm=batch"], "should be one of"),
        (["--coordinator=localhost:1"], "--num_processes and --process_id missing"),
        (["--num_processes=2", "--process_id=0"], "--coordinator missing"),
        (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], "give HOST:PORT of process 0"),
        (["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"], "they are counted from 0"),
        (["--distributed", "--process_id=0"], "not both"),
    ],
)
def test_bad_input(binary, capsys, text_file, arguments, message):
    data = [] if any("data" in a or "paper" in a for a in arguments) else [f"--data={text_file}"]
    assert message in binary(capsys, "train_gpt2", *data, *arguments)


def test_no_cluster_to_be_found(binary, capsys, monkeypatch):
    """What jax says where it finds none, in one line that says what to do."""

    def none(*_, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", none)
    before = jax.config.values["jax_enable_preemption_service"]
    try:
        assert "jax finds no cluster here" in binary(capsys, "train_gpt2", "--distributed")
    finally:
        jax.config.update("jax_enable_preemption_service", before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --text and --out"),
        (["--adopt=x.bin"], "needs --vocab_size"),
        (["--out=x", "--adopt=y"], "give --text"),
    ],
)
def test_bad_input_of_prepare_data(binary, capsys, arguments, message):
    assert message in binary(capsys, "prepare_data", *arguments)


@pytest.mark.slow
def test_trains_a_variant(run, text_file):
    """In-process: the result, the picture, a model that another experiment takes."""
    options = ("--norm=dynamic_tanh", "--norm_placement=output", "--value_scale=learned", "--clip_residual=30")
    result = run("train_gpt2", f"--data={text_file}", *TINY, "--attention_bias=kv", "--optimizer=muon", *options)
    assert result["attention_bias"] == "kv"
    assert result["unigram_entropy"] > 1
    assert result["tokens"] == 12 * 4 * 16
    assert [layer["layer"] for layer in result["census"]["layers"]] == [1, 2, 3, 4]
    assert all(0 < layer["slot_rate"] < 1 for layer in result["census"]["layers"])
    assert (run.workdir / "emergence.png").read_bytes().startswith(b"\x89PNG")
    model = f"--model={run.workdir / 'model'}"
    assert len(run("layerwise", model)["layers"]) == 4
    assert len(run("census", model, "--windows=2", "--context=16", f"--text={text_file}")["layers"]) == 4
