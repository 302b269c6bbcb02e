"""What is collected is what the model gives, marked as numpy marks it; killed, shuffled and refused.

All on one model and one shape of batches: 2 windows of BOS and 16 tokens.
"""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import massive_jax as mj
from massive_jax.analysis import Thresholds
from massive_jax.collect import ActivationStore, KeptSite, collect_activations, collecting
from massive_jax.data import Windows, cut_windows
from massive_jax.files import read_json, write_json
from massive_jax.forward import _forward
from tests.fixtures.tiny import BOS, programs

TEXT = "".join(f"line {i:02d} of the small book. It is short.\n" for i in range(10))
LAYERS, PLANTED = (2, 3), 5
KEPT = (mj.Capture("block_out", layers=(3, 2)), mj.Capture("head_out", layers=3), mj.Capture("embed"))
NAMES = ["block_out.2", "block_out.3", "head_out.3", "embed"]
SHARD_ROWS, THRESHOLDS, SHARE = 40, Thresholds(100.0, 300.0), 0.12


def planted(model, value):
    """The model with `value` at a dim of BOS, from the embedding on."""
    embedding = model.params["embedding"].at[BOS, PLANTED].set(value)
    return dataclasses.replace(model, params={**model.params, "embedding": embedding})


@pytest.fixture(scope="module")
def model(make_model):
    """Blocks 1 and 3 see 6 tokens."""
    return planted(make_model(window=6, window_layers=(True, False, True, False)), 3000.0)


@pytest.fixture(scope="module")
def windows(model):
    return cut_windows(model, TEXT, windows=7, context=16, bos=True)


@pytest.fixture(scope="module")
def collect(model, windows):
    def run(directory, model=model, windows=windows, captures=KEPT, **options):
        usual = {"shard_rows": SHARD_ROWS, "thresholds": THRESHOLDS, "sink_share": SHARE}
        return collect_activations(model, windows, directory, captures, **usual | options)

    return run


@pytest.fixture(scope="module")
def store(collect, tmp_path_factory):
    before = programs(_forward)[0]
    found = collect(tmp_path_factory.mktemp("stores") / "plain")
    assert programs(_forward)[0] == before + 1
    return found


@pytest.fixture(scope="module")
def whole(model, windows):
    """Whole tensors of the whole model: site -> [L', W, …]."""
    captures = [mj.Capture(("block_out", "head_out", "attn_probs"), layers=(1, 2, 3)), mj.Capture("embed")]
    batches = [np.resize(windows.tokens[i : i + 2], (2, 17)) for i in range(0, 7, 2)]
    found = [model(batch, capture=captures, logits=False).intermediates for batch in batches]
    together = {site: np.concatenate([f[site] for f in found], axis=int(site != "embed")) for site in found[0]}
    return {site: tensor[:7] if site == "embed" else tensor[:, :7] for site, tensor in together.items()}


