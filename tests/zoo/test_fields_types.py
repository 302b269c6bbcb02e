"""Values of wrong types or out of range in a config.json: one line that names the field, before anything is made."""

import json

import pytest

from massive_jax import files, zoo
from massive_jax.weights.source import Source, TensorInfo
from massive_jax.zoo import FAMILIES, PRESETS
from massive_jax.zoo.fields import Fields

NAN, INF = float("nan"), float("inf")
# A field of each type, and what it must not be.
WRONG = {
    "size": ("32", 0, -1, 32.0, True, [32], {}, 10**30, 2**31, NAN),
    "layers": ("3", 0, -1, 2.0, True, [], 10**9),
    "number": ("1e-5", -1, NAN, INF, -INF, True, [], {}, 1e39),
    "flag": (0, 1, "true", [], {}, NAN),
    "text": (5, True, ["silu"], {}, NAN),
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
FIELDS = {
    "size": ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    "layers": ("num_hidden_layers",),
    "number": ("rms_norm_eps", "rope_theta"),
    "flag": ("attention_bias", "mlp_bias", "tie_word_embeddings"),
    "text": ("hidden_act",),
}


class Weights(Source):
    """A checkpoint that is a config and the names and shapes of tensors."""

    def __init__(self, config, **tensors):
        self.location, self.format, self.config, self.files = "here", "huggingface", config, ()
        self.tensors = {name: TensorInfo(shape, "float32") for name, shape in tensors.items()}

    def read(self, name, memory=None):
        raise AssertionError("read")

    def tokenizer(self):
        return None


def read(config):
    fields = Fields(config, "here")
    found = FAMILIES[config["model_type"]].config(fields)
    fields.finish()
    return found


def refusal(config, fn=read):
    with pytest.raises(ValueError) as caught:
        fn(config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("here")
    assert len(message) < 500
    return message


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, names in FIELDS.items() for field in names])
def test_a_wrong_type_or_range_is_named(kind, field):
    for value in WRONG[kind]:
        message = refusal(LLAMA | {field: value})
        assert field in message
        assert files.shown(value) in message


def test_all_wrong_fields_are_named_at_once():
    message = refusal(LLAMA | {"hidden_size": "32", "rms_norm_eps": NAN, "mlp_bias": 0, "vocab_size": None})
    assert all(name in message for name in ("hidden_size = '32'", "rms_norm_eps = nan", "mlp_bias = 0", "'vocab_size'"))


@pytest.mark.parametrize("preset", [next(iter(family.presets)) for family in FAMILIES.values() if family.presets])
def test_every_field_of_every_family_has_a_type(preset):
    """Whatever of a preset's config is replaced by something else is refused, or known to change nothing."""
    config = PRESETS[preset].config

    def each(fields, put):
        for name, value in fields.items():
            if isinstance(value, dict):
                yield from each(value, lambda inner, name=name, fields=fields: put(fields | {name: inner}))
            for wrong in ([[]], NAN, *([] if isinstance(value, dict) else [{"a": {}}])):
                yield name, value, put(fields | {name: wrong})

    for name, value, changed in each(dict(config), lambda fields: fields):
        if name in ("model_type", "architectures", "label_names", "initial_context_length"):
            continue
        assert name in refusal(changed), (name, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "rotary_dim 7 must be even"),
        ({"model_type": "phi", "partial_rotary_factor": 0.1}, "partial_rotary_factor 0.1 of a head of 8 is less than"),
        ({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_inner": 2**31}, "n_inner = 2147483648"),
        ({"rope_theta": 1e-300}, "rope_theta = 1e-300"),
        ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM'"),
        ({"architectures": [1]}, r"architectures = \[1\]"),
        ({"quantization_config": "gptq"}, "quantization_config = 'gptq'"),
        ({"quantization_config": {}}, r"quantised \(unknown\)"),
        ({"quantization_config": {"quant_method": ["x"]}}, "quantised"),
        ({"rope_parameters": 5}, "rope_parameters = 5"),
        ({"rope_scaling": ["linear"]}, r"rope_scaling = \['linear'\]"),
        ({"rope_scaling": {"type": 3}}, r"rope_scaling\.type = 3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": NAN}}, r"rope_scaling\.factor = nan"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, r"rope_scaling\.factor = '4'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": 1}}, r"rope_scaling\.truncate = 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0}}, r"rope_scaling\.beta_fast = 0"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4.0}}, "contradict each other"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "no low_freq_factor; .*no high_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "spin": 0}}, "unknown settings .*'spin': 0"),
        ({"rope_parameters": {"rope_theta": [1]}}, r"rope_parameters\.rope_theta = \[1\]"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=f"^here: .*{message}"):
        read(LLAMA | changes)


