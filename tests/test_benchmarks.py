"""`benchmarks`: the table of parity, the run on a device, ways to train."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import reductions
from benchmarks.device.emergence import SIZES, config_of, next_stage
from benchmarks.device.record import RECORDS
from benchmarks.device.section import SECTIONS
from benchmarks.device.table import markdown, read_records, with_ratios
from benchmarks.training import SWEEP, Variant
from massive_jax.train import adopt
from massive_jax.train.metrics import flops_per_token


@pytest.mark.slow
def test_the_table_of_parity_has_every_case_of_a_family(tmp_path):
    """Quick and slow ones: tests/zoo/test_mixtral.py has four."""
    out = tmp_path / "PARITY.md"
    command = [sys.executable, "-m", "benchmarks.parity", "--only=test_mixtral and test_parity", f"--out={out}"]
    subprocess.run(command, check=True, capture_output=True)
    assert re.findall(r"\| (\w+) \| (\d+) \| (\w+) \|", out.read_text()) == [
        ("mixtral", "4", "float32"),
        ("mixtral", "4", "bfloat16"),
    ]


def run_device(out, *flags, **environment):
    command = [sys.executable, "-m", "benchmarks.device", "--small", f"--out={out}", *flags]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=580
    )
    return done.stdout, {r["section"]: r["status"] for r in read_records(out) if r["what"] == "status"}


def without_packages(directory):
    """A PYTHONPATH with which little is installed."""
    absent = ["grain", "gguf", "tensorboardX", "tokenizers", "datasets", "huggingface_hub", "matplotlib", "torch"]
    (directory / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({absent}))")
    return os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_device_runs_where_little_is_installed(tmp_path):
    path = without_packages(tmp_path)
    said, ended = run_device(tmp_path, "--sections=environment,train_torch", PYTHONPATH=path)
    assert ended == {"environment": "done", "train_torch": "left out: torch is not there"}
    assert "| environment | done |" in said
    assert not (tmp_path / "roofline.png").exists()
    assert json.loads((tmp_path / "device.json").read_text())[0]["device"]


@pytest.mark.slow
def test_device_runs_all_of_it(tmp_path):
    said, ended = run_device(tmp_path, "--minutes=9")
    assert {name: status for name, status in ended.items() if status != "done"} == {}
    assert "**no**" not in said
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


@pytest.mark.slow
def test_device_compares_what_emerges(tmp_path):
    """On a token file, where little is installed: rows of all three at the same steps, on the disk as they come."""
    data = tmp_path / "words.bin"
    np.random.default_rng(0).integers(0, 256, 5000).astype("<u2").tofile(data)
    adopt(data, vocab_size=256)
    said, ended = run_device(tmp_path, "--sections=emergence", f"--data={data}", PYTHONPATH=without_packages(tmp_path))
    assert ended == {"emergence": "done"}
    toy, *rows = [r for r in read_records(tmp_path) if r["what"] not in ("section", "status")]
    assert (toy["what"], toy["text"], toy["config"]["bos"], toy["planned_steps"]) == ("toy", "words.bin", 256, 20)
    assert [(r["what"], r["steps"]) for r in rows] == [
        (name, steps) for steps in (10, 12, 14, 16, 18, 20) for name in ("none", "sink_token", "kv")
    ]
    assert all(r["loss"] < 5.8 and len(r["census"]) == 2 and r["tokens"] == 64 * r["steps"] for r in rows)
    assert [r["slot_share"] > 0 for r in rows[:3]] == [False, True, True]
    assert "| steps planned | parameters | held-out loss | attention on the first token | sink heads |" in said


def test_device_says_what_became_of_a_section(tmp_path):
    """One that is over its time, one that is killed while it writes, one that is slower than the peer."""
    records = [
        {"section": "forward", "what": "plain, 1 × 8", "tokens_per_second": 30.0, "failed": "a | b"},
        {"section": "forward", "what": "plain, 4 × 8", "tokens_per_second": 30.0},
        {"section": "forward_torch", "what": "torch, eager, 1 × 8", "tokens_per_second": 60.0},
        {"section": "forward_torch", "what": "status", "status": "stopped after 3 s"},
    ]
    (tmp_path / RECORDS).write_text("".join(json.dumps(r) + "\n" for r in records) + '{"section": "forw')
    found = with_ratios(read_records(tmp_path))
    assert [r.get("against_peer") for r in found] == [0.5, None, None, None]
    table = markdown(found)
    assert "| plain, 1 × 8 | 30 | 0.50 | a \\| b |" in table
    assert "| forward_torch | stopped after 3 s |  |  |  |" in table
    assert "| forward | running, or killed |" in table


def test_variants_are_read_as_they_are_written():
    assert [str(Variant.parse(text)) for text in SWEEP] == ["plain", *SWEEP[1:]]
    with pytest.raises(ValueError, match=r"variant 'unrol=1': 'unrol=1' is not NAME=VALUE with a name of unroll, "):
        Variant.parse("unrol=1")
    with pytest.raises(ValueError, match="chunk is 'x', expected a whole number from 0"):
        Variant.parse("chunk=x")
    with pytest.raises(ValueError, match="slots is 'x', expected front or merged"):
        Variant.parse("slots=x")


def test_sections_are_there():
    """Each is a function of its module, found without importing any of them."""
    for module, function, _, _ in SECTIONS.values():
        path = pathlib.Path(__file__).parents[1] / "benchmarks" / "device" / f"{module}.py"
        assert f"def {function}(context: Context)" in path.read_text()


def test_stages_of_what_emerges():
    """Eight from step 10 to the end; fewer steps, the same for all trainings, where the time is short."""
    ends = [10]
    while until := next_stage(ends[-1], 6000, 1e-3, 1e9):
        ends.append(until)
    assert (len(ends), ends[1], ends[-1]) == (9, 759, 6000)
    assert next_stage(10, 6000, 1.0, 110.1) == 110
    assert next_stage(10, 6000, 1.0, 1.0) == next_stage(10, 6000, 1.0, -5.0) == next_stage(6000, 6000, 1.0, 1e9) == 0


def test_sizes_of_what_emerges(tmp_path):
    """Largest first, each a training of its own vocabulary with one token more."""
    np.arange(300, dtype="<u2").tofile(tmp_path / "a.bin")
    file = adopt(tmp_path / "a.bin", vocab_size=50257)
    configs = [config_of(preset, file) for preset in SIZES.values()]
    assert {(c.model.vocab_size, c.bos, c.steps, c.optimizer.kind) for c in configs} == {(50304, 50257, 6000, "adamw")}
    flops = [c.batch * c.context * flops_per_token(c.model, c.context) for c in configs]
    assert flops == sorted(flops, reverse=True)


def test_reductions_by_other_ways_are_the_same():
    found = reductions.measure([2, 16, 24], repeats=1, searches=["0-3-8"], candidates="old|one|search")["candidates"]
    assert {name.split(":")[0] for name in found} == {"median", "top_k", "median and top_k", "moments"}
    assert all(row["right"] and row["reads"] > 0 for row in found.values())
