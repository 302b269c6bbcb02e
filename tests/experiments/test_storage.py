"""Results in an object store, and flags that are paths of one."""

import contextlib
import importlib
import pkgutil

import pytest
from absl import flags

import experiments
from experiments import common
from massive_jax import storage
from tests.fixtures.buckets import Bucket, bucket

__all__ = ["bucket"]

FLAGS = flags.FLAGS
PATHS = (
    *("model", "models", "workdir", "text", "images", "data", "out", "adopt", "page", "register_means", "means"),
    *("linear_head", "save", "checkpoints", "dataset"),
)
SMALL = {
    "attention": ("--windows=2", "--context=32"),
    "attention_map": ("--layer=2",),
    "census": ("--bos", "--windows=2", "--context=32"),
    "collect": ("--windows=2", "--context=32", "--activations=block_out:2"),
    "explicit_bias": ("--prefix=bos", "--windows=2", "--context=32"),
    "feature_map": ("--bos", "--layer=2"),
    "intervene": ("--bos", "--layer=2", "--places=0:5", "--windows=2", "--context=32", "--draws=1"),
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
    assert there == here


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


def test_a_workdir_in_a_store_is_held_by_one(bucket, clean_flags):
    FLAGS(["layerwise", "--workdir=gs://results/run"])

    def main():
        common.workdir()
        assert list(bucket.objects()) == ["results/.run.lock"]
        with pytest.raises(ValueError, match="--workdir=gs://results/run: .* is being written by process"):
            common.workdir()

    common.guarded(main, ["layerwise"])
    assert bucket.objects() == {}