def files(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


def all_rows(store):
    shards = [store.shard(i) for i in range(store.num_shards)]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def test_rows_are_the_models_to_the_last_bit(store, whole, windows):
    rows = all_rows(store)
    assert list(store.sites) == NAMES
    assert store.shapes == {"block_out.2": (32,), "block_out.3": (32,), "head_out.3": (4, 8), "embed": (32,)}
    assert (len(store), store.num_shards) == (7 * 17, 4)
    for name, expected in {
        **{f"block_out.{layer}": whole["block_out"][layer - 1] for layer in LAYERS},
        "head_out.3": whole["head_out"][2],
        "embed": whole["embed"],
    }.items():
        np.testing.assert_array_equal(rows[name], expected.reshape(7 * 17, *expected.shape[2:]), err_msg=name)
        flat = rows[name].reshape(7 * 17, -1)
        np.testing.assert_allclose(rows[f"norm.{name}"], np.linalg.norm(flat.astype(float), axis=1), rtol=1e-6)
    np.testing.assert_array_equal(rows["token"], windows.tokens.reshape(-1))
    np.testing.assert_array_equal(rows["position"], np.tile(np.arange(17), 7))
    np.testing.assert_array_equal(rows["window"], np.repeat(np.arange(7), 17))


def numpy_masks(whole):
    """From whole tensors, in numpy: bool [L', W, T] each."""
    magnitude = np.abs(whole["block_out"])
    flat = np.sort(magnitude.reshape(3, 7, -1), axis=-1)
    median = flat[..., (flat.shape[-1] - 1) // 2, None].astype(float)
    largest = magnitude.max(axis=-1)
    massive = (largest > THRESHOLDS.magnitude) & (largest / median > THRESHOLDS.ratio)
    received = np.zeros((3, 7, 17))
    for i, window in enumerate((6, 17, 6)):
        for key in range(17):
            queries = range(key + 1, min(17, key + window))
            if 17 - 1 - key >= 8:
                received[i, :, key] = whole["attn_probs"][i, :, :, queries, key].mean(axis=(0, 2))
    return massive, received > SHARE


def test_masks_are_those_of_whole_tensors(store, whole):
    massive, sink = (np.moveaxis(mask, 0, -1).reshape(-1, 3) for mask in numpy_masks(whole))
    rows = all_rows(store)
    assert store.layers == (1, 2, 3)
    np.testing.assert_array_equal(rows["massive"], massive)
    np.testing.assert_array_equal(rows["sink"], sink)
    assert massive.sum() == 3 * 7
    assert 0 < sink.sum() < sink.size / 2
    odd = massive.any(axis=1) | sink.any(axis=1)
    expected = {"all": 119, "normal": (~odd).sum(), "massive": 7, "sink": sink.any(axis=1).sum()}
    assert {where: store.count(where) for where in expected} == expected
    for where, which in {"normal": ~odd, "sink": sink.any(axis=1), "massive": massive.any(axis=1)}.items():
        np.testing.assert_array_equal(store.mask(where), which)
    for name, norms in store.index["norms"].items():
        for where, which in {"all": slice(None), "normal": ~odd}.items():
            of = np.quantile(rows[f"norm.{name}"][which], store.index["quantiles"], method="inverted_cdf")
            np.testing.assert_array_equal(norms[where], of)


def test_without_sinks_it_is_a_plain_capture(model, windows, collect, tmp_path):
    captures = mj.Capture("block_out", layers=3)
    found = all_rows(collect(tmp_path / "a", captures=captures, sinks=False))
    expected = model(windows.tokens[:2], capture=captures, logits=False).intermediates["block_out"]
    np.testing.assert_array_equal(found["block_out.3"][:34], expected.reshape(34, 32))
    assert "sink" not in found
    with pytest.raises(ValueError, match="collected without sinks"):
        ActivationStore(tmp_path / "a").batches(3, where="sink")


def test_a_shuffled_store_is_the_same_rows_in_another_order(store, collect, tmp_path):
    shuffled = collect(tmp_path / "a", shuffle=True, seed=3)
    plain, found = all_rows(store), all_rows(shuffled)
    at = found["window"] * 17 + found["position"]
    np.testing.assert_array_equal(np.sort(at), np.arange(119))
    assert (np.diff(at) != 1).mean() > 0.8
    assert set(found["window"][:34].tolist()) != {0, 1}
    for name, rows in plain.items():
        np.testing.assert_array_equal(found[name], rows[at], err_msg=name)
    again, other = collect(tmp_path / "b", shuffle=True, seed=3), collect(tmp_path / "c", shuffle=True, seed=4)
    assert files(again.directory) == files(shuffled.directory)
    assert not np.array_equal(all_rows(other)["window"], found["window"])


def test_normal_rows_only(store, collect, tmp_path):
    normal = collect(tmp_path / "a", rows="normal")
    keep, plain, found = store.mask("normal"), all_rows(store), all_rows(normal)
    for name, rows in plain.items():
        np.testing.assert_array_equal(found[name], rows[keep], err_msg=name)
    assert normal.index["norms"] == store.index["norms"]  # of all tokens, those that are not there too
    assert (normal.index["tokens"], normal.count("all"), normal.count("massive")) == (119, keep.sum(), 0)
    with pytest.raises(ValueError, match="no rows that are massive"):
        normal.batches(3, where="massive")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_rows_are_rounded(store, collect, tmp_path, dtype):
    narrow, wide = all_rows(collect(tmp_path / "a", dtype=dtype)), all_rows(store)
    for name in NAMES:
        np.testing.assert_array_equal(narrow[name], wide[name].astype(jnp.dtype(dtype)))
        np.testing.assert_array_equal(narrow[f"norm.{name}"], wide[f"norm.{name}"])
    loaded = safetensors.numpy.load_file(tmp_path / "a" / "rows-00003.safetensors")
    assert loaded["embed"].dtype == jnp.dtype(dtype)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "rows": "normal", "dtype": "bfloat16"}])
