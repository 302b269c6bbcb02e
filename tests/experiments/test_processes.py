"""Experiments in several processes, as on several hosts: the files of one process; one that is lost ends all."""

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
import pytest
from absl import flags

import experiments
import massive_jax as mj
from experiments.flags import processes
from massive_jax.bias import absorb_prefix, rebuild
from massive_jax.files import read_json
from massive_jax.loading import save
from massive_jax.models import ExpertsConfig
from tests.fixtures.tiny import BOS, TINY, random_model

ROOT = pathlib.Path(experiments.__file__).parent
NOT_COMPARED = {"seconds", "versions", "xxh3_64"}
TRAINING = ("--context=16", "--batch=8", "--steps=6", "--checkpoint_every=3", "--eval_every=3", "--census_every=3")


def binaries():
    """Every experiment that can be started, by its name."""
    files = [*ROOT.glob("*.py"), *(ROOT.parent / "checkpoints").glob("*.py")]
    return {path.stem: path.read_text() for path in files if "common.run_experiment(main)" in path.read_text()}


def test_every_experiment_runs_together_or_says_that_it_does_not(clean_flags):
    """A new one runs in one process until it is in the list."""
    found = binaries()
    assert set(found) >= processes.TOGETHER | processes.PASSED_ON
    clean_flags()
    flags.FLAGS(["it", "--coordinator=localhost:1", "--num_processes=2", "--process_id=0"])
    for name in set(found) - processes.TOGETHER - processes.PASSED_ON:
        with pytest.raises(ValueError, match=f"{name} runs in one process; leave out --distributed"):
            processes.start(name)


def required(model, text, out, images):
    """What is run: experiments, each in its own directory of `out`; those that the others are like."""
    some = (f"--text={text}", "--windows=4", "--context=32", "--bos")
    return [
        ["layerwise", f"--model={model}", f"--workdir={out / 'layerwise'}", "--bos"],
        ["census", f"--model={model}", f"--workdir={out / 'census'}", *some],
        ["intervene", f"--model={model}", f"--workdir={out / 'intervene'}", *some, "--draws=1", "--ops=zero,mean"],
        ["train_gpt2", f"--workdir={out / 'train'}", f"--data={text}", *TRAINING],
        ["convert", f"--model={model}", f"--out={out / 'converted'}"],  # the last: absl requires its --out
    ]


def of_text(model, text, out, images):
    """The others of a language model."""
    some = (f"--text={text}", "--windows=4", "--context=32")
    return [
        [name, f"--model={model}", f"--workdir={out / name}", *rest]
        for name, *rest in (
            ["layerwise", *some],
            ["feature_map", "--bos"],
            ["attention_map", "--bos"],
            ["attention", *some, "--bos"],
            ["super_weights", *some, "--bos", "--others=5", "--tested=1"],
            ["explicit_bias", *some, f"--save={out / 'explicit'}"],
            ["collect", *some, "--activations=block_out:2", "--shuffle"],
            ["sweep", "--bos", "--dim=3"],  # of a whole stream the last layer's gradient is rounding
            ["observe", *some],
        )
    ]


def of_images(model, text, out, images):
    """Those of a vision model."""
    return [
        [name, f"--model={model}", f"--images={images}", f"--workdir={out / name}", *rest]
        for name, *rest in (
            ["layerwise"],
            ["census"],
            ["intervene", "--draws=1"],
            ["feature_map"],
            ["attention"],
            ["vit_registers"],
            ["register_neurons", "--outlier=1.1"],
        )
    ]


