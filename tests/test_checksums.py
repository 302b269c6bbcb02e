"""Checksums tell apart what is not the same, by contents, places and shapes."""

import dataclasses

import numpy as np

from massive_jax.checksums import checksum, model_checksum


def test_they_are_of_contents_places_shapes_and_dtypes():
    a = np.arange(6, dtype=np.float32)
    others = (
        {"a": a + 1},
        {"b": a},
        {"a": a.reshape(2, 3)},
        {"a": a.view(np.int32)},
        {"a": a, "b": a},
        [a],
        "a",
    )
    found = [checksum(thing) for thing in ({"a": a}, *others)]
    assert len(set(found)) == len(found)
    assert checksum({"a": a[::1]}) == checksum({"a": np.array(a)}) == found[0]


def test_a_model_is_its_options_and_parameters_not_its_name(tiny_model):
    config, params = tiny_model.config, tiny_model.params
    found = model_checksum(config, params)
    assert found == model_checksum(dataclasses.replace(config), dict(params))
    assert found != model_checksum(dataclasses.replace(config, window=3), params)
    assert found != model_checksum(config, {**params, "embedding": params["embedding"] + 1})
