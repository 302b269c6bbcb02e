"""Variants of a training side by side: the table's numbers, what a kill and a rerun leave, and what is refused."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from absl import flags

import massive_jax as mj
from experiments import emergence, variants
from massive_jax.analysis import mean_interval
from massive_jax.bias import sink_tokens_alone
from massive_jax.data import Windows
from massive_jax.evaluate import quantized_inputs, window_nll
from massive_jax.files import locked, read_json
from massive_jax.train import VARIANTS, DivergedError
from massive_jax.train.presets import PRESETS, TrainPreset
from tests.fixtures.train_shapes import RECIPE, SHAPE

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
ROOT = pathlib.Path(mj.__file__).parent.parent
NAMES = ("none", "sink_token")
TINY = TrainPreset(
    {**SHAPE, "n_layer": 3},
    RECIPE,
    "float32",
    {
        **{"steps": 3, "batch": 4, "context": 16, "bos": 0, "validation": 0.2},
        # As many windows of a census as of the last measurement: one program serves both.
        **{"log_every": 3, "eval_every": 0, "eval_batches": 1, "census_windows": 32, "census_every": 1},
    },
)


@pytest.fixture(scope="module")
def tiny_preset():
    """Adds the preset `TINY`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def laboratory(tiny_preset, text_file, tmp_path_factory):
    """`laboratory(workdir, "--flag=…")`: runs the binary; gives the table."""
    names = list(flags.FLAGS)

    def run(workdir, *arguments):
        for name in names:
            flags.FLAGS[name].unparse()
        given = (f"--workdir={workdir}", "--preset=tiny", f"--data={text_file}", "--seeds=2")
        flags.FLAGS(["emergence", *given, f"--variants={','.join(NAMES)}", *arguments])
        emergence.main()
        return read_json(workdir / "emergence_variants.json")

    yield run
    for name in names:
        flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()


@pytest.fixture(scope="module")
def whole(laboratory, tmp_path_factory):
    """All trainings in one go: their directory and the table."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, laboratory(workdir)


def held_out(workdir):
    """The 32 windows, cut by hand from the end of the token file: BOS, then 15 bytes."""
    tokens = np.fromfile(workdir / "data" / "text.bin", np.uint16).astype(np.int32)
    cut = round(len(tokens) * 0.8)
    starts = np.linspace(cut, len(tokens) - 17, 32).astype(int)
    return np.stack([np.r_[0, tokens[start : start + 15]] for start in starts])


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_the_saved_model(whole, name):
    workdir, table = whole
    found = next(variant for variant in table["variants"] if variant["name"] == name)
    tokens = held_out(workdir)
    for one in found["trainings"]:
        model = mj.load(str(workdir / name / f"seed_{one['seed']}" / "model"), progress=False)
        out = model(tokens, capture=mj.Capture(("block_out", "attn_probs")))
        states = np.abs(np.asarray(out.intermediates["block_out"]))[:2]  # the middle blocks
        probs = np.asarray(out.intermediates["attn_probs"])[:2]
        median = np.sort(states.reshape(2, 32, -1))[..., (states[0, 0].size - 1) // 2].mean(axis=1)
        largest = states.max(axis=-1)  # [2, W, T]
        first, others, key = largest[..., :1], largest[..., 1:], 0
        if name == "sink_token":
            alone, sequence, edits = sink_tokens_alone(model.config, model.params)
            own = alone(sequence, capture=mj.Capture("block_out"), edits=edits).intermediates["block_out"]
            first, others, key = np.abs(own)[:2].max(axis=-1), largest, 16
        ratios = first.mean(axis=(1, 2)) / median
        at = ratios.argmax()
        shares = probs[..., key].mean(axis=(1, 3))
        expected = {
            "ratio": ratios[at],
            "layer": at + 1,
            "others_ratio": others[at].max(axis=-1).mean() / median[at],
            "typical_ratio": np.median(others[at], axis=-1).mean() / median[at],
            "top_ratio": (largest.max(axis=-1).mean(axis=1) / median).max(),
            "first_share": shares.mean(),
            "sink_heads": (shares > 0.3).mean(),
            "block_heads": (shares > 0.3).mean(axis=1).max(),
            "slot_share": probs[..., 16:].sum(axis=-1).mean(),
        }
        assert {key: one[key] for key in expected} == pytest.approx(expected, rel=1e-4)
        log_probs = np.asarray(jax.nn.log_softmax(out.logits[:, :-1]))
        nll = -np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)
        assert one["loss"] == pytest.approx(nll.mean(), rel=1e-5)
        assert one["int8_loss"] == pytest.approx(in_int8(model, tokens), rel=1e-4)
        assert one["int8_loss"] != one["loss"]


def in_int8(model, tokens):
    """Every weight of a linear map rounded, a scale for each layer's and map's, by hand; the inputs by edits."""
    params = jax.tree.map(np.array, model.params)
    place = jax.tree.leaves(model.params)[0].sharding  # as the model's own: one program for both

    def rounded(x):
        step = np.abs(x).max() / 127
        return np.round(x / step) * step

    maps = [params["layers"]["attn"][name] for name in ("query", "key", "value", "out")]
    for linear in (*maps, *params["layers"]["mlp"].values()):
        for layer in range(TINY.shape["n_layer"]):
            linear["kernel"][layer] = rounded(linear["kernel"][layer])
    params["embedding"] = rounded(params["embedding"])
    model = model.with_params(model.config, jax.device_put(params, place))
    return window_nll(model, Windows(tokens, 15, True), quantized_inputs(model.config)).mean


def test_means_have_intervals_and_what_there_is_not_is_said(whole):
    _, table = whole
    for variant in table["variants"]:
        for name in ("loss", "ratio"):
            each = [one[name] for one in variant["trainings"]]
            expected = mean_interval(each, ratios=name == "ratio")
            assert variant["means"][name] == pytest.approx(
                {"mean": expected.value, "low": expected.low, "high": expected.high}
            )
        assert (variant["sink"], variant["spike"]) == (False, False)
        curve = variant["curve"]
        assert curve["steps"] == [0, 1, 2, 3]
        np.testing.assert_allclose(curve["mean"], np.exp(np.log(curve["ratios"]).mean(axis=0)))
        assert "at least six" in curve["problem"]
    assert (table["bos"], table["context"], table["windows"], table["steps"]) == (0, 16, 32, 3)


def test_killed_and_run_again_gives_the_same_table(whole, laboratory, tmp_path, monkeypatch):
    """Killed before the third training; a rerun trains what is missing, and only that."""
    trained, limit, real = [], [2], variants.train

    def counted(config, file, directory, **options):
        if len(trained) == limit[0]:
            raise KeyboardInterrupt
        trained.append(directory.relative_to(tmp_path).as_posix())
        return real(config, file, directory, **options)

    monkeypatch.setattr(variants, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        laboratory(tmp_path)
    assert not (tmp_path / "emergence_variants.json").exists()
    limit[0] = 4
    assert laboratory(tmp_path) == whole[1]
    assert trained == ["none/seed_0", "none/seed_1", "sink_token/seed_0", "sink_token/seed_1"]


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of what the whole run left."""
    return shutil.copytree(whole[0], tmp_path / "copied")


