"""Options: what each may be its annotation says, and one check reads it."""

import dataclasses
import json
import typing
from fractions import Fraction

import numpy as np
import pytest

from massive_jax.models import AlibiConfig, ExpertsConfig, NormConfig, RopeConfig, VisionConfig
from tests.fixtures.tiny import TINY, TINY_VISION

WORDS = {
    "activation": "swish",
    "attention_kernel": "flash",
    "norm_placement": "post",
    "residual": "both",
    "position": None,
    "qk_norm": "heads",
    "mlp": 3,
    "value_scale": "yes",
    "interpolation": "nearest",
    "pooling": ["class"],
}


def test_all_options_of_words_are_tried():
    hints = typing.get_type_hints(VisionConfig)
    assert {name for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal} == set(WORDS)


@pytest.mark.parametrize("name", WORDS)
def test_a_word_that_is_none_of_them(name):
    config = TINY if hasattr(TINY, name) else TINY_VISION
    with pytest.raises(ValueError, match=f"^config: {name} .* is not one of [^\n]*$") as raised:
        dataclasses.replace(config, **{name: WORDS[name]})
    assert repr(WORDS[name]) in str(raised.value)


def test_all_of_them_in_one_message():
    with pytest.raises(ValueError, match="dtype 'int8' .*mlp 'wide' .*pooling 'best'"):
        dataclasses.replace(TINY_VISION, dtype="int8", mlp="wide", pooling="best")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, r"hidden_size is 0, expected a positive integer \(of 31 bits\)"),
        ({"num_layers": True}, "num_layers is True, expected a positive integer"),
        ({"head_dim": 2**31}, "head_dim is 2147483648, expected a positive integer"),
        ({"window": 0}, r"window is 0, expected a positive integer \(of 31 bits\) or None"),
        ({"window": 2.0}, r"window is 2\.0, expected"),
        ({"position_offset": -1}, "position_offset is -1, expected an integer .*, which must not be negative"),
        ({"qkv_bias": "no"}, "qkv_bias is 'no', expected True or False"),
        ({"clip_qkv": True}, "clip_qkv is True, expected a finite number above 0 or None"),
        ({"logit_scale": float("nan")}, "logit_scale is nan, expected a finite number or None"),
        ({"attention_softcap": 10**400}, "attention_softcap is 10+…, expected a finite number above 0 or None"),
        ({"attention_softcap": 0.0}, r"attention_softcap is 0\.0, expected a finite number above 0"),
        ({"clip_qkv": -1.0}, r"clip_qkv is -1\.0, expected a finite number above 0"),
        ({"attention_scale": Fraction(1, 8)}, "attention_scale is Fraction.*, expected a finite number or None"),
        ({"activation": np.array(["silu", "gelu"])}, "activation .* is not one of silu"),
        ({"norm": "rms"}, "norm is 'rms', expected a NormConfig"),
        ({"attention_bias": "kv"}, "attention_bias is 'kv', expected an AttentionBias or None"),
        ({"window_layers": [True] * 4}, "window_layers is .*, expected a tuple of any number of True or False or None"),
        ({"window_layers": (True, 1, True, 0)}, "window_layers is"),
        ({"model_type": 3}, "model_type is 3, expected a text"),
    ],
)
def test_a_value_of_another_kind(changes, message):
    with pytest.raises(ValueError, match=f"^config: {message}[^\n]*$"):
        dataclasses.replace(TINY, **changes)


def test_configs_inside_a_config_are_checked_by_their_annotations_too():
    for make, message in (
        (lambda: NormConfig("batch"), "norm: kind 'batch' is not one of rms, layer, dynamic_tanh"),
        (lambda: NormConfig(alpha=0.0), "norm: alpha is 0.0, expected a finite number above 0"),
        (lambda: NormConfig(single_scale=True, scale=False), "norm: single_scale is of a scale, and scale is False"),
        (lambda: NormConfig(eps=-1e-6), "norm: eps is -1e-06, expected a finite number of at least 0"),
        (lambda: NormConfig(eps="1e-6"), "norm: eps is '1e-6', expected"),
        (lambda: RopeConfig(kind="ntk"), "rope: kind 'ntk' is not one of default, linear"),
        (lambda: RopeConfig(theta=0), "rope: theta and factor must be positive"),
        (lambda: RopeConfig(factors=(1.0, "2")), r"rope: factors is \(1\.0, '2'\), expected a tuple"),
        (lambda: AlibiConfig(max_exponent=None), "alibi: max_exponent is None"),
        (lambda: ExpertsConfig(2, 3), "experts: 3 experts a token of 2"),
        (lambda: ExpertsConfig(2, "3"), "experts: num_chosen is '3'"),
        (
            lambda: dataclasses.replace(TINY_VISION, image_size=(28,)),
            r"image_size is \(28,\), expected a tuple of 2 times",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert NormConfig(eps=np.float32(0)).eps == 0
    assert RopeConfig(theta=10_000).theta == 10_000  # whole numbers are numbers


def test_numbers_of_numpy_are_pythons():
    changes = {
        "intermediate_size": np.int64(64),
        "attention_scale": np.float32(0.5),
        "causal": np.True_,
        "window": np.uint8(3),
        "window_layers": tuple(np.array([True, False, True, False])),
    }
    config = dataclasses.replace(TINY, **changes)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["attention_scale"] == 0.5
    assert [type(getattr(config, name)) for name in changes] == [int, float, bool, int, tuple]
    assert all(type(windowed) is bool for windowed in config.window_layers)


def test_windowed_layers():
    assert TINY.windowed_layers == (False,) * 4
    assert dataclasses.replace(TINY, window=3).windowed_layers == (True,) * 4
    some = (True, False, False, True)
    assert dataclasses.replace(TINY, window=3, window_layers=some).windowed_layers == some