@pytest.mark.parametrize("model_type", ["llama", None, 3, ["llama"], {"a": 1}])
def test_the_model_type_is_a_string(model_type):
    source = Weights({"model_type": model_type, "vocab_size": 0})
    message = refusal(source, zoo.describe)
    assert ("vocab_size" if model_type == "llama" else "model_type") in message


@pytest.mark.parametrize(
    ("field", "value", "most"),
    [
        ("num_hidden_layers", 10**9, 2),
        ("num_hidden_layers", 3, 2),
        ("intermediate_size", 10**18, 61 * 32),
        ("vocab_size", 61 * 32 + 1, 61 * 32),
        ("hidden_size", 2**31 - 1, 61 * 32),
        ("num_key_value_heads", 10**6, 61 * 32),
    ],
)
def test_sizes_are_bounded_by_the_weights(field, value, most):
    tensors = {"model.embed_tokens.weight": (61, 32), "model.norm.weight": (32,)}
    message = refusal(Weights({**LLAMA, "num_hidden_layers": 2, field: value}, **tensors), zoo.describe)
    assert f"{field} = {value}: must be an integer from 1 to {most}, " in message


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 0},
        {"image_size": [224]},
        {"image_size": [224, "224"]},
        {"image_size": 10**9},
        {"image_size": True},
        {"image_size": 224.0},
        {"image_size": {}},
        {"patch_size": [16, 16, 16]},
        {"patch_size": -16},
        {"patch_size": [16, 8]},
        {"image_size": 8},
        {"num_register_tokens": -1},
        {"num_register_tokens": 2**31 - 1},
        {"num_register_tokens": 4.0},
        {"num_register_tokens": True},
        {"num_channels": True},
        {"architectures": ["DINOv3ViTForImageClassification", 5]},
    ],
    ids=repr,
)
def test_settings_of_images(changes):
    config = dict(PRESETS["dinov3_small"].config)
    assert read(config | {"image_size": [224, 112], "patch_size": [16, 16]}).image_size == (224, 112)
    assert next(iter(changes)) in refusal(config | changes)


@pytest.mark.parametrize(
    "changes", [{"id2label": 5}, {"id2label": [1, 2]}, {"num_labels": "2"}, {"num_labels": -1}, {"num_labels": True}]
)
def test_labels(changes):
    config = {**PRESETS["vit_base"].config, "num_labels": None}
    assert read(config).num_classes == 2
    assert read(config | {"id2label": {str(i): "x" for i in range(7)}}).num_classes == 7
    assert next(iter(changes)) in refusal(config | changes)


def test_a_tower_of_clip_said_twice():
    config = dict(PRESETS["clip_vit_base_32"].config)
    tower = config["vision_config"]
    assert read(config | {"vision_config_dict": tower, "vision_config": tower | {"tie_word_embeddings": True}})
    assert read({"model_type": "clip", "vision_config": {}, "vision_config_dict": tower}) == read(config)
    message = refusal(config | {"vision_config_dict": tower | {"patch_size": 16}})
    assert "patch_size = 32" in message
    assert "16 in vision_config_dict" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hidden_size": 32, "hidden_size": 64}', "two values of 'hidden_size'"),
        ('{"rope_scaling": {"factor": 1, "factor": 2}}', "two values of 'factor'"),
        ('{"hidden_size": 1' + "0" * 5000 + "}", "is not readable JSON"),
        ("[" * 100_000, "is not readable JSON"),
    ],
    ids=["twice", "twice inside", "digits", "depth"],
)
def test_json_that_says_two_things_or_too_much(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        files.read_json_object(path)
    assert "\n" not in str(caught.value)
    path.write_text(json.dumps({"a": 1})[:-1] + ', "a": 1}')  # the same twice is one thing
    assert files.read_json_object(path) == {"a": 1}