def test_killed_after_every_shard(collect, tmp_path, monkeypatch, options):
    whole, write, lives = collect(tmp_path / "whole", **options), collecting.write_shard, 0
    killed = tmp_path / "killed"
    while True:
        written, lives = [], lives + 1

        def one(path, *args, written=written):
            if written:
                path.with_name(f".0123.tmp{path.suffix}").write_bytes(b"half")  # what a killed writer leaves
                raise Killed
            written.append(path)
            return write(path, *args)

        monkeypatch.setattr(collecting, "write_shard", one)
        try:
            found = collect(killed, **options)
            break
        except Killed:
            with pytest.raises(ValueError, match="not all collected"):
                ActivationStore(killed)
    assert lives == 4
    assert files(found.directory) == files(whole.directory)


def test_a_shard_that_is_cut_is_collected_again(collect, store, tmp_path, monkeypatch):
    write, directory = collecting.write_shard, tmp_path / "a"

    def three(path, *args):
        if "00003" in path.name:
            raise Killed
        return write(path, *args)

    monkeypatch.setattr(collecting, "write_shard", three)
    with pytest.raises(Killed):
        collect(directory)
    monkeypatch.undo()
    second = directory / "rows-00001.safetensors"
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    collect(directory)
    assert files(directory) == files(store.directory)


def test_killed_before_it_is_known_what_the_files_are(collect, store, tmp_path):
    """The first file of all was being written; or what it says of shards is damaged."""
    directory = tmp_path / "a"
    directory.mkdir()
    (directory / ".0123456789abcdef.tmp.json").write_bytes(b"{")
    whole = read_json(store.directory / "index.json")
    assert files(collect(directory).directory) == files(store.directory)
    for shards in (3, None, [3], [{"file": 3}]):
        (directory / "index.json").unlink(missing_ok=True)
        write_json(directory / "collecting.json", {**whole, "shards": shards})
        assert files(collect(directory).directory) == files(store.directory)


def test_another_store_is_refused(collect, store, model, windows, tmp_path, monkeypatch):
    monkeypatch.setattr(mj.Model, "__call__", lambda *_, **__: pytest.fail("the model is run"))
    before = files(store.directory)
    assert len(collect(store.directory)) == len(store)  # the same: it is there
    fewer = dataclasses.replace(windows, tokens=windows.tokens[:6])
    tuned = planted(model, 2999.0)  # of the same name
    for options, words in {
        "seed": ({"shuffle": True}, "with shuffle False, these would be with True"),
        "dtype": ({"dtype": "float16"}, "with dtype 'float32', these would be with 'float16'"),
        "sites": ({"captures": KEPT[2]}, r"with sites \['block_out.2'.*these would be with \['embed'\]"),
        "text": ({"windows": fewer}, "with windows 7, these would be with 6"),
        "about": ({"about": {"text": "a"}}, "with text None, these would be with 'a'"),
        "weights": ({"model": tuned}, "with weights '[0-9a-f]{32}', these would be with '[0-9a-f]{32}'"),
    }.values():
        with pytest.raises(ValueError, match=words) as raised:
            collect(store.directory, **options)
        assert "\n" not in str(raised.value)
    assert files(store.directory) == before
    unfinished = {k: v for k, v in read_json(store.directory / "index.json").items() if k != "sites"}
    for stored, words in (
        (unfinished | {"versions": {"jax": "0.1"}}, "the beginning of the activations in .* is with massive_jax None"),
        ([1], "is none of an activation store"),
    ):
        write_json(tmp_path / "old" / "collecting.json", stored)
        with pytest.raises(ValueError, match=words):
            collect(tmp_path / "old")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    for directory, words in (("mine", "holds other files"), ("mine/letter.txt", "is a file")):
        with pytest.raises(ValueError, match=words):
            collect(tmp_path / directory)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "mine"


