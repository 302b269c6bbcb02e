"""Finding the checkpoint that a name means."""

import dataclasses
import os

import jax
import numpy as np
import pytest

import massive_jax as mj
from massive_jax import loading
from massive_jax.weights.source import Source


@pytest.mark.parametrize("name", ["no_such_model", "./nowhere", "a/b/c", "x/model.gguf", "/nowhere/model.gguf"])
def test_nothing_of_that_name(name):
    with pytest.raises(ValueError, match=r"no model .*Zoo names: .*smollm2_135m"):
        mj.load(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("SmolLM2-135M-instruct", "smollm2_135m_instruct"), ("pythia-70m", "pythia_70m"), ("gpt2-mediun", "gpt2_medium")],
)
def test_a_name_that_is_nearly_one_of_the_zoo(name, meant):
    with pytest.raises(ValueError, match=f"Zoo names: {meant}, ") as error:
        mj.load(name)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (None, "model is None; give a zoo name, a path or a hub id"),
        (5, "model is 5; give"),
        (b"smollm2_135m", "model is b'smollm2_135m'; give"),
        (["a"], "model is ..a..; give"),
        ("", "model is ''; give"),
        ("  ", "model is ' +'; give"),
        ("a\0b", "holds characters that no name has"),
        ("a\nb/c", "holds characters that no name has"),
        ("\x1b[31m", "holds characters that no name has"),
        ("x" * 5000, "model 'x+… cannot be opened: File name too long"),
        ("~no_such_user_of_ours/model", "'~no_such_user_of_ours/model': there is no home directory"),
        ("nothing://x", "no way to read nothing:// is known; give a path on this machine, or gs://BUCKET/PATH"),
        ("file:///tmp", "no way to read file://"),
        ("https://huggingface.co/org/name", "give the id of a model of the hub alone: org/name"),
        ("hf://org/name", "give the id of a model of the hub alone: org/name"),
        ("gs://", "names no bucket; write gs://BUCKET/PATH"),
        ("gs:///x", "names no bucket"),
        ("/dev/null", "'/dev/null' is a pipe or a device; give a file, or a directory"),
    ],
)
def test_addresses_that_are_none(model, match, tmp_path):
    for run in (mj.load, loading.open_source, lambda model: loading.convert(model, str(tmp_path / "out"))):
        if run is loading.open_source and "://" in str(model) and "hub" not in match:
            continue  # of buckets, which it is not for
        with pytest.raises(ValueError, match=match) as caught:
            run(model)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_cannot_be_reached(monkeypatch):
    """Without the package that reaches it, and with one that fails in its own way."""
    from etils import epath

    def fails(error):
        def exists(self):
            raise error

        return exists

    for error, match in (
        (ImportError("Please install gcsfs"), "gs://bucket/model: needs the package gcsfs: pip install gcsfs"),
        (PermissionError(13, "Permission denied"), "gs://bucket/model cannot be read: Permission denied"),
        (type("HttpError", (Exception,), {})("no such\nbucket"), "cannot be reached: HttpError: no such"),
    ):
        monkeypatch.setattr(type(epath.Path("gs://bucket/model")), "exists", fails(error))
        for run in (mj.load, lambda model: loading.convert("smollm2_135m", model)):
            with pytest.raises(ValueError, match=match) as caught:
                run("gs://bucket/model")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": None}, "dtype is None; give one of float32, bfloat16, float16, float64"),
        ({"dtype": float}, "dtype is <class 'float'>; give one of"),
        ({"revision": 3}, "revision is 3; give a branch"),
        ({"revision": ""}, "revision is ''; give a branch"),
        ({"revision": "v1"}, "revision 'v1' has no effect: smollm2_135m is no model of the hub"),
        ({"mesh": (2, 1)}, r"mesh is \(2, 1\); give what"),
        ({"mesh": jax.make_mesh((1,), ("x",))}, "mesh is .*; give what massive_jax.parallel.make_mesh makes"),
        ({"progress": "no"}, "progress is 'no'; give True or False"),
        ({"allow_nonfinite": 1}, "allow_nonfinite is 1; give True or False"),
    ],
)
def test_options_of_wrong_types(options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        mj.load("smollm2_135m", **options)
    if "mesh" not in options:
        with pytest.raises(ValueError, match=match):
            loading.convert("smollm2_135m", str(tmp_path / "out"), **options)


@pytest.mark.parametrize(
    ("out", "match"),
    [
        (None, "out is None; give a path or gs://BUCKET/PATH"),
        ("", "out is ''; give a path"),
        ("a\0b", "holds characters"),
        ("nothing://x", "no way to read nothing://"),
        ("~no_such_user_of_ours/x", "no home directory"),
        ("/dev/null", "/dev/null exists already"),
        ("/dev/null/x", "cannot be written"),
    ],
)
def test_targets_that_are_none(out, match, monkeypatch, tiny_model):
    monkeypatch.setattr(loading.hub, "snapshot", lambda *args, **options: pytest.fail("asked the hub"))
    for run in (lambda: loading.convert("org/name", out), lambda: loading.save(tiny_model, out)):
        with pytest.raises(ValueError, match=match):
            run()


def test_save_of_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="model is 'smollm2_135m'; give a Model"):
        loading.save("smollm2_135m", str(tmp_path / "out"))


