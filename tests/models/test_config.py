"""Options that are words: the annotation is the list, and one check reads it."""

import dataclasses
import typing

import pytest

from massive_jax.models import VisionConfig
from tests.fixtures.tiny import TINY, TINY_VISION

WORDS = {
    "activation": "swish",
    "attention_kernel": "flash",
    "norm_placement": "post",
    "residual": "both",
    "position": None,
    "qk_norm": "heads",
    "mlp": 3,
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


def test_windowed_layers():
    assert TINY.windowed_layers == (False,) * 4
    assert dataclasses.replace(TINY, window=3).windowed_layers == (True,) * 4
    some = (True, False, False, True)
    assert dataclasses.replace(TINY, window=3, window_layers=some).windowed_layers == some
