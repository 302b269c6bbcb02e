"""Reading a store: batches, damage, and quantiles."""

import numpy as np
import pytest

import massive_jax as mj
from massive_jax.collect import QUANTILES, ActivationStore, collecting, quantiles, shards
from massive_jax.collect import store as store_module
from massive_jax.data import Windows
from massive_jax.files import read_json, write_json


@pytest.fixture(scope="module")
def written(tiny_model, tmp_path_factory):
    """A store of shards of 12, 12 and 6 rows, written without running a model; row r has the number r everywhere."""
    directory = tmp_path_factory.mktemp("store") / "a"
    tokens = np.arange(30, dtype=np.int32).reshape(5, 6)
    plan = collecting._Plan.of(
        tiny_model, Windows(tokens, 6, False), mj.Capture("embed"), "float32", "all", False, 0, 12, True,
        mj.analysis.DEFINITION, 0.3,
    )  # fmt: skip
    found = []
    for number, start in enumerate((0, 12, 24)):
        rows = np.arange(start, min(30, start + 12))
        arrays = {
            "embed": np.tile(rows[:, None], (1, 32)).astype(np.float32),
            "norm.embed": rows.astype(np.float32),
            "token": rows.astype(np.int32),
            "position": (rows % 6).astype(np.int32),
            "window": (rows // 6).astype(np.int32),
            "massive": rows[:, None] % 6 == 0,
            "sink": rows[:, None] % 6 < 2,
        }
        found.append(shards.write_shard(directory / f"rows-{number:05d}.safetensors", arrays, len(rows), 0))
    index = {"format": shards.FORMAT, "about": plan.about(None), "versions": {}}
    write_json(directory / "index.json", index | collecting._summary(plan, directory, found))
    return directory


@pytest.fixture
def copy(written, tmp_path):
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("all", range(30)),
        ("normal", [r for r in range(30) if r % 6 > 1]),
        ("massive", range(0, 30, 6)),
        ("sink", [r for r in range(30) if r % 6 < 2]),
    ],
)
def test_batches_have_every_row_once(written, where, expected):
    store = ActivationStore(written)
    in_order = list(store.batches(7, where=where))
    assert np.concatenate([batch["token"] for batch in in_order]).tolist() == list(expected)
    assert store.count(where) == len(list(expected))
    drawn = [batch["embed"][:, 0].astype(int) for batch in store.batches(7, seed=1, where=where)]
    assert sorted(np.concatenate(drawn).tolist()) == list(expected)
    assert all(len(rows) == 7 for rows in drawn[:-1])
    other = [batch["token"] for batch in store.batches(7, seed=2, where=where)]
    assert not np.array_equal(np.concatenate(other), np.concatenate(drawn))
    again = [batch["token"] for batch in store.batches(7, seed=1, where=where)]
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(drawn))


def test_of_many_shards_some_are_read_at_a_time(written, monkeypatch):
    monkeypatch.setattr(store_module, "_OPEN", 1)
    store = ActivationStore(written)
    for where in ("all", "normal"):
        batches = [batch["token"] for batch in store.batches(7, seed=5, where=where)]
        assert [len(batch) for batch in batches[:-1]] == [7] * (len(batches) - 1)
        rows = np.concatenate(batches)
        np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(store.mask(where)))
        assert (np.diff(rows // 12) != 0).sum() == 2  # shard after shard, each in an order of its own
        assert (np.diff(rows) < 0).any()


def test_a_batch_has_its_tokens_with_its_rows(written):
    store = ActivationStore(written)
    (batch,) = store.batches(30, seed=0, where="all", sites="embed")
    assert list(batch) == ["embed", "token", "position", "window", "massive", "sink"]
    np.testing.assert_array_equal(batch["embed"], np.tile(batch["token"][:, None], (1, 32)))
    np.testing.assert_array_equal(batch["window"] * 6 + batch["position"], batch["token"])
    assert len(list(store.batches(7, where="all", drop_last=True))) == 4
    with pytest.raises(ValueError, match="drop_last is .no.; give True or False"):
        store.batches(7, drop_last="no")
    assert "30 rows of embed [32], float32" in repr(store)
    assert not store.shard(2)["embed"].flags.writeable


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "batch_size is 0"),
        ((2, 1.5), "seed is 1.5"),
        ((2, 0, ["all"]), r"where is \['all'\]; this store tells"),
        ((2, 0, "all", [["embed"]]), r"has no site \['embed'\]; it has embed"),
        ((2, 0, "odd"), "where is 'odd'; this store tells all, normal, massive, sink"),
        ((2, 0, "all", "block_out.3"), "has no site 'block_out.3'; it has embed"),
        ((2, 0, "all", ()), r"has no site \(\); it has embed"),
    ],
)
def test_bad_arguments(written, arguments, words):
    with pytest.raises(ValueError, match=words):
        ActivationStore(written).batches(*arguments)
    with pytest.raises(ValueError, match="number is 3; give a whole number from 0 to 2"):
        ActivationStore(written).shard(3)


def test_damage_names_the_shard(copy):
    ActivationStore(copy).check()
    second = copy / "rows-00001.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-3] + bytes(b ^ 255 for b in whole[-3:]))
    with pytest.raises(ValueError, match=r"rows-00001\.safetensors has another checksum"):
        ActivationStore(copy).check()
    second.write_bytes(b"\xff" * len(whole))
    with pytest.raises(ValueError, match=r"rows-00001\.safetensors is damaged"):
        list(ActivationStore(copy).batches(30))
    second.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"rows-00001\.safetensors has {len(whole) - 1:,} bytes in place of"):
        ActivationStore(copy)
    second.write_bytes((copy / "rows-00000.safetensors").read_bytes())
    index = read_json(copy / "index.json")
    index["shards"][1]["bytes"], index["shards"][1]["rows"] = second.stat().st_size, 11
    write_json(copy / "index.json", index)
    with pytest.raises(ValueError, match=r"rows-00001\.safetensors does not hold what index\.json says"):
        list(ActivationStore(copy).batches(30))
    second.unlink()
    with pytest.raises(ValueError, match=r"rows-00001\.safetensors is not there"):
        ActivationStore(copy)


@pytest.mark.parametrize("change", [{"shards": [{"file": "../x"}]}, {"sites": [{}]}, {"counts": {}}, {"format": 99}])
def test_a_damaged_index(copy, change):
    write_json(copy / "index.json", read_json(copy / "index.json") | change)
    with pytest.raises(ValueError, match="index.json is "):
        ActivationStore(copy)
    (copy / "index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json is damaged"):
        ActivationStore(copy)


def test_no_store(tmp_path):
    with pytest.raises(ValueError, match="is no activation store"):
        ActivationStore(tmp_path)
    with pytest.raises(ValueError, match="cannot be opened"):
        ActivationStore(tmp_path / "nowhere")


@pytest.mark.parametrize("count", [1, 2, 99, 1000])
def test_quantiles_are_numpys(count):
    numbers = np.abs(np.random.default_rng(0).standard_cauchy(count)).astype(np.float32)
    numbers[: count // 3] = 1.5
    found = quantiles.quantiles_of(lambda: np.array_split(numbers, 4))
    np.testing.assert_array_equal(found, np.quantile(numbers, QUANTILES, method="inverted_cdf"))


def test_quantiles_of_nothing():
    assert quantiles.quantiles_of(lambda: [np.zeros(0, np.float32)]) == []
