"""`export`: transformers loads what it writes, nothing missing and nothing over, and computes the same."""

import dataclasses
import json
import subprocess
import sys

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors
import torch
import transformers

import massive_jax as mj
from massive_jax import zoo
from massive_jax.inputs.image_settings import from_timm
from massive_jax.inputs.images import ImageProcessor
from massive_jax.models import AttentionBias, NormConfig, RopeConfig
from massive_jax.train import presets
from massive_jax.weights import safetensors_writer
from massive_jax.zoo import timm
from tests.fixtures import families, parity
from tests.fixtures import hf_reference as hf
from tests.fixtures.tiny import random_model

TOLERANCE = 1e-5
QUICK = ("falcon", "gpt2", "gpt_oss", "dinov2")


def torch_load(directory):
    """The model that transformers makes of a directory, by the class that a user would call."""
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    model, info = families.auto_class(architecture).from_pretrained(directory, output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}
    assert type(model).__name__ == architecture
    return model.eval()


def torch_run(model, case):
    """Logits, and the last hidden state where there is one."""
    with torch.no_grad():
        if case.inputs.ndim == 4:
            out = model(torch.from_numpy(np.moveaxis(case.inputs, -1, 1).copy()), **case.options(case.inputs))
        else:
            out = model(torch.from_numpy(case.inputs.astype(np.int64)))
    names = ("logits", "last_hidden_state", "pooler_output")
    return {name: out[name].numpy() for name in names if out.get(name) is not None}


@pytest.mark.parametrize(
    "name",
    [
        name if name in {families.FIRST[family] for family in QUICK} else pytest.param(name, marks=pytest.mark.slow)
        for name in families.CASES
    ],
)
def test_transformers_loads_it_and_computes_the_same(tmp_path, name):
    case = families.CASES[name]
    theirs = case.build(tmp_path / "theirs")
    ours = parity.load(tmp_path / "theirs")
    directory = mj.export(ours, tmp_path / "ours", progress=False)
    written = torch_load(directory)
    theirs.config._attn_implementation = written.config._attn_implementation
    expected, got = torch_run(theirs, case), torch_run(written, case)
    assert got.keys() == expected.keys()
    assert {key: hf.relative_error(got[key], x) <= TOLERANCE for key, x in expected.items()} == dict.fromkeys(got, True)
    again = parity.load(directory)
    assert again.config == ours.config
    parity.assert_same_params(again.params, ours.params)


def with_params(model, **changes):
    """The model with parameters replaced, by path with "__" for "/"."""
    flat = flax.traverse_util.flatten_dict(model.params, sep="/")
    flat |= {path.replace("__", "/"): value for path, value in changes.items()}
    return model.with_params(model.config, flax.traverse_util.unflatten_dict(flat, sep="/"))


def written(directory, name):
    with safetensors.safe_open(directory / "model.safetensors", framework="numpy") as file:
        return file.get_tensor(name)


def test_what_was_changed_comes_back_changed(tmp_path, tiny_model):
    """A kernel of one layer, a head that is no longer the embedding, and the tokenizer; transformers computes it."""
    config = dataclasses.replace(tiny_model.config, tie_embeddings=True)
    tied = tiny_model.with_params(config, {k: v for k, v in tiny_model.params.items() if k != "head"})
    assert "lm_head.weight" not in torch_names(mj.export(tied, tmp_path / "tied"))
    changed = with_params(
        tiny_model, layers__mlp__down__kernel=tiny_model.params["layers"]["mlp"]["down"]["kernel"] * 2
    )
    directory = mj.export(changed, tmp_path / "untied")
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"] is False
    before = tiny_model.params["layers"]["mlp"]["down"]["kernel"][2]
    np.testing.assert_array_equal(written(directory, "model.layers.2.mlp.down_proj.weight"), 2 * before.T)
    tokens = tiny_model.tokenize("Summer is warm.")
    theirs = torch_load(directory)(torch.tensor(tokens).long()).logits.detach()
    assert hf.relative_error(theirs, changed(tokens).logits) <= TOLERANCE
    again = parity.load(directory)
    assert again.tokenizer.encode("Summer is warm.") == tokens[0].tolist()
    assert again.tokenizer.bos_id == tiny_model.tokenizer.bos_id
    assert transformers.AutoTokenizer.from_pretrained(directory)("Summer is warm.")["input_ids"] == tokens[0].tolist()


def torch_names(directory):
    with safetensors.safe_open(directory / "model.safetensors", framework="numpy") as file:
        return set(file.keys())


