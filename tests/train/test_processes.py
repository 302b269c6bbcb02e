"""Several processes, as on several hosts: the numbers of one, one stop for all, and which part of a batch is whose."""

import json
import signal
import time
import types

import jax
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.parallel import in_any, process_part
from massive_jax.train import read_lines


def losses(workdir):
    return {record["step"]: record["loss"] for record in read_lines(workdir / "metrics.jsonl") if "loss" in record}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, token_file, start):
    """The curve of one process with as many devices; stopped by a SIGTERM to one, it goes on to the last bit."""
    port = start.free_port()
    pair = [start(2, "-m", "tests.fixtures.pair", tmp_path / "two", token_file.path, port, n, 2) for n in range(2)]
    alone = start(4, "-m", "tests.fixtures.pair", tmp_path / "one", token_file.path, 0, 0, 1)
    for process in (*pair, alone):
        assert process.wait(240) == 0, process.said()[-3000:]
    assert pair[0].said().count("step 4/9  loss") == 1
    assert "loss" not in pair[1].said()

    two, one = tmp_path / "two" / "whole", tmp_path / "one" / "whole"
    assert list(losses(two)) == list(range(1, 10))
    np.testing.assert_allclose(list(losses(two).values()), list(losses(one).values()), rtol=1e-5)
    for name in ("metrics.jsonl", "census.jsonl"):
        for ours, theirs in zip(read_lines(two / name), read_lines(one / name), strict=True):
            assert ours["step"] == theirs["step"]
            if "validation_loss" in ours:
                assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-5)
            for a, b in zip(ours.get("layers", ()), theirs.get("layers", ()), strict=True):
                assert a["kurtosis"] == pytest.approx(b["kurtosis"], rel=1e-3)
    params = [mj.load(str(workdir / "model")).params for workdir in (two, one)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *params)

    stopped = tmp_path / "two" / "stopped"
    assert [(tmp_path / "two" / f"stopped_{n}").read_text() for n in range(2)] == ["6", "6"]  # asked before step 6
    assert losses(stopped) == losses(two)
    assert read_lines(stopped / "census.jsonl") == read_lines(two / "census.jsonl")
    again = mj.load(str(stopped / "model")).params
    jax.tree.map(np.testing.assert_array_equal, again, params[0])
    metadata = json.loads((stopped / "checkpoints" / "9" / "_CHECKPOINT_METADATA").read_text())
    assert metadata["custom_metadata"]["massive_jax_training"]["data"] == {"next_index": 9}


@pytest.mark.slow
def test_the_binary_stops_everywhere(tmp_path, start):
    """SIGTERM to the second of two processes: both end as preempted, with a whole checkpoint."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i:02d} of the small book. It is short.\n" for i in range(40)))
    workdir, port = tmp_path / "results", start.free_port()
    flags = ("--mesh=4,1", "--context=16", "--batch=8", "--steps=500", "--log_every=1", "--census_every=0")
    pair = [
        start(
            *(2, "-m", "experiments.train_gpt2", f"--workdir={workdir}", f"--data={text}", *flags),
            *(f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={n}"),
        )
        for n in range(2)
    ]
    deadline = time.monotonic() + 240
    while len(losses(workdir)) < 3 and time.monotonic() < deadline and pair[0].poll() is None:
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        assert process.wait(120) == 143, process.said()[-3000:]
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"stopped by SIGTERM after step {step}" in pair[0].said()
    assert list(losses(workdir)) == list(range(1, step + 1))
    assert "stopped" not in pair[1].said()
    assert (workdir / "checkpoints" / str(step) / "commit_success.txt").exists()


def mesh_of_processes(processes):
    """A stand-in for a mesh whose devices are of these processes: [data, model]."""
    devices = np.array([[types.SimpleNamespace(process_index=p) for p in row] for row in processes])
    return types.SimpleNamespace(devices=devices)


@pytest.mark.parametrize(
    ("processes", "parts"),
    [
        ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
        ([[0, 0], [1, 1]], [(0, 2), (1, 2)]),
        ([[0, 0, 1, 1]], [(0, 1), (0, 1)]),
        ([[0, 1], [0, 1]], [(0, 1), (0, 1)]),
        ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([[1], [0]], [(1, 2), (0, 2)]),
    ],
)
def test_parts_of_a_batch(processes, parts, monkeypatch):
    for number, part in enumerate(parts):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        assert process_part(mesh_of_processes(processes)) == part


@pytest.mark.parametrize("processes", [[[0, 0, 1], [1, 2, 2]], [[0], [0], [1]], [[1, 1]]])
def test_meshes_that_cut_across_processes(processes, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(ValueError, match="parts of a batch that overlap"):
        process_part(mesh_of_processes(processes))


def test_alone_there_is_nobody_to_ask():
    assert process_part(None) == (0, 1)
    mesh = mj.parallel.make_mesh(1, 1)
    assert bool(in_any(True, mesh))
    assert not bool(in_any(False, mesh))
