"""Operations of an intervention as text: read, written, and never two under one name."""

import pytest

from massive_jax.evaluate import Operation


def test_two_that_differ_never_print_alike():
    texts = ["set=100000.1", "set=100000.4", "set=5", "noise=1e3", "scale=0.1", "add=-3", "zero", "set=1e-30"]
    operations = [Operation.parse(text) for text in texts]
    assert len({str(operation) for operation in operations}) == len(texts)
    assert [Operation.parse(str(operation)) for operation in operations] == operations
    assert [str(operation) for operation in operations[2:4]] == ["set=5", "noise=1000"]


@pytest.mark.parametrize("text", ["set=1e39", "add=-1e39", "scale=inf", "noise=nan"])
def test_values_that_float32_does_not_hold(text):
    with pytest.raises(ValueError, match="is not a finite number"):
        Operation.parse(text)


@pytest.mark.parametrize("fields", [("set",), ("zero", 1.0), ("foo",), ("set", float("nan")), ("set", "5"), (None,)])
def test_operations_that_are_none(fields):
    with pytest.raises(ValueError, match="operation"):
        Operation(*fields)