def test_a_nanogpt_becomes_a_gpt2_whose_biases_are_zero(tmp_path):
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 61, "block_size": 64, "bias": False}
    model = random_model(zoo.map_config({"model_type": "nanogpt", **shape}, "nanogpt")[0])
    directory = mj.export(model, tmp_path / "out")
    assert not written(directory, "transformer.h.1.attn.c_attn.bias").any()
    theirs = torch_load(directory)(torch.tensor(parity.TOKENS).long()).logits.detach()
    assert hf.relative_error(theirs, model(parity.TOKENS).logits) <= TOLERANCE


def test_norms_of_a_gemma_from_gguf_are_written_minus_one(tmp_path):
    case = families.CASES[families.FIRST["gemma2"]]
    case.build(tmp_path / "theirs")
    model = parity.load(tmp_path / "theirs")
    norm = dataclasses.replace(model.config.norm, unit_offset=False)
    added = jax.tree_util.tree_map_with_path(lambda path, x: x + (path[-1].key == "scale"), model.params)
    as_gguf = model.with_params(dataclasses.replace(model.config, norm=norm), added)
    again = parity.load(mj.export(as_gguf, tmp_path / "out"))
    assert again.config == model.config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again.params, model.params)


def test_shards_and_dtype(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", 40_000)
    directory = mj.export(tiny_model, tmp_path / "out", dtype="bfloat16")
    shards = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert torch_load(directory).dtype == torch.bfloat16
    expected = jax.tree.map(lambda x: x.astype("bfloat16"), tiny_model.params)
    parity.assert_same_params(parity.load(directory, dtype="bfloat16").params, expected)


def test_an_image_processor_goes_along(tmp_path, make_vision):
    options = {"image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}, "do_resize": True}
    config = {"registers": 0, "layer_scale": False, "num_classes": 5, "model_type": "vit", "out_bias": True}
    model = make_vision(**config, mlp_bias=True)
    model = dataclasses.replace(model, processor=ImageProcessor(options))
    directory = mj.export(model, tmp_path / "out")
    again = parity.load(directory)
    assert again.processor == model.processor
    parity.assert_same_params(again.params, model.params)
    image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    theirs = transformers.AutoImageProcessor.from_pretrained(directory)(image, return_tensors="np")["pixel_values"]
    assert theirs.shape == (1, 3, 28, 28)


@pytest.mark.parametrize(
    "architecture",
    [
        "vit_tiny_patch7_28",
        *(
            pytest.param(f"vit_{name}", marks=pytest.mark.slow)
            for name in ("giant_patch7_reg4_dinov2", "tiny_patch7_siglip")
        ),
    ],
)
def test_timm_is_written_as_timm_has_it(tmp_path, monkeypatch, architecture):
    for size, width in (("tiny", 128), ("giant", 88)):
        monkeypatch.setitem(timm._SIZES, size, (32, 2, 4, width))
    fields = {"architecture": architecture, "num_classes": 3, "pretrained_cfg": {"input_size": [3, 28, 28]}}
    if "siglip" in architecture:
        fields |= {"global_pool": "map", "model_args": {"act_layer": "gelu_tanh"}}
    options = from_timm({"input_size": [3, 28, 28], "crop_pct": 0.9, "mean": [0.5, 0.5, 0.5]})
    model = random_model(zoo.map_config(fields, "timm")[0], processor=ImageProcessor(options))
    again = parity.load(mj.export(model, tmp_path / "out"))
    assert (again.config, again.processor) == (model.config, model.processor)
    parity.assert_same_params(again.params, model.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_bias": AttentionBias("kv")},
            r"LlamaForCausalLM cannot say attention_bias AttentionBias.*remove_bias",
        ),
        (
            {"norm": NormConfig("dynamic_tanh"), "position": "learned", "mlp": "plain", "value_scale": "fixed"},
            r"GPT2LMHeadModel cannot say .*norm\.kind 'dynamic_tanh' \(only 'layer'\).*value_scale 'fixed'",
        ),
        ({"activation": "relu2", "model_type": "nothing"}, "cannot say activation 'relu2'"),
        (
            {"clip_residual": 3.0, "rope": RopeConfig(kind="factors", factors=(2.0,) * 4)},
            r"rope\.kind 'factors' \(only 'default'\).*clip_residual 3\.0",
        ),
    ],
)
def test_what_transformers_cannot_say_is_named(tmp_path, make_model, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        mj.export(make_model(**changes), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["paper", "emergence"])
def test_what_this_project_trains_has_a_place(name):
    """A nanoGPT is a GPT-2, and the small Llama that was found to have a sink is a Llama."""
    config = presets.PRESETS[name].model(attention_bias=None, dtype="bfloat16", kernel="xla")
    expected = {"paper": "GPT2LMHeadModel", "emergence": "LlamaForCausalLM"}
    assert zoo.target(config, name).fields["architectures"] == [expected[name]]


def test_of_what_this_project_trains_the_nearest_class_is_named():
    """The preset's model type is nanoGPT's; a Llama lacks one option of it, a GPT-2 nine."""
    config = presets.PRESETS["emergence"].model(attention_bias=None, dtype="float32", kernel="xla")
    with pytest.raises(ValueError, match=r"Llama.* cannot say norm_placement 'after_residual' \(only 'pre'\)\.$"):
        zoo.target(dataclasses.replace(config, norm_placement="after_residual"), "emergence")


def test_a_vision_model_of_no_family(tmp_path, tiny_vision):
    """Its model type is the default one, a language model's: the nearest class of images is what the message is of."""
    with pytest.raises(ValueError, match=r"ViTForImageClassification cannot say layer_scale True .*, registers 2"):
        mj.export(tiny_vision, tmp_path / "out")


def test_another_family_may_say_it(tmp_path, make_model):
    """Biases of queries, keys and values alone are Qwen2's."""
    model = make_model(qkv_bias=True, window=5, window_layers=(True, False, True, True), norm=NormConfig(eps=1e-4))
    again = parity.load(mj.export(model, tmp_path / "out"))
    assert again.config == dataclasses.replace(model.config, model_type="qwen2", rope=again.config.rope)
    parity.assert_same_params(again.params, model.params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "gs://bucket/x"}, "needs the package gcsfs"),
        ({"out": "foo://bucket/x"}, "on this machine"),
        ({"out": ""}, "give a path"),
        ({"out": "here"}, "here exists already"),
        ({"dtype": "int8"}, "int8"),
        ({"dtype": 8}, "dtype is 8"),
        ({"model": "llama"}, "give a Model"),
    ],
)
def test_wrong_arguments(tmp_path, tiny_model, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match=message):
        mj.export(options.pop("model", tiny_model), **{"out": "new"} | options)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_parameters_that_cannot_be_written(tmp_path, tiny_model):
    """Nothing is left, not even where it shows half-way."""
    for params, options, message in (
        ({"norm__scale": tiny_model.params["norm"]["scale"] * np.nan}, {}, "NaN or infinite: norm/scale"),
        ({"norm__scale": tiny_model.params["norm"]["scale"] * 1e5}, {"dtype": "float16"}, "beyond float16"),
        ({"norm__scale": np.ones(5, np.float32)}, {}, "not those of the config"),
    ):
        with pytest.raises(ValueError, match=message):
            mj.export(with_params(tiny_model, **params), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_every_preset_has_a_config_to_go_back_to():
    """But StoryWriter, whose steeper ALiBi transformers' MPT ignores."""
    wrong: dict[str, object] = {}
    for name, preset in zoo.PRESETS.items():
        config, _ = zoo.map_config(preset.config, name)
        try:
            again, _ = zoo.map_config(json.loads(json.dumps(zoo.target(config, name).fields)), name)
            if again != dataclasses.replace(config, model_type=again.model_type):
                wrong[name] = again
        except ValueError as error:
            wrong[name] = str(error)
    assert wrong.keys() == {"mpt_7b_storywriter"}
    assert "alibi.max_exponent 16.0 (only 8.0)" in wrong["mpt_7b_storywriter"]


@pytest.mark.slow
def test_the_default_model_which_is_a_gguf_file(tmp_path, default_model):
    directory = mj.export(default_model, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for text in ("Summer is warm. Winter is cold.\n", "  12345 naïve\t<|im_start|>user\n🙂 def f(x):\n    return x"):
        assert tokenizer(text)["input_ids"] == default_model.encode(text)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        default_model.tokenizer.bos_id,
        default_model.tokenizer.eos_id,
    )
    tokens = default_model.tokenize("Summer is warm. Winter is cold.")
    theirs = torch_load(directory)(torch.tensor(tokens).long()).logits.detach()
    assert hf.relative_error(theirs, default_model(tokens).logits) <= TOLERANCE
    again = parity.load(directory)
    assert dataclasses.replace(again.config, rope=default_model.config.rope) == default_model.config
    parity.assert_same_params(again.params, default_model.params)


@pytest.mark.slow
def test_the_command(tmp_path, tiny_model):
    mj.save(tiny_model, tmp_path / "model")
    command = [sys.executable, "-m", "checkpoints.export", f"--model={tmp_path / 'model'}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run([*command, "--dtype=bfloat16"], capture_output=True, text=True, check=False)
    assert "transformers and --model=" in done.stdout, done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr
    assert torch_load(tmp_path / "out").dtype == torch.bfloat16
