"""Results in an object store, and flags that are paths of one."""

import contextlib
import importlib
import pathlib
import pkgutil

import chex
import pytest
from absl import flags

import experiments
import massive_jax as mj
from experiments import common
from massive_jax import storage
from tests.fixtures.buckets import Bucket, bucket, google, google_server

__all__ = ["bucket", "google", "google_server"]

FLAGS = flags.FLAGS
PATHS = (
    *("model", "models", "workdir", "text", "images", "data", "out", "adopt", "page", "register_means", "means"),
    *("linear_head", "save", "checkpoints", "dataset", "file", "tokenizer", "tasks", "include_path", "cache"),
)
SMALL = {
    "attention": ("--windows=2", "--context=32"),
    "attention_map": ("--layer=2",),
    "census": ("--bos", "--windows=2", "--context=32"),
    "collect": ("--windows=2", "--context=32", "--activations=block_out:2"),
    "explicit_bias": ("--prefix=bos", "--windows=2", "--context=32"),
    "feature_map": ("--bos", "--layer=2"),
    "intervene": ("--bos", "--layer=2", "--places=0:5", "--windows=2", "--context=32", "--draws=1"),
    "reproduce": ("--windows=2", "--context=32"),
    "super_weights": ("--windows=2", "--context=32"),
    "sweep": ("--bos", "--dim=5"),
}


def both(run, bucket, name, arguments):
    """Runs an experiment into a directory and into the store; gives the files of each."""
    with contextlib.suppress(FileNotFoundError):  # not all write a result of their name
        run(name, *arguments)
    here = {str(file.relative_to(run.workdir)): file for file in run.workdir.rglob("*") if file.is_file()}
    with contextlib.suppress(FileNotFoundError):
        run(name, *arguments, "--workdir=gs://results/run")
    return {name: file.read_bytes() for name, file in here.items()}, bucket.objects("results/run/")


def test_layerwise_writes_the_same_bytes(run, bucket):
    here, there = both(run, bucket, "layerwise", ["--bos", "--prompt=Summer is warm."])
    assert set(there) == {"layerwise.json", "layerwise.png"}
    assert there == here
    assert "wrote gs://results/run/layerwise" in run.out


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_experiment_writes_the_same_bytes(name, run, bucket, text_file):
    on_text = any("windows" in argument for argument in SMALL[name])
    here, there = both(run, bucket, name, [*SMALL[name], *([f"--text={text_file}"] if on_text else [])])
    assert here
    assert there == here


@pytest.mark.slow
def test_models_come_from_a_store_and_go_there(tiny_directory, google):
    for file in filter(pathlib.Path.is_file, tiny_directory.iterdir()):
        google.pipe(f"gs://results/hf/{file.name}", file.read_bytes())
    expected = mj.load(str(tiny_directory), progress=False).params
    mj.convert("gs://results/hf", "gs://results/converted", progress=False)
    converted = mj.load("gs://results/converted", progress=False)
    mj.export(converted, "gs://results/exported", progress=False)
    for params in (converted.params, mj.load("gs://results/exported", progress=False).params):
        chex.assert_trees_all_equal(params, expected)
    for write in (mj.convert, lambda _, out, **options: mj.save(converted, out)):
        with pytest.raises(ValueError, match="gs://results/converted exists already"):
            write("gs://results/hf", "gs://results/converted", progress=False)
    google.pipe(f"gs://results/converted/{storage.UNFINISHED}", b"")  # as long as it is being put
    with pytest.raises(ValueError, match="holds no finished checkpoint"):
        mj.load("gs://results/converted", progress=False)
    assert not [name for name in google.objects() if name.endswith(".lock")]


@pytest.mark.slow
def test_a_collection_that_broke_off_goes_on_from_the_store(run, bucket, text_file):
    arguments = [*SMALL["collect"], f"--text={text_file}", "--shard_rows=32"]
    Bucket.fail_after.append(3)  # what was begun, a shard, what is there
    with pytest.raises(ValueError, match="cannot be written: the connection broke"):
        run("collect", *arguments, "--workdir=gs://results/run")
    assert sum("rows-" in name for name in bucket.objects()) == 1
    Bucket.fail_after.clear()
    here, there = both(run, bucket, "collect", arguments)
    assert there == here
    assert sum("rows-" in name for name in Bucket.puts) == len([name for name in there if "rows-" in name]) == 2


def test_paths_of_no_store_are_told_before_anything_runs(clean_flags, monkeypatch):
    monkeypatch.setattr(storage, "_by_tensorflow", lambda: False)
    for module in pkgutil.iter_modules(experiments.__path__):
        importlib.import_module(f"experiments.{module.name}")
    for name in PATHS:
        for value, match in (
            ("foo://bucket/x", "no way to read foo:// is known"),
            ("gs://bucket/x", "needs the package gcsfs: pip install gcsfs"),
            ("gs:/bucket/x", "one slash after gs:"),
        ):
            with pytest.raises(flags.IllegalFlagValueError, match=match):
                FLAGS(["experiment", f"--{name}={value}"])
            clean_flags()
    with pytest.raises(flags.IllegalFlagValueError, match="needs the package s3fs"):
        FLAGS(["experiment", "--text=wikitext2:s3://bucket/wikitext"])
    clean_flags()
    monkeypatch.setattr(storage, "_by_tensorflow", lambda: True)
    with pytest.raises(flags.IllegalFlagValueError, match="--cache=gs://bucket/x: give a directory of this machine"):
        FLAGS(["experiment", "--cache=gs://bucket/x"])


def test_a_workdir_in_a_store_is_held_by_one(bucket, clean_flags):
    FLAGS(["layerwise", "--workdir=gs://results/run"])

    def main():
        common.workdir()
        assert list(bucket.objects()) == ["results/.run.lock"]
        with pytest.raises(ValueError, match="--workdir=gs://results/run: .* is being written by process"):
            common.workdir()

    common.guarded(main, ["layerwise"])
    assert bucket.objects() == {}