def test_bad_input_is_one_line_before_anything_runs(collect, windows, tiny_vision, tmp_path, monkeypatch):
    monkeypatch.setattr(mj.Model, "__call__", lambda *_, **__: pytest.fail("the model is run"))
    padded = Windows(windows.tokens, 16, True, np.ones(windows.tokens.shape, bool))
    for options, words in (
        ({"captures": mj.Capture("block")}, "unknown site 'block'"),
        ({"captures": mj.Capture("block_out", layers=5)}, "layer 5 is out of range; this model has layers 1 to 4"),
        ({"captures": mj.Capture("patch_embed")}, "this model has no site patch_embed"),
        ({"captures": mj.Capture("block_out", top_k=3)}, "without reductions"),
        ({"captures": mj.Measure("a", "block_out", len)}, "without reductions"),
        ({"captures": None}, "a store keeps whole tensors"),
        ({"dtype": "int8"}, "dtype is 'int8'; a store has float32, bfloat16, float16"),
        ({"rows": "massive"}, "rows is 'massive'; give 'all' or 'normal'"),
        ({"shard_rows": 0}, "shard_rows is 0"),
        ({"about": {"text": pytest}}, "about is .*; give what JSON can hold"),
        ({"about": {"text": float("nan")}}, "about is .*; give what JSON can hold"),
        ({"about": ["text"]}, "about is .*; give what JSON can hold"),
        ({"progress": 3}, "progress is 3; give a function"),
        ({"shuffle": "no"}, "shuffle is 'no'"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"sinks": 1}, "sinks is 1"),
        ({"sink_share": 2}, "sink_share is 2"),
        ({"thresholds": 3}, "thresholds is 3"),
        ({"windows": padded}, "windows of one length"),
        ({"windows": TEXT}, "give Windows"),
        ({"windows": dataclasses.replace(windows, tokens=windows.tokens[:0])}, "give Windows"),
        ({"windows": dataclasses.replace(windows, tokens=windows.tokens + 4)}, "do not fit the vocabulary"),
        ({"model": tiny_vision}, "tiny is a vision model"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            collect(tmp_path / "a", **options)
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    for directory in (None, "", 3, "a\0b"):
        with pytest.raises(ValueError, match="directory is .*; give the path of one"):
            collect(directory)


def test_numbers_that_cannot_be_kept(collect, model, tmp_path):
    with pytest.raises(ValueError, match=r"block_out.2 has a value of 1?\d\d,\d\d\d, which float16 cannot hold"):
        collect(tmp_path / "a", planted(model, 1e5), dtype="float16")
    assert len(collect(tmp_path / "b", planted(model, 1e5), dtype="float16", rows="normal")) > 0
    with pytest.raises(ValueError, match="the output of block 1 has values that are not finite"):
        collect(tmp_path / "c", planted(model, float("nan")))


def test_a_shard_of_wide_rows_has_fewer(model, windows, monkeypatch):
    def rows_of(captures):
        options = ("float32", "all", False, 0, None, True, THRESHOLDS, SHARE)
        plan = collecting._Plan.of(model, windows, captures, *options)
        return plan.windows_a_shard * plan.length

    assert rows_of(mj.Capture("block_out", layers=1)) == 32_725  # 275 batches of 7 windows of 17
    monkeypatch.setattr(collecting, "_SHARD_BYTES", 1 << 20)
    assert rows_of(mj.Capture("logits")) == 8 * 7 * 17  # of 260 numbers: 1,008 fit


def test_rows_of_a_site_whose_tokens_are_not_its_second_axis():
    tensor = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # B, H, T, S
    rows = KeptSite("attn_probs", 1, (3, 5)).rows(tensor)
    assert rows.shape == (8, 3, 5)
    np.testing.assert_array_equal(rows[5], tensor[1, :, 1])
