"""Finding the checkpoint that a name means."""

import pytest

import massive_jax as mj
from massive_jax import loading
from massive_jax.weights.source import Source


@pytest.mark.parametrize("name", ["no_such_model", "./nowhere", "a/b/c", "x/model.gguf", "/nowhere/model.gguf"])
def test_nothing_of_that_name(name):
    with pytest.raises(ValueError, match=r"no model .*Zoo names: .*smollm2_135m"):
        mj.load(name)


def test_unknown_dtype():
    with pytest.raises(ValueError, match="unknown dtype 'float8'; known: float32, bfloat16, float16, float64"):
        mj.load("smollm2_135m", dtype="float8")


def test_a_hub_id_is_looked_up_on_the_hub(tmp_path, monkeypatch):
    asked = []

    def snapshot(repository, revision=None, **options):
        asked.append((repository, revision))
        raise ValueError("no network")

    monkeypatch.setattr(loading.hub, "snapshot", snapshot)
    monkeypatch.chdir(tmp_path)
    for name in ("org/name-1.5B_x", "llama2_7b"):
        with pytest.raises(ValueError, match="no network"):
            mj.load(name, revision="v1")
    assert asked == [("org/name-1.5B_x", "v1"), ("meta-llama/Llama-2-7b-hf", "v1")]


def test_a_directory_of_that_name_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(loading.hub, "snapshot", lambda *args, **kwargs: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"config\.json"):
        mj.load("org/name")


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model at all")
    with pytest.raises(ValueError, match=r"model\.gguf"):
        mj.load(str(path))


def test_a_source_is_closed_whatever_happens(tmp_path, monkeypatch):
    closed = []

    class Broken(Source):
        format, location, config, tensors = "huggingface", "here", {"model_type": "llama"}, {}

        def read(self, name, memory=None):
            raise AssertionError(name)

        def tokenizer(self):
            raise AssertionError

        def close(self):
            closed.append(True)

    monkeypatch.setattr(loading, "open_source", lambda *args, **kwargs: Broken())
    with pytest.raises(ValueError, match="here: the config has no 'hidden_size'"):
        mj.load("anything")
    assert closed == [True]