def same(a, b, where="", off=1e-6):
    """Two results are equal: numbers to float32's rounding, or `off` by so much; all else exactly."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a.keys() - NOT_COMPARED:
            # A difference of perplexities is as exact as they are; so is a share of an effect in nats.
            own = max(off, 1e-6 * abs(a["value"])) if name == "difference" else off
            if name == "share" and "effects" in a:
                own = max(off, 1e-6 * abs(a["share"] / a["effects"]["zero"]["nats"]["value"]))
            same(a[name], b[name], f"{where}/{name}", own)
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}/{i}", off)
    elif isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, rel=2e-5, abs=off), where
    else:
        assert a == b, where


def same_files(one, other):
    """What two directories hold is equal; pictures are there in both."""
    names = {
        path.relative_to(one)
        for path in one.rglob("*")
        if path.suffix in (".json", ".jsonl", ".png", ".npz", ".safetensors") and "checkpoints" not in str(path)
    }
    assert names
    for name in sorted(names):
        if name.suffix == ".json":
            same(read_json(one / name), read_json(other / name), str(name))
        elif name.suffix == ".npz":
            with np.load(one / name) as a, np.load(other / name) as b:
                assert set(a.files) == set(b.files)
                for key in set(a.files) - {"marks", "checksums"}:
                    np.testing.assert_allclose(a[key], b[key], rtol=2e-5, atol=1e-6, err_msg=f"{name} {key}")
        else:
            assert (other / name).stat().st_size > 0, name


@pytest.fixture
def together(start, tmp_path):
    """`together(runs, count, devices)`: `count` processes that run them; `signal=` as the fixture takes it."""
    numbers = iter(range(99))

    def begin(runs, count, devices, **plan):
        file = tmp_path / f"plan_{next(numbers)}.json"
        file.write_text(json.dumps({"runs": runs, **plan}))
        port = start.free_port()
        return [start(devices, "-m", "tests.fixtures.together", file, port, i, count) for i in range(count)]

    return begin


def wait(started, seconds, status=0):
    """Waits until all have ended, each with `status`."""
    deadline = time.monotonic() + seconds
    for number, process in enumerate(started):
        assert process.wait(max(1, deadline - time.monotonic())) == status, (number, process.said()[-3000:])


# Name -> processes, devices of each, and the flags of the mesh; "heads": fewer key and value heads than devices.
LAYOUTS = {
    "mesh": (1, 8, ["--mesh=data:2,fsdp:2,tensor:2"]),
    "heads": (1, 8, ["--mesh=2,4"]),
    "experts": (1, 8, ["--mesh=tensor:2,expert:4"]),
    "all axes": (1, 8, ["--mesh=fsdp:2,tensor:2,expert:2"]),
    "two": (2, 2, ["--mesh=fsdp:2,tensor:2"]),
    "four": (4, 1, []),
}


@pytest.fixture
def as_one(together, tmp_path):
    """`as_one(of, layouts)`: the runs that `of(directory)` gives write what they write in one process of one device."""

    def compare(of, layouts):
        wait(together(of(tmp_path / "one"), 1, 1), 900)
        for name in layouts:
            count, devices, mesh = LAYOUTS[name]
            planned = [run if run[0] == "convert" else [*run, *mesh] for run in of(tmp_path / name)]
            started = together(planned, count, devices)
            wait(started, 900)
            for other in started[1:]:
                said = [line for line in other.said().splitlines() if "Gloo" not in line]
                assert said == [f"{experiment} is done" for experiment, *_ in planned], said
            same_files(tmp_path / "one", tmp_path / name)
        assert not [path for path in tmp_path.rglob(".*") if "tmp" in path.name or "lock" in path.name]

    return compare


@pytest.mark.slow
@pytest.mark.parametrize("layouts", [("mesh", "heads"), ("two", "four")], ids=["meshes", "processes"])
@pytest.mark.parametrize("of", [required, of_text, of_images])
def test_meshes_and_processes_give_what_one_device_gives(
    tiny_directory, vision_directory, folder, text_file, tmp_path, as_one, of, layouts
):
    """Two meshes of eight devices; two processes with two devices each, and four with one; beside one with one."""
    model = vision_directory if of is of_images else tiny_directory
    as_one(lambda out: of(model, text_file, out, folder), layouts)
    if of is required:
        one, *others = (converted(tmp_path / name) for name in ("one", *layouts))
        assert len(one) > 5
        assert all(params == one for params in others)


def converted(directory):
    """What `convert` wrote there: parameter -> its type, shape and bytes."""
    params = mj.load(str(directory / "converted"), progress=False).params
    flat = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    return {path: (x.dtype, x.shape, x.tobytes()) for path, x in flat.items()}


def with_experts(model):
    """A mixture of four experts whose BOS is massive, and the flags that ask for it."""
    mixture = ExpertsConfig(num_experts=4, num_chosen=2, clamped=True)
    config = dataclasses.replace(TINY, num_layers=2, mlp="experts", experts=mixture, intermediate_size=32)
    found = random_model(config, tokenizer=model.tokenizer)
    embedding = found.params["embedding"].at[BOS, 5].set(3000.0)
    return dataclasses.replace(found, params=found.params | {"embedding": embedding}), ["--bos"]


def with_slots(model):
    """The tiny model with its BOS and a stop as slots of an explicit attention bias, where nothing is massive."""
    return rebuild(model, *absorb_prefix(model.config, model.params, [BOS, ord(".")])), []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "layouts"), [(with_experts, ("experts", "all axes")), (with_slots, ("mesh", "heads"))]
)
def test_meshes_of_experts_and_of_slots(tiny, text_file, tmp_path, as_one, make, layouts):
    """A mixture of experts along its own axis; keys and values that are parameters: both as on one device."""
    model, front = make(tiny)
    save(model, tmp_path / "model")
    some = (f"--text={text_file}", "--windows=4", "--context=32", *front)

    def of(out):
        return [
            [name, f"--model={tmp_path / 'model'}", f"--workdir={out / name}", *some, *rest]
            for name, *rest in (
                ["layerwise"],
                ["census"],
                ["intervene", "--layer=2", "--places=0:5,delim:3", "--draws=1"],
            )
        ]

    as_one(of, layouts)


def census(model, text, out):
    """A census of nine batches."""
    some = (f"--text={text}", "--windows=180", "--context=90", "--bos")
    return [["census", f"--model={model}", f"--workdir={out}", *some]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP", "SIGTERM"])
def test_one_that_is_lost_ends_the_others(tiny_directory, tmp_path, together, name):
    """Killed or stopped in the midst of a census: the other ends with a reason; run again, it is as if nothing was."""
    text_file = tmp_path / "long.txt"
    text_file.write_text("".join(f"line {i:03d} of the long book. It is long.\n" for i in range(500)))
    wait(together(census(tiny_directory, text_file, tmp_path / "whole"), 2, 1), 240)
    first, lost = together(census(tiny_directory, text_file, tmp_path / "cut"), 2, 1, signal=[1, name, 6])
    while not (lost.poll() or "T" in state(lost)) and first.poll() is None:
        time.sleep(0.1)
    began = time.monotonic()
    status = first.wait(120)
    assert status != 0
    assert time.monotonic() - began < 120
    said = first.said()
    if name == "SIGTERM":
        assert (status, lost.wait(20)) == (143, 143)
        assert "error: process 1: stopped by SIGTERM" in said
    else:
        assert "error: process 0 of 2 cannot go on: another has ended" in said or "another task died" in said, said
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [".census.state.npz"]
    lost.kill()
    wait(together(census(tiny_directory, text_file, tmp_path / "cut"), 2, 1), 240)
    assert read_json(tmp_path / "cut" / "census.json") == read_json(tmp_path / "whole" / "census.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags", "left"),
    [
        ("collect", ("--windows=12", "--context=32", "--shard_rows=64", "--shuffle"), "rows-00000.safetensors"),
        ("sweep", ("--bos", "--dim=3", f"--prompt={80 * 'a'}"), "sweep.npz"),
    ],
)
def test_what_was_cut_short_goes_on_to_the_same_bytes(tiny_directory, text_file, tmp_path, together, name, flags, left):
    """Two processes, one killed in the midst: what there is of the results stays, and a rerun makes of it the whole."""
    text = () if name == "sweep" else (f"--text={text_file}",)

    def files(directory):
        found = [path for path in directory.rglob("[!.]*") if path.is_file()]  # a lock, a half of a file are hidden
        return {path.relative_to(directory): path.read_bytes() for path in found}

    def run(directory, **plan):
        arguments = [name, f"--model={tiny_directory}", f"--workdir={directory}", *text, *flags]
        return together([arguments], 2, 1, **plan)

    wait(run(tmp_path / "whole"), 240)
    first, lost = run(tmp_path / "cut", signal=[1, "SIGKILL", 4])
    assert lost.wait(240) != 0
    assert first.wait(120) != 0
    found, whole = files(tmp_path / "cut"), files(tmp_path / "whole")
    assert left in {path.name for path in found}
    assert found != whole
    wait(run(tmp_path / "cut"), 240)
    assert files(tmp_path / "cut") == whole


def state(process):
    """What the system says a process does: "T" where it is stopped."""
    return pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
def test_what_does_not_agree_is_told_in_one_line(tiny_directory, text_file, tmp_path, start):
    """By process 0, before weights are read: other flags, a model or directory that one does not see, a wrong mesh."""
    folders = [tmp_path / "host_0", tmp_path / "host_1"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "model").symlink_to(tiny_directory)
    some = (f"--text={text_file}", "--windows=2", "--context=8")
    whole = f"--model={tiny_directory}"

    def error(of_each, experiment, *arguments):
        port = start.free_port()
        pair = [
            start(
                *(2, "-m", f"experiments.{experiment}", *arguments, *of_each[i]),
                *(f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={i}"),
                cwd=folders[i],
            )
            for i in range(2)
        ]
        wait(pair, 120, 1)
        lines = [line for line in pair[0].said().splitlines() if "Gloo" not in line]
        assert len(lines) == 1, lines
        assert "loading" not in pair[0].said()
        return lines[0]

    said = error((["--layer=1"], ["--layer=2"]), "feature_map", whole)
    assert said == (
        "error: --layer is 2 in process 1, and 1 in process 0: start every process with the same flags, code and "
        "packages."
    )
    assert "process 1: no model 'model'" in error(([], []), "layerwise", "--model=model")
    assert "is not seen by process 1" in error(([], []), "collect", whole, *some, "--workdir=results")
    assert "leaves out some of the 4" in error(([], []), "layerwise", whole, "--mesh=fsdp:2")
    assert "needs 8 devices; 4 are here" in error(([], []), "layerwise", whole, "--mesh=data:8")
    assert "no multiple of accumulate 1 × 4 devices" in error(
        ([], []), "train_gpt2", f"--data={text_file}", *TRAINING, "--batch=6"
    )