def test_a_path_is_as_good_as_text(tmp_path, tiny_model):
    loading.save(tiny_model, tmp_path / "it")
    back = mj.load(tmp_path / "it")
    assert back.name == str(tmp_path / "it")
    with pytest.raises(ValueError, match="revision 'v1' has no effect"):
        mj.load(tmp_path / "it", revision="v1")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_pipes_in_a_directory_do_not_hang(tmp_path, name):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} are pipes or devices|{name} is no file"):
        mj.load(tmp_path)


def test_a_pipe_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    os.mkfifo(tmp_path / "org" / "name")
    with pytest.raises(ValueError, match="'org/name' is a pipe or a device"):
        mj.load("org/name")


def test_what_is_left_of_a_converted_checkpoint(tmp_path, tiny_model):
    loading.save(tiny_model, tmp_path / "it")
    (tmp_path / "it" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(ValueError, match="it holds no finished checkpoint; convert the model again"):
        mj.load(tmp_path / "it")


# What `save` is given -------------------------------------------------------------------------------------------------

UNFIT = {
    "NaN": (lambda x: x.at[0, 0].set(np.nan), "NaN or infinite: embedding"),
    "infinite": (lambda x: x.at[0, 0].set(-np.inf), "NaN or infinite: embedding"),
    "another shape": (lambda x: x[:5], r"embedding \[5, 32\] \(expected \[260, 32\]\)"),
    "integers": (lambda x: x.astype(int), "no weights, which are floating: embedding of int32"),
    "nothing": (lambda x: None, r"embedding \[\] \(expected"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_save_looks_at_the_parameters(tiny_model, tmp_path, case):
    change, message = UNFIT[case]
    params = {**tiny_model.params, "embedding": change(tiny_model.params["embedding"])}
    model = dataclasses.replace(tiny_model, params=params)
    with pytest.raises(ValueError, match=f"^tiny: .*{message}"):
        loading.save(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("params", [None, {}, {"layers": {}}])
def test_save_misses_parameters(tiny_model, tmp_path, params):
    with pytest.raises(ValueError, match="not those of the config: embedding missing"):
        loading.save(dataclasses.replace(tiny_model, params=params), tmp_path / "out")


def test_save_of_another_config(tiny_model, tmp_path):
    config = dataclasses.replace(tiny_model.config, vocab_size=300)
    with pytest.raises(ValueError, match=r"embedding \[260, 32\] \(expected \[300, 32\]\)"):
        loading.save(dataclasses.replace(tiny_model, config=config), tmp_path / "out")


def test_nan_is_saved_where_it_is_meant_to_be(tiny_model, tmp_path):
    params = {**tiny_model.params, "embedding": tiny_model.params["embedding"].at[0, 0].set(np.nan)}
    loading.save(dataclasses.replace(tiny_model, params=params), tmp_path / "out", allow_nonfinite=True)
    with pytest.raises(ValueError, match="NaN or infinite"):
        mj.load(tmp_path / "out")
    assert np.isnan(mj.load(tmp_path / "out", allow_nonfinite=True).params["embedding"][0, 0])
