"""Names of settings and methods."""

import re

import pytest

from massive_jax.quantize import Setting, check_methods, parse_setting


@pytest.mark.parametrize(
    ("text", "weights", "inputs", "cache"),
    [("W8A8", 8, 8, 0), ("W4A16", 4, 0, 0), ("KV4", 0, 0, 4), ("W4A4KV2", 4, 4, 2), ("W16A16", 0, 0, 0)],
)
def test_setting(text, weights, inputs, cache):
    assert parse_setting(text) == Setting(text, weights, inputs, cache)


@pytest.mark.parametrize("text", ["", "W8", "A8", "W0A8", "W1A8", "W9A9", "KV0", "w8a8", "W8A8 ", "int8", None, 8])
def test_no_setting(text):
    with pytest.raises(ValueError, match="is none; write W and A with bits"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "give names: plain, zero"),
        (["quarot"], "method 'quarot' is none"),
        (["absorb+absorb"], "method 'absorb+absorb' is none"),
        (["plain+absorb"], "all but plain join"),
        (["absorb+"], "method 'absorb+' is none"),
        (["rotate+absorb", "absorb+rotate"], "one is named twice"),
        (["rotate+zero"], "rotate and zero do not go together: in a rotated stream no single number is massive"),
        (["super+rotate"], "rotate and super do not go together"),
    ],
)
def test_no_method(methods, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_methods(methods)
