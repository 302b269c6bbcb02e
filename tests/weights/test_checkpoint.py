"""This project's own checkpoints: written in pieces, whole or not there at all, read back bit for bit."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import torch
import transformers

import massive_jax as mj
from massive_jax import loading
from massive_jax.models import AlibiConfig, ExpertsConfig, RopeConfig
from massive_jax.weights import checkpoint, loader
from massive_jax.weights.loader import Part, expected_shapes
from tests.fixtures import hf_reference

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def parts_of(model):
    """The parts of a model's parameters, layer by layer, as the loader streams them."""
    flat = {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(model.params)}
    move = (None, (), None)
    yield from (Part(path, (), x, move) for path, x in flat.items() if not path.startswith("layers/"))
    for layer in range(model.config.num_layers):
        for path, x in flat.items():
            if path.startswith("layers/experts/") and x.ndim > 3:
                yield from (Part(path, (layer, e), x[layer, e], move) for e in range(x.shape[1]))
            elif path.startswith("layers/"):
                yield Part(path, (layer,), x[layer], move)


def save(model, path, **options):
    expected = expected_shapes(model.module)
    checkpoint.save_checkpoint(
        str(path),
        model.config,
        parts_of(model),
        expected,
        dtype=model.config.jnp_dtype,
        tokenizer=model.tokenizer,
        **options,
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


@pytest.mark.parametrize("layers_a_group", [1, 3, 100])
def test_round_trip_is_bit_identical(tiny_model, tmp_path, monkeypatch, layers_a_group):
    layer = sum(x[0].nbytes for x in jax.tree.leaves(tiny_model.params["layers"]))
    monkeypatch.setattr(checkpoint, "_GROUP_BYTES", layer * layers_a_group)
    save(tiny_model, tmp_path / "it", provenance=lambda: {"source": "test"})
    back = mj.load(str(tmp_path / "it"))
    assert_same(tiny_model.params, back.params)
    assert back.config == tiny_model.config
    assert back.tokenize("a b").tolist() == tiny_model.tokenize("a b").tolist()
    assert back.bos_id() == tiny_model.bos_id()
    assert checkpoint.read_metadata(str(tmp_path / "it")).provenance == {"source": "test"}


def test_every_option_of_a_config_survives(tiny_model):
    config = dataclasses.replace(
        tiny_model.config,
        rope=RopeConfig(kind="factors", factors=(1.0, 2.0, 3.0, 4.0)),
        local_rope=RopeConfig(theta=5.0),
        window=3,
        window_layers=(True, False, True, False),
    )
    other = dataclasses.replace(
        tiny_model.config, position="alibi", alibi=AlibiConfig(4.0), mlp="experts", experts=ExpertsConfig(4, 2)
    )
    for it in (config, other):
        stored = json.loads(json.dumps(dataclasses.asdict(it)))
        assert checkpoint._from_dict(type(it), stored) == it


def test_experts(make_model, tmp_path):
    model = make_model(mlp="experts", experts=ExpertsConfig(3, 2), num_layers=2)
    save(model, tmp_path / "it")
    assert_same(model.params, mj.load(str(tmp_path / "it")).params)


def test_other_dtype(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "it")
    half = mj.load(str(tmp_path / "it"), dtype="bfloat16")
    assert half.config.dtype == "bfloat16"
    assert_same(jax.tree.map(lambda x: x.astype("bfloat16"), tiny_model.params), half.params)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_are_those_that_orbax_reads_and_are_the_callers_own(tiny_model, tmp_path, dtype):
    from orbax.checkpoint import v1 as ocp

    save(tiny_model, tmp_path / "it")
    ours = mj.load(str(tmp_path / "it"), dtype=dtype).params
    theirs = ocp.load(tmp_path / "it")["layers"].pop("000")
    assert_same(ours["layers"], jax.tree.map(lambda x: x.astype(dtype), theirs))
    before = jax.tree.map(np.array, ours)
    shutil.rmtree(tmp_path / "it")
    assert_same(ours, before)
    # A training step may give them up: they are written over in place.
    changed = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(ours)
    assert all(x.is_deleted() for x in jax.tree.leaves(ours))
    assert_same(changed, jax.tree.map(lambda x: x + np.asarray(1, dtype), before))


def data_files(path):
    return sorted((f for f in path.glob("**/d/*") if f.is_file()), key=lambda f: f.stat().st_size)


def cut(path):
    largest = data_files(path)[-1]
    os.truncate(largest, largest.stat().st_size // 2)


def remove(path):
    data_files(path)[-1].unlink()


@pytest.mark.parametrize("damage", [cut, remove])
def test_damaged_files_are_an_error(tiny_model, tmp_path, damage):
    save(tiny_model, tmp_path / "it")
    damage(tmp_path / "it")
    with pytest.raises(
        ValueError, match=r"it: the arrays are not those of the model.*damaged: (CORRUPT|DATA_LOSS|OUT_OF|NOT_F)"
    ):
        mj.load(str(tmp_path / "it"))


def test_arrays_that_are_not_the_models_are_all_named(tiny_model, tmp_path):
    config = dataclasses.replace(tiny_model.config, num_layers=3, mlp_bias=True)
    expected = expected_shapes(tiny_model.module)
    checkpoint.save_checkpoint(str(tmp_path / "it"), config, parts_of(tiny_model), expected, dtype="float32")
    with pytest.raises(ValueError, match=r"the arrays are not those of the model its metadata describes") as caught:
        mj.load(str(tmp_path / "it"))
    for message in (
        "layers/attn/query/kernel [4, 32, 4, 8] (expected [3, 32, 4, 8])",
        "layers/mlp/up/bias missing (expected [3, 48])",
    ):
        assert message in str(caught.value)


def test_missing_layers_are_an_error(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_GROUP_BYTES", 1)
    kept = (part for part in parts_of(tiny_model) if part.place != (1,))
    expected = expected_shapes(tiny_model.module)
    checkpoint.save_checkpoint(str(tmp_path / "it"), tiny_model.config, kept, expected, dtype="float32")
    with pytest.raises(ValueError, match="layers 2 to 2 are missing"):
        mj.load(str(tmp_path / "it"))


def test_what_is_there_is_not_overwritten(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "it")
    with pytest.raises(ValueError, match="exists already"):
        save(tiny_model, tmp_path / "it")


def test_interrupted_leaves_nothing_that_loads_and_a_rerun_completes(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_GROUP_BYTES", 1)
    whole = list(parts_of(tiny_model))

    def broken():
        yield from itertools.islice(whole, 14)
        raise KeyboardInterrupt

    path = str(tmp_path / "it")
    expected = expected_shapes(tiny_model.module)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint(path, tiny_model.config, broken(), expected, dtype="float32")
    left = list(tmp_path.iterdir())
    assert left, "the test interrupted before anything was written"
    for there in (path, *map(str, left)):
        with pytest.raises(ValueError, match=r"no model|holds no finished|config\.json"):
            mj.load(there)
    save(tiny_model, tmp_path / "it")
    assert_same(tiny_model.params, mj.load(path).params)
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


def test_what_fails_in_the_writing_thread_is_raised_and_a_rerun_completes(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_GROUP_BYTES", 1)
    written = []

    def full(self, tree, metadata):
        if len(written) == 2:
            raise OSError("No space left on device")
        written.append(tree)
        save_group(self, tree, metadata)

    save_group = checkpoint._Writer._save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint._Writer, "_save", full)
        with pytest.raises(ValueError, match="it cannot be written: No space left on device"):
            save(tiny_model, tmp_path / "it")
    assert len(written) == 2
    with pytest.raises(ValueError, match="no model"):
        mj.load(str(tmp_path / "it"))
    save(tiny_model, tmp_path / "it")
    assert_same(tiny_model.params, mj.load(str(tmp_path / "it")).params)


def test_a_file_that_cannot_be_hashed_is_named(tiny_model, tmp_path):
    with loading._Digests([tmp_path / "gone"]) as digests, pytest.raises(ValueError, match="gone cannot be read"):
        save(tiny_model, tmp_path / "it", provenance=digests.result)
    assert not (tmp_path / "it").exists()


def test_hashing_stops_when_the_conversion_does(tmp_path):
    (tmp_path / "endless").symlink_to("/dev/zero")
    with loading._Digests([tmp_path / "endless"]) as digests:
        assert not digests._found.done()
    assert digests._found.done()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parts_are_moved_on_the_host_as_on_the_device(dtype):
    sizes = (("D", 6), ("H", 4), ("K", 2), ("N", 3), ("Q", 3))
    raw = np.random.default_rng(0).normal(size=(36, 6)).astype(np.float32) * 10.0 ** np.arange(-8, 4, 2)
    for axes, take in (("(QHN)D->DHN", ("Q", "1")), ("(QHN)D->D(HN)", ("Q", "2")), ("(HQN)D->DNQH", ("H", "K", "H"))):
        part = Part("it", (), raw, (axes, sizes, take))
        want = loader._placer(None, None)(raw, part.move, jax.numpy.dtype(dtype))
        got = np.empty(want.shape, want.dtype)
        part.write(got)
        np.testing.assert_array_equal(got, np.asarray(want))


@pytest.mark.parametrize(
    ("dtype", "group_bytes"),
    [
        ("bfloat16", 1),
        ("float32", 20_000),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("bfloat16", 20_000), ("bfloat16", 1 << 30), ("float32", 1), ("float32", 1 << 30))
        ),
    ],
)
def test_a_converted_hugging_face_model_is_the_one_that_is_loaded(tmp_path, monkeypatch, dtype, group_bytes):
    """Through memory that holds one tensor, and one group of layers, after another."""
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 5, "num_attention_heads": 3}
    config = transformers.LlamaConfig(**sizes, vocab_size=61, max_position_embeddings=32)
    hf_reference.save(hf_reference.random_model(hf_reference.LLAMA, config, dtype=torch.bfloat16), tmp_path)
    monkeypatch.setattr(checkpoint, "_GROUP_BYTES", group_bytes)
    loading.convert(str(tmp_path), str(tmp_path / "it"), dtype=dtype, progress=False)
    loaded, converted = (mj.load(str(path), dtype=dtype) for path in (tmp_path, tmp_path / "it"))
    assert_same(loaded.params, converted.params)


def test_killed_process(tmp_path):
    """SIGKILL in the middle of a real conversion."""
    out = tmp_path / "it"
    command = [sys.executable, "-m", "checkpoints.convert", f"--out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert any(tmp_path.iterdir())
    assert not out.exists()
    for left in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"holds no finished|config\.json|GGUF"):  # the last: of the lock
            mj.load(str(left))


@pytest.mark.slow
def test_default_model_is_bit_identical(default_model, tmp_path):
    loading.convert("smollm2_135m", str(tmp_path / "it"), progress=False)
    back = mj.load(str(tmp_path / "it"))
    assert_same(default_model.params, back.params)
    text = "Summer is warm. Winter is cold.\n"
    np.testing.assert_array_equal(back.tokenize(text), default_model.tokenize(text))
    provenance = checkpoint.read_metadata(str(tmp_path / "it")).provenance
    assert provenance["files"][0]["sha256"].startswith("b179c952")
    assert (provenance["model"], provenance["weights"]) == ("smollm2_135m", "Q4_1")
    assert back.origin.weights == "Q4_1"
    assert "made from smollm2_135m_instruct_q4_1" in back.origin.place
    with pytest.raises(ValueError, match="converted checkpoint already"):
        loading.convert(str(tmp_path / "it"), str(tmp_path / "other"))


@pytest.mark.slow
def test_onto_a_mesh(tmp_path):
    """Parameters split over eight devices are those of one device, from either kind of source."""
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=32,
    )
    hf_reference.save(hf_reference.random_model(hf_reference.LLAMA, config), tmp_path / "model")
    program = """
import jax, numpy as np, sys
import massive_jax as mj
from massive_jax.parallel import make_mesh
from massive_jax.loading import convert
model, converted = sys.argv[1:]
convert(model, converted, progress=False)
mesh = make_mesh(2, 3)
one = mj.load(model)
tokens = np.arange(14, dtype=np.int32).reshape(2, 7)
for source in (model, converted):
    split = mj.load(source, mesh=mesh)
    kernel = split.params["layers"]["attn"]["query"]["kernel"]
    assert len(kernel.sharding.device_set) == 6 and not kernel.is_fully_replicated, kernel.sharding
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one.params, split.params)
    np.testing.assert_allclose(one(tokens).logits, split(tokens).logits, atol=1e-4)
import pathlib
largest = max((f for f in pathlib.Path(converted).rglob("d/*")), key=lambda f: f.stat().st_size)
data = bytearray(largest.read_bytes())
data[len(data) // 2] ^= 1
largest.write_bytes(data)
try:
    mj.load(converted, mesh=mesh)
except ValueError as error:
    assert "the checksums of 1 arrays" in str(error), error
else:
    raise AssertionError
print("same")
"""
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model"), str(tmp_path / "converted")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "same", done.stderr[-2000:]
