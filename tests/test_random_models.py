"""`mj.init`: random models of any config."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import massive_jax as mj
from massive_jax import random_models, zoo
from tests.fixtures.tiny import TINY, TINY_VISION

LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
}


def test_a_config_as_a_dict():
    model = mj.init(LLAMA, 3, "bfloat16")
    assert (model.config.num_layers, model.config.hidden_size, model.config.dtype) == (2, 32, "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {"bfloat16"}
    assert model.name == "llama (random, seed 3)"
    assert np.isfinite(model([[5, 6, 7]]).logits).all()


@pytest.mark.parametrize("config", [TINY, TINY_VISION], ids=["language", "vision"])
def test_a_config_of_this_project(config, tiny_images):
    model, other = mj.init(config, seed=1), mj.init(config, seed=2)
    assert model.config == config
    assert model.tokenizer is model.processor is None
    out = model(tiny_images if config is TINY_VISION else [[1, 2, 3]])
    assert np.isfinite(out.last_hidden).all()
    again = mj.init(config, seed=1)
    assert all(map(np.array_equal, *map(jax.tree.leaves, (model.params, again.params))))
    assert not all(map(np.array_equal, *map(jax.tree.leaves, (model.params, other.params))))


def test_every_preset_names_a_config_without_a_download(monkeypatch):
    monkeypatch.setattr(random_models, "build", lambda config: pytest.fail("nothing is built here"))
    monkeypatch.setattr(random_models, "total_memory", lambda mesh: 0)
    for name in zoo.PRESETS:
        with pytest.raises(ValueError, match=f"^{zoo.full_name(name)}: its parameters in float32 are .* GB"):
            mj.init(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "no_such_model"}, "model is 'no_such_model'; give a Hugging Face config as a dict"),
        ({"model": "org/name"}, "model is 'org/name'; give"),
        ({"model": None}, "model is None; give"),
        ({"model": {1: 2}}, "model is {1: 2}; give"),
        ({"model": pathlib.Path("config.json")}, "model is .*; give"),
        ({"model": {}}, "config: model_type None is not supported; supported: clip"),
        ({"model": {"model_type": "llama"}}, "config: the config has no 'hidden_size'"),
        ({"model": LLAMA | {"hidden_size": "x"}}, "hidden_size = 'x': must be an integer"),
        ({"model": LLAMA | {"new_thing": 3}}, "could change the result: new_thing = 3"),
        ({"model": LLAMA | {"hidden_size": 10**9, "num_attention_heads": 1}}, "llama: its parameters .* GB or more"),
        ({"model": LLAMA | {"vocab_size": 2**31 - 1, "hidden_size": 2**12}}, "llama: its parameters .* GB or more"),
        ({"seed": 2**40}, "seed is 1099511627776; give a whole number"),
        ({"seed": True}, "seed is True"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": 3}, "dtype is 3; give one of"),
        ({"dtype": "float64"}, "float64 is off"),
        ({"mesh": 4}, "mesh is 4; give what"),
    ],
)
def test_what_is_refused_in_one_line(given, message, compilations):
    with pytest.raises(ValueError, match=message) as caught:
        mj.init(**{"model": LLAMA, **given})
    assert "\n" not in str(caught.value)
    assert compilations() == 0


def test_on_a_mesh_it_is_split_from_the_start_and_the_same():
    code = f"""
import jax, numpy as np, massive_jax as mj
alone = mj.init({LLAMA}, 1)
split = mj.init({LLAMA}, 1, mesh=mj.parallel.make_mesh(2, 2))
query = split.params["layers"]["attn"]["query"]["kernel"]
assert query.addressable_shards[0].data.size * 4 == query.size
for a, b in zip(*map(jax.tree.leaves, (alone.params, split.params)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
print(split([[1, 2, 3]]).logits.shape)
"""
    flags = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.stdout.strip() == "(1, 3, 96)", done.stderr
