"""`experiments.collect`: what its flags make of the library's function."""

import importlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags

from massive_jax.collect import ActivationStore
from tests.experiments.conftest import BOS, PLANTED, WIDTH


@pytest.fixture
def collect(tiny_directory, tmp_path, clean_flags, capsys, text_file):
    module = importlib.import_module("experiments.collect")

    def run(*arguments):
        clean_flags()
        usual = (f"--model={tiny_directory}", f"--workdir={tmp_path / 'results'}", f"--text={text_file}")
        flags.FLAGS(["collect", *usual, "--context=16", *arguments])
        module.main()
        return ActivationStore(tmp_path / "results" / "activations"), capsys.readouterr().out

    return run


def test_a_store_and_its_table(collect, tiny, text_file):
    more = ("--bos", "--tokens=100", "--activations=block_out:2,embed", "--massive_ratio=500", "--shard_rows=64")
    store, out = collect(*more, "--shuffle", "--rows=normal", "--store_dtype=bfloat16", "--seed=2", "--nosinks")
    assert store.shapes == {"block_out.2": (WIDTH,), "embed": (WIDTH,)}
    assert store.index["about"]["text"] == str(text_file)
    assert (store.index["tokens"], len(store), store.dtype.name) == (6 * 17, 6 * 16, "bfloat16")
    assert (store.index["versions"]["massive_jax"], store.index["about"]["seed"]) == ("0.1.0", 2)
    batch = next(store.batches(96, where="all"))
    assert BOS not in batch["token"]
    assert np.abs(batch["embed"][:, PLANTED]).max() < 100
    found = tiny.encode(text_file.read_text())
    assert batch["token"].tolist() == np.array(found)[batch["window"] * 16 + batch["position"] - 1].tolist()
    assert "102 tokens, 96 rows: 0 massive\n" in out
    assert "block_out.2" in out
    again, same = collect(*more, "--shuffle", "--rows=normal", "--store_dtype=bfloat16", "--seed=2", "--nosinks")
    assert (len(again), same) == (len(store), out)


def test_the_middle_layer_of_all_of_the_text(collect):
    store, _ = collect("--tokens=64")
    assert list(store.sites) == ["block_out.1"]
    with pytest.raises(ValueError, match="with windows 4, these would be with 5"):
        collect("--windows=5")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--activations=block:2", "unknown site 'block'"),
        ("--activations=block_out", "cannot read 'block_out'; write block_out:12"),
        ("--activations=block_out:x", "cannot read 'block_out:x'; write block_out:12"),
        ("--activations=embed:1", "cannot read 'embed:1'; write embed"),
        ("--activations=embed,embed", "names a site and layer twice"),
        ("--activations=block_out:4", "layer 4 is out of range; this model has layers 1 to 3"),
        ("--activations=router_probs:1", "this model has no site router_probs"),
        ("--windows=2", "--windows has no effect beside --tokens"),
        ("--tokens=9999", "the text has 400 tokens, enough for 25 windows of 16; 625 are needed"),
    ],
)
def test_bad_input(collect, tmp_path, flag, words):
    with pytest.raises(ValueError, match=words) as raised:
        collect("--tokens=64", flag)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "results" / "activations").exists()


@pytest.mark.slow
def test_sigkill(tiny_directory, tmp_path):
    """The process itself is killed, at any time: the store is the same, bit for bit."""
    text = tmp_path / "long.txt"
    text.write_text("".join(f"line {i:06d} of the long book. It is not short.\n" for i in range(20_000)))
    arguments = [sys.executable, "-m", "experiments.collect", f"--model={tiny_directory}", f"--text={text}"]
    arguments += ["--context=64", "--activations=block_out:2,mlp_hidden:2", "--shuffle", "--shard_rows=8192"]

    def start(name):
        return subprocess.Popen([*arguments, f"--workdir={tmp_path / name}"], stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    for least in range(1, 80, 16):
        process, store = start("killed"), tmp_path / "killed" / "activations"
        while process.poll() is None and len(list(store.glob("rows-*"))) < least:
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    whole, killed = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "activations").iterdir()}
        for name in ("whole", "killed")
    )
    assert len(whole) > 80
    assert killed == whole
