"""Trainings whose --workdir is in an object store."""

import itertools

import pytest

import massive_jax as mj
from massive_jax.files import as_path
from massive_jax.train import TokenFile, loop, train
from massive_jax.train.metrics import Metrics, read_lines
from tests.fixtures.buckets import bucket, google, google_server

__all__ = ["bucket", "google", "google_server"]

WORKDIR = "gs://results/gpt2"


def test_lines_grow_here_and_are_put_whole(bucket, monkeypatch):
    workdir = as_path(WORKDIR)
    metrics = Metrics(workdir, 0, print)
    for step in range(1, 5):
        metrics.scalars(step, {"loss": 1.0 / step})
        metrics.flush(now=step == 2)
    monkeypatch.setattr(metrics._mirror, "put", lambda **_: None)  # it is killed
    metrics.close()
    assert [line["step"] for line in read_lines(workdir / "metrics.jsonl")] == [1, 2]
    metrics = Metrics(workdir, 1, print)
    metrics.scalars(2, {"loss": 0.25})
    metrics.close()
    assert [(line["step"], line["loss"]) for line in read_lines(workdir / "metrics.jsonl")] == [(1, 1.0), (2, 0.25)]
    assert {"metrics.jsonl", "census.jsonl"} < set(bucket.objects("results/gpt2/"))
    assert bucket.objects("results/gpt2/tensorboard/")


@pytest.mark.slow
def test_killed_and_resumed_in_a_store(google, make_config, token_file, monkeypatch, tmp_path):
    """The same as in a directory, to the bit; the model that came out loads from there."""
    # Whether a bucket has folders Orbax asks with google-cloud-storage, which gcsfs brings and this machine has not.
    monkeypatch.setattr("orbax.checkpoint._src.path.gcs_utils.is_hierarchical_namespace_enabled", lambda path: False)
    config = make_config()
    for file in (token_file.path, token_file.path.with_name(token_file.path.name + ".json")):
        google.pipe(f"gs://results/data/{file.name}", file.read_bytes())
    data = TokenFile.open(f"gs://results/data/{token_file.path.name}")
    whole = train(config, token_file, tmp_path / "whole")

    steps, flush = itertools.count(1), loop._Run._flush

    def killed(self, **kwargs):
        flush(self, **kwargs)
        if next(steps) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(loop._Run, "_flush", killed)
        train(config, data, as_path(WORKDIR))
    said = []
    resumed = train(config, data, as_path(WORKDIR), say=said.append)
    assert said[0].startswith("going on after step ")
    assert resumed.loss == whole.loss
    for name in ("metrics.jsonl", "census.jsonl"):
        expected, found = (
            [{k: v for k, v in line.items() if "per_second" not in k} for line in read_lines(root / name)]
            for root in (tmp_path / "whole", as_path(WORKDIR))
        )
        assert found == expected
    assert mj.load(f"{WORKDIR}/model", progress=False).config.num_layers == config.model.num_layers