def test_of_finished_trainings_only_files_are_read(copied, whole, laboratory, monkeypatch):
    monkeypatch.setattr(variants, "train", None)
    (copied / "none" / "seed_0" / "model").rename(copied / "gone")
    found = laboratory(copied, "--variants=sink_token,none")
    assert found["variants"] == whole[1]["variants"][::-1]
    table = (copied / "emergence_variants.md").read_text("utf-8").splitlines()
    assert [line.split(" | ")[0] for line in table] == ["| variant", "| ---", "| sink_token", "| none"]


def test_a_measurement_that_is_damaged_is_taken_again(copied, whole, laboratory):
    path = copied / "none" / "seed_0" / "measured.json"
    record = read_json(path)
    less = [{name: x for name, x in layer.items() if name != "first"} for layer in record["layers"]]
    for said in (
        "{",
        "[]",
        *map(json.dumps, ({**record, "layers": []}, {**record, "layers": [record["layers"][0], *less[1:]]})),
    ):
        path.write_text(said)
        assert variants._stored(path.parent) is None
    assert laboratory(copied) == whole[1]
    path.unlink()
    census = path.with_name("census.jsonl")
    lines = census.read_text("utf-8").splitlines(keepends=True)
    census.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"census.jsonl is gone, or has lost its end .step 3."):
        laboratory(copied)
    census.write_text("".join([*lines[:-1], "{\n"]))
    with pytest.raises(ValueError, match=r"census.jsonl: line 4 is no record of a training, '{'; remove that line"):
        laboratory(copied)
    census.unlink()
    with pytest.raises(ValueError, match="census.jsonl is gone, or has lost its end .step 3.; remove"):
        laboratory(copied)


