"""Converted checkpoints that are not what was written, or of something else: one line, and no other weights."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import massive_jax as mj
from massive_jax import files, loading
from massive_jax.parallel import make_mesh
from massive_jax.weights import checkpoint, stored_arrays

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from tests.fixtures.tiny import TINY, random_model

    path = tmp_path_factory.mktemp("saved") / "it"
    model = random_model(TINY)
    loading.save(model, str(path))
    return path, model


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "it")
    return tmp_path / "it"


def load(path, **options):
    return mj.load(str(path), progress=False, **options)


def refused(path, match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def flip(path, values):
    """Changes a byte of stored numbers."""
    wanted = np.asarray(values).tobytes()
    for file in path.rglob("d/*"):
        data = bytearray(file.read_bytes())
        if (at := data.find(wanted)) >= 0:
            data[at + 1] ^= 0x10
            file.write_bytes(data)
            return
    raise AssertionError("not found")


@pytest.mark.parametrize(("dtype", "mesh"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_a_flipped_bit_is_found(saved, copy, dtype, mesh, monkeypatch):
    monkeypatch.setattr(stored_arrays, "_PIECE_BYTES", 3000)
    model = saved[1]
    options = {"dtype": dtype, "mesh": make_mesh(1, 1) if mesh else None}
    for back, want in zip(jax.tree.leaves(load(copy, **options).params), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(back, want.astype(dtype))
    flip(copy, model.params["embedding"][3])
    flip(copy, model.params["layers"]["mlp"]["up"]["kernel"][2, 0])
    refused(
        copy, r"damaged: the checksums of 2 arrays .*: embedding, layers/mlp/up/kernel \(layers from 1\)\.", **options
    )


def change_metadata(path, change, *, seal=True):
    """Changes what a checkpoint says of itself; sealed, its checksum is that of what it says now."""
    file = path / "_CHECKPOINT_METADATA"
    whole = json.loads(file.read_text())
    ours = whole["custom_metadata"]["massive_jax"]
    change(ours)
    if seal and "checksum" in ours:
        ours["checksum"] = checkpoint._checksum(ours)
    file.write_text(json.dumps(whole))


def setting(*names, value):
    def change(metadata):
        for name in names[:-1]:
            metadata = metadata[name]
        metadata[names[-1]] = value

    return change


def without(*names):
    return lambda metadata: [metadata.pop(name) for name in names]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (setting("format", value=3), "format 3, this version reads 2; convert the model again"),
        (setting("format", value="2"), "format '2'"),
        (without("format"), "format None"),
        (setting("kind", value="audio"), "kind 'audio'; known: language, vision"),
        (setting("kind", value=["language"]), r"kind \['language'\]"),
        (without("config"), "its metadata lack config"),
        (without("tokenizer", "provenance"), "its metadata lack tokenizer, provenance"),
        (setting("config", value=None), "its metadata cannot be used"),
        (setting("config", value={"hidden_size": 3}), "its metadata cannot be used"),
        (setting("config", "novelty", value=3), "its metadata cannot be used"),
        (setting("config", "norm", value={"no": 1}), "its metadata cannot be used"),
        (setting("tokenizer", value={"tokenizer": "{}"}), "its metadata cannot be used"),
        (setting("arrays", value={"head": {}}), "its metadata cannot be used"),
        (setting("arrays", value=[]), "its metadata cannot be used"),
    ],
)
def test_metadata_of_something_else(copy, change, match):
    change_metadata(copy, change)
    refused(copy, match)


def test_changed_metadata_are_noticed(copy):
    change_metadata(copy, setting("config", "norm", "eps", value=0.1), seal=False)
    refused(copy, "the checksum of its metadata is not the one that was written")


def test_a_record_that_is_not_there(copy):
    change_metadata(copy, lambda metadata: metadata["arrays"].pop("norm/scale"))
    refused(copy, "norm/scale")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"custom_metadata": 3}', '{"a": ' * 100_000, "\udcff", "\0"])
def test_metadata_that_are_none(copy, text):
    (copy / "_CHECKPOINT_METADATA").write_bytes(text.encode(errors="surrogateescape"))
    refused(copy, r"damaged: not readable JSON|not of this project")


def test_a_checkpoint_without_checksums_loads(saved, copy):
    change_metadata(copy, without("arrays", "checksum"))
    for back, want in zip(jax.tree.leaves(load(copy).params), jax.tree.leaves(saved[1].params), strict=True):
        np.testing.assert_array_equal(back, want)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("value", "dtype", "match"),
    [
        (np.nan, "float32", "1 tensors hold NaN or infinite values: norm/scale"),
        (-np.inf, "bfloat16", "1 tensors hold NaN or infinite values: norm/scale"),
        (1e6, "float16", "norm/scale"),
        (1e6, "bfloat16", None),
    ],
)
def test_numbers_that_are_not_finite(saved, tmp_path, value, dtype, match, old):
    model = saved[1]
    params = {**model.params, "norm": {"scale": model.params["norm"]["scale"].at[3].set(value)}}
    made = mj.Model(model.module, params, model.config, name="tiny")
    loading.save(made, str(tmp_path / "it"), allow_nonfinite=True)
    if old:
        change_metadata(tmp_path / "it", without("arrays", "checksum"))
    if match:
        refused(tmp_path / "it", match, dtype=dtype)
    back = load(tmp_path / "it", dtype=dtype, allow_nonfinite=True).params["norm"]["scale"]
    np.testing.assert_array_equal(back[3], jnp.asarray(value, jnp.float32).astype(dtype))


def test_a_pipe_in_a_checkpoint_does_not_hang(copy):
    file = next(copy.rglob("d/*"))
    file.unlink()
    os.mkfifo(file)
    refused(copy, "is no file")


def test_two_writers(saved, tmp_path):
    path = tmp_path / "it"
    with files.locked(path), pytest.raises(ValueError, match="it' is being written by another process"):
        loading.save(saved[1], str(path))
    loading.save(saved[1], str(path))
    with pytest.raises(ValueError, match="it exists already"):
        loading.save(saved[1], str(path))
    assert os.listdir(tmp_path) == ["it"]


def test_threads_that_write_on_after_a_failure_leave_nothing(tmp_path):
    """Tensorstore's do: the first error ends a save while the others are still under way."""
    out = tmp_path / "it"
    unfinished = tmp_path / "it.partial_save.orbax-checkpoint-tmp"

    def write_on():
        for number in range(200):
            unfinished.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (unfinished / str(number)).write_bytes(b"0")
            time.sleep(0.001)

    def fail():
        with checkpoint._target(out, epath.Path(out)):
            straggler.start()
            while not unfinished.exists():
                pass
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    straggler = threading.Thread(target=write_on)
    with pytest.raises(ValueError, match="cannot be written: No space left"):
        fail()
    straggler.join()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(saved, tmp_path):
    """Here a limit on the size of files; what Orbax's threads have to say stays off the terminal."""
    program = """
import resource, sys
from massive_jax import load, loading
model = load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    loading.save(model, sys.argv[2])
except ValueError as error:
    print(error)
"""
    out = tmp_path / "out" / "it"
    command = [sys.executable, "-W", "ignore", "-c", program, str(saved[0]), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"{out} cannot be written: "), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert os.listdir(out.parent) == []
