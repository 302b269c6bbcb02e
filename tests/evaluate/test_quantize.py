"""Rounded weights: where they are, and in which dtype."""

import jax
import numpy as np

from massive_jax.evaluate import quantized_weights


def test_weights_stay_where_they_are(tiny_model):
    """On their devices, so that one program serves both; arrays of the host stay on it."""
    host = tiny_model.with_params(tiny_model.config, jax.device_get(tiny_model.params))
    for model, kind in ((tiny_model, jax.Array), (host, np.ndarray)):
        kernel = quantized_weights(model).params["layers"]["mlp"]["up"]["kernel"]
        assert not np.array_equal(kernel, model.params["layers"]["mlp"]["up"]["kernel"])
        for before, after in zip(*map(jax.tree.leaves, (model.params, quantized_weights(model).params)), strict=True):
            assert isinstance(after, kind)
            assert after.dtype == before.dtype
            assert kind is np.ndarray or after.sharding == before.sharding