def test_a_training_that_diverges_is_a_row(copied, whole, laboratory, monkeypatch, capsys):
    def diverging(config, file, directory, **_):
        directory.mkdir(parents=True)
        raise DivergedError("the loss of step 2 is nan: stopped; there is no checkpoint yet.")

    monkeypatch.setattr(variants, "train", diverging)
    for name in ("none", "sink_token"):
        shutil.rmtree(copied / name / "seed_1")
    shutil.rmtree(copied / "sink_token" / "seed_0")
    for _ in range(2):  # a rerun reads that it did
        none, token = laboratory(copied)["variants"]
        monkeypatch.setattr(variants, "train", None)
    assert none["trainings"][0] == whole[1]["variants"][0]["trainings"][0]
    assert none["trainings"][1]["problem"] == "the loss of step 2 is nan"
    assert none["means"]["loss"] == {"mean": none["trainings"][0]["loss"], "low": None, "high": None}
    assert (token["means"], token["sink"], token["spike"], token["curve"]) == ({}, None, None, None)
    assert "0 of 2 (seed 0: the loss of step 2 is nan; seed 1: the loss of step 2 is nan)" in capsys.readouterr().out


def test_another_config_is_refused_and_a_longer_training_is_not_another(copied, laboratory):
    with pytest.raises(ValueError, match="optimizer.learning_rate was 0.01 and is 0.5"):
        laboratory(copied, "--learning_rate=0.5")
    with pytest.raises(ValueError, match="has 3 steps; --steps=2 is fewer"):
        laboratory(copied, "--steps=2")


def test_what_another_training_has_left_is_refused_before_any_is_trained(copied, laboratory, monkeypatch):
    monkeypatch.setattr(variants, "train", None)
    shutil.rmtree(copied / "none" / "seed_0")
    with pytest.raises(ValueError, match=r"none/seed_1 cannot go on with another config: optimizer"):
        laboratory(copied, "--learning_rate=0.5")
    with (copied / "sink_token" / "seed_1" / "census.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=r"seed_1/census.jsonl: line 5 is no record"):
        laboratory(copied)


def test_a_last_step_that_breaks_the_model_is_a_row(copied, laboratory, monkeypatch):
    (copied / "none" / "seed_0" / "measured.json").unlink()
    monkeypatch.setattr(variants, "_measurements", lambda *_: {"loss": float("nan"), "int8_loss": 1.0, "layers": ()})
    found = laboratory(copied)["variants"][0]["trainings"]
    assert found[0]["problem"] == "the loss on held-out windows is nan"
    assert "problem" not in found[1]


def test_two_processes_do_not_train_the_same(copied, laboratory):
    (copied / "none" / "seed_0" / "measured.json").unlink()
    with locked(copied / "none" / "seed_0"), pytest.raises(ValueError, match="written by another process"):
        laboratory(copied)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants=kv,nothing,x"], "no variants 'nothing', 'x'; there are none, sink_token, kv,"),
        (["--variants=kv, kv"], "variants given twice: kv"),
        (["--variants=all,kv"], "variants all and others; give all alone, or names"),
        (["--text=python"], "--text has no effect beside --variants"),
        (["--attention_bias=kv"], "--attention_bias has no effect beside --variants"),
        (["--checkpoints=x"], "--checkpoints and --variants are given; give one of"),
        (["--variants=", "--checkpoints=.", "--steps=3"], "--preset and --steps and --data and --seeds have no effect"),
        (["--preset=huge"], "--preset=huge: there are"),
        (["--context=4096"], "more than the model's max_position 16"),
    ],
)
def test_what_is_refused(laboratory, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        laboratory(tmp_path / "results", *arguments)
    assert not (tmp_path / "results").exists()


def test_every_variant_goes_with_the_presets():
    for preset in ("small", "backcopy", "emergence"):
        found = PRESETS[preset]
        base = variants.TrainConfig(
            model=found.model(attention_bias=None, dtype="float32", kernel="xla"),
            optimizer=found.optimizer,
            data="",
            **found.options,
        )
        each = {name: variant.of(base) for name, variant in VARIANTS.items()}
        assert each.pop("none") == base
        assert all(config.model.context_length == base.model.context_length for config in each.values())
        described = {json.dumps(config.described(), sort_keys=True) for config in (base, *each.values())}
        assert len(described) == len(VARIANTS)


def test_every_variant_says_what_it_is():
    """In the table, and on the page."""
    page = (ROOT / "docs" / "emergence.md").read_text("utf-8").split("## Variants")[1].split("\n## ")[0]
    on_the_page = {name for row in page.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert on_the_page >= set(VARIANTS)
    for variant in VARIANTS.values():
        assert variant.words
        assert re.search(r"\d{4}\.\d{5}", variant.source)
        assert re.search(r"\d{4}\.\d{5}", variant.source)[0] in page
