"""Reading configs: every field is used, known not to matter, or refused by name."""

import dataclasses

import pytest
import transformers

from massive_jax.models.config import RopeConfig
from massive_jax.zoo import FAMILIES
from massive_jax.zoo.fields import Fields

LLAMA = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def read(config, model_type="llama"):
    fields = Fields(config, "here/config.json")
    found = FAMILIES[model_type].config(fields)
    fields.finish()
    return found


def test_absent_fields_have_the_hugging_face_defaults():
    found, theirs = read(LLAMA), transformers.LlamaConfig(**LLAMA)
    assert found.num_kv_heads == theirs.num_key_value_heads == 4
    assert found.head_dim == theirs.head_dim == 8
    assert found.max_position == theirs.max_position_embeddings == 2048
    assert found.norm.eps == theirs.rms_norm_eps == 1e-6
    assert found.rope.theta == theirs.rope_parameters["rope_theta"] == 10000.0
    assert found.tie_embeddings == theirs.tie_word_embeddings is False
    assert (found.activation, theirs.hidden_act) == ("silu", "silu")
    assert (found.qkv_bias, found.out_bias, found.mlp_bias) == (False, False, False)


def test_a_config_as_transformers_writes_it_and_the_same_with_null_fields():
    written = transformers.LlamaConfig(**LLAMA).to_dict()
    assert read(written) == read(LLAMA)
    assert read(LLAMA | {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None}) == read(LLAMA)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": 2}, {"num_kv_heads": 2}),
        ({"head_dim": 12}, {"head_dim": 12}),
        ({"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
        ({"mlp_bias": True}, {"mlp_bias": True}),
        ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
        ({"hidden_act": "gelu"}, {"activation": "gelu"}),
        ({"hidden_act": "gelu_new"}, {"activation": "gelu_tanh"}),
        ({"hidden_act": "swish"}, {}),  # another name of the default
        ({"max_position_embeddings": 7}, {"max_position": 7}),
    ],
)
def test_a_field_changes_its_option_and_no_other(changes, expected):
    before, after = dataclasses.asdict(read(LLAMA)), dataclasses.asdict(read(LLAMA | changes))
    if "max_position" in expected:
        expected = expected | {"rope": after["rope"]}
    assert {name: after[name] for name in after if after[name] != before[name]} == expected


def test_dtype_and_such_are_ignored():
    harmless = {"torch_dtype": "bfloat16", "use_cache": True, "bos_token_id": 1, "attention_dropout": 0.5}
    assert read(LLAMA | harmless) == read(LLAMA)
    assert read(LLAMA | {"some_new_option": None, "another": False}) == read(LLAMA)


@pytest.mark.parametrize("empty", [0, 0.0, "", [], {}], ids=repr)
def test_an_unknown_field_is_refused_whatever_its_value(empty):
    with pytest.raises(ValueError, match="could change the result: some_new_option = "):
        read(LLAMA | {"some_new_option": empty})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"some_new_option": 1, "another": "x"}, r"could change the result: another = 'x', some_new_option = 1\."),
        ({"pretraining_tp": 2}, r"pretraining_tp = 2 is not implemented \(only 1\)"),
        ({"hidden_act": "mish"}, "activation 'mish' is not implemented; known: silu"),
        ({"hidden_size": None}, "the config has no 'hidden_size'"),
        ({"vocab_size": None}, "the config has no 'vocab_size'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not implemented"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"quantization_config": {"bits": 4}}, r"quantised \(unknown\)"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope scaling 'longrope' is not implemented"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling 'linear' has no factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "spin": 3}}, "'linear': {'spin': 3}"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2.0}}, "must be positive"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(LLAMA | changes)
    if "positive" not in message:
        assert str(caught.value).startswith("here/config.json: ")


def rope_of(**fields):
    return read(LLAMA | {"max_position_embeddings": 64} | fields).rope


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, RopeConfig(10000.0, original_max_position=64)),
        ({"rope_type": "linear", "factor": 2.0}, RopeConfig(10000.0, "linear", 2.0, 64)),
        # Dynamic scaling goes by the model's own length, whatever else is said.
        (
            {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32},
            RopeConfig(10000.0, "dynamic", 2.0, 64),
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.5,
                "high_freq_factor": 3.0,
                "original_max_position_embeddings": 32,
            },
            RopeConfig(10000.0, "llama3", 8.0, 32, 1.5, 3.0),
        ),
        (
            {"rope_type": "yarn", "original_max_position_embeddings": 16, "mscale": 0.7, "truncate": False},
            RopeConfig(10000.0, "yarn", 4.0, 16, mscale=0.7, truncate=False),
        ),
    ],
    ids=["none", "linear", "dynamic", "llama3", "yarn, its factor by the lengths"],
)
def test_rope_settings_in_both_styles(settings, expected):
    new = rope_of(rope_parameters={"rope_theta": 10000.0, **settings})
    old = rope_of(rope_theta=10000.0, rope_scaling=settings or None)
    older = {**settings, "type": settings.get("rope_type")}
    older.pop("rope_type", None)
    assert new == old == expected
    if settings:
        assert rope_of(rope_scaling=older) == expected


def test_theta_of_rope_parameters_comes_before_the_old_field():
    assert rope_of(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}, rope_theta=7.0).theta == 5e5
    assert rope_of(rope_theta=7.0).theta == 7.0


def test_the_context_of_dynamic_scaling_is_longer():
    scaling = {"rope_type": "dynamic", "factor": 2.5}
    assert read(LLAMA | {"max_position_embeddings": 64, "rope_scaling": scaling}).context_length == 160
    assert read(LLAMA | {"max_position_embeddings": 64}).context_length == 64


def test_fields_of_a_part_are_watched_too():
    fields = Fields({"text_config": {"hidden_size": 3, "odd": 4}}, "here")
    assert fields.part("text_config").get("hidden_size") == 3
    with pytest.raises(ValueError, match="here, text_config: config fields .*odd = 4"):
        fields.finish()
