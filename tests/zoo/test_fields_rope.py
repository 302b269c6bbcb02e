"""Rotary settings in their old and new words, mixed: read as transformers 5 reads them."""

import itertools

import pytest
import transformers

from massive_jax.zoo import FAMILIES
from massive_jax.zoo.fields import Fields

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "mixtral": transformers.MixtralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "olmo2": transformers.Olmo2Config,
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "gpt_oss": transformers.GptOssConfig,
    "gpt_neox": transformers.GPTNeoXConfig,
    "phi": transformers.PhiConfig,
    "falcon": transformers.FalconConfig,
}
WITHOUT_HEAD_DIM = ("qwen2", "olmo2", "gpt_neox", "phi", "falcon")
SCALINGS = (
    None,
    {},
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 7000.0},
    {"rope_type": "default", "factor": 4.0},
)
PARAMETERS = (
    None,
    {"rope_type": "default", "rope_theta": 5e5},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
    {"type": "linear", "factor": 2.0},
)
OUTSIDE = ({}, {"rope_theta": 9000.0}, {"original_max_position_embeddings": 64}, {"rope_scaling": None})


def read(config):
    fields = Fields(config, "here")
    found = FAMILIES[config["model_type"]].config(fields)
    fields.finish()
    return found.rope, found.local_rope


def by_layer(model_type, parameters):
    """Gemma 3 has `rope_parameters` by the kind of a layer."""
    return {"full_attention": parameters} if model_type == "gemma3_text" else parameters


def raw(model_type, scaling, parameters, outside):
    config = {**SHAPE, "model_type": model_type, **outside}
    if model_type in WITHOUT_HEAD_DIM:
        del config["head_dim"]
    if model_type in ("falcon", "gpt_neox"):
        del config["num_key_value_heads"]
    if model_type == "gpt_neox":
        config = {"rotary_pct": 0.5} | config
    if model_type == "falcon":
        del config["intermediate_size"]
    if scaling is not None:
        config["rope_scaling"] = dict(scaling)
    if parameters is not None:
        config["rope_parameters"] = by_layer(model_type, dict(parameters))
    return config


@pytest.mark.parametrize("model_type", CONFIGS)
def test_as_transformers_reads_them(model_type):
    """What transformers makes of a config, which it writes in new words, and the config itself are read alike."""
    transformers.logging.set_verbosity_error()
    refusals = []
    for scaling, parameters, outside in itertools.product(SCALINGS, PARAMETERS, OUTSIDE):
        theirs = CONFIGS[model_type](**raw(model_type, scaling, parameters, outside))
        theirs.standardize_rope_params()  # as their rotary embedding does, once all fields are there
        written = raw(model_type, None, None, {}) | {"rope_parameters": theirs.rope_parameters}
        config = raw(model_type, scaling, parameters, outside)
        try:
            ours = read(config)
        except ValueError as error:
            refusals.append(str(error))
            continue
        assert ours == read(written), config
    # Refused is what transformers passes over: a base, a type said twice, a length beside the settings of two types.
    ignored = {"gpt_neox": ("rope_theta = 9000.0",), "gemma3_text": ("contradict", "original_max_position_embeddings")}
    assert all(any(word in error for word in ignored.get(model_type, ())) for error in refusals)
    assert len(refusals) < len(SCALINGS) * len(PARAMETERS) * len(OUTSIDE) / 2


def test_the_base_of_gpt_neox_is_said_twice_by_older_versions():
    config = raw("gpt_neox", None, None, {"rotary_emb_base": 5000, "rotary_pct": 0.5})
    agreeing = config | {"rope_theta": 5000, "partial_rotary_factor": 0.5}
    assert read(agreeing) == read(config)
    assert (read(config)[0].theta, read(config)[0].rotary_dim) == (5000.0, 4)
    with pytest.raises(ValueError, match=r"rope_theta = 9000 is not implemented \(only 5000\)"):
        read(agreeing | {"rope_theta": 9000})
    with pytest.raises(ValueError, match="partial_rotary_factor = 0.25"):
        read(agreeing | {"partial_rotary_factor": 0.25})


@pytest.mark.parametrize(
    ("outside", "inside", "expected"), [({}, {}, 0.5), ({"partial_rotary_factor": 0.25}, {}, 0.25)]
    + [({"partial_rotary_factor": 0.25}, {"partial_rotary_factor": 0.75}, 0.75)]
)  # fmt: skip
def test_how_much_of_a_head_is_turned(outside, inside, expected):
    config = raw("phi", None, {"rope_type": "default", **inside}, outside)
    assert read(config)[0].rotary_dim == int(8 * expected)


def test_gpt_oss_is_stretched_unless_the_config_says_otherwise():
    config = raw("gpt_oss", None, None, {})
    assert read(config)[0].kind == read(config | {"rope_scaling": None, "rope_parameters": None})[0].kind == "yarn"
    assert read(config)[0].theta == 150000.0
    assert read(config | {"rope_theta": 9000.0})[0].theta == 9000.0
    assert read(config | {"rope_parameters": {}})[0].kind == "default"


def test_what_mistral_has_without_saying_so():
    config = raw("mistral", None, None, {})
    del config["num_key_value_heads"], config["max_position_embeddings"]
    found = FAMILIES["mistral"].config(Fields(config | {"num_attention_heads": 8, "hidden_size": 64}, "here"))
    theirs = transformers.MistralConfig()
    assert (found.num_kv_heads, found.max_position) == (theirs.num_key_value_heads, theirs.max_position_embeddings)
