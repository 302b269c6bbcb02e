"""What a source says of itself."""

import types

from massive_jax.weights.source import Source, TensorInfo


def test_the_type_of_the_weights_is_that_of_most_of_them():
    """A GGUF file of Q4_1 keeps its many norms in float32, and some matrices better."""
    stored = {f"norm.{i}": TensorInfo((8,), "F32") for i in range(9)}
    stored |= {"embedding": TensorInfo((32, 8), "Q6_K"), "mlp": TensorInfo((64, 8), "Q4_1")}
    assert Source.weight_type(types.SimpleNamespace(tensors=stored)) == "Q4_1"
    assert Source.weight_type(types.SimpleNamespace(tensors={})) is None
