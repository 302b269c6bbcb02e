"""Operations of an intervention as text: read, written, and never two under one name."""

import pytest

from massive_jax.evaluate import KNOWN, Operation, Place, PlaceInStream, parse_places, parse_sites
from massive_jax.probe.operations import OPERATIONS, in_words


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


def test_the_table_of_operations_is_the_only_list():
    known = [text.replace("X", "2") for text in KNOWN.split(", ")]
    assert {text.partition("=")[0] for text in known} == {"zero", "mean"} | {
        op for op, how in OPERATIONS.items() if how.done is not None
    }
    for text in known:
        operation = Operation.parse(text)
        assert operation.edit(1, Place(0, 3), 1.5).op in OPERATIONS
        assert in_words(text)
    assert [text for text in known if Operation.parse(text).drawn] == ["shuffle", "noise=2"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("set=5", "set to 5"), ("zero", "set to zero"), ("shuffle", "shuffled"), ("noise=1e+06", "plus noise of 1e+06")],
)
def test_operations_in_words(name, words):
    assert in_words(name) == words


@pytest.mark.parametrize("name", ["", "set", "shuffle=2", "zero=1", "quantize=8", "move=0", "other"])
def test_names_that_are_no_operation_on_a_number_have_no_words(name):
    assert in_words(name) is None


def test_places_have_their_old_names():
    assert (PlaceInStream, parse_sites) == (Place, parse_places)
