"""Results and their JSON: a class is the schema of a file, and what a file holds is a result again."""

import dataclasses
import json
import math

import pytest

from massive_jax.files import read_json, write_json
from massive_jax.report import as_json, as_record, results
from massive_jax.report.results import (
    AttentionMap,
    EditedPlace,
    ExplicitBias,
    ImageSource,
    Intervention,
    Layer,
    Layerwise,
    LogitsApart,
    Numbers,
    Prefix,
    TextSource,
    TopActivation,
    Training,
)

TEXT = TextSource(bos=False, windows=1, context=9)
IMAGES = ImageSource(images=("a.png",), image_size=(14, 28))
ABOUT = {"model": "m", "dtype": "float32", "source": TEXT}
TOP = TopActivation(value=-3.5, position=0, dim=7, token=None, share=0.5)
LAYERWISE = Layerwise(**ABOUT, layers=(Layer(layer=1, top=(TOP,), median=0.5),), massive=())
ATTENTION = AttentionMap(
    **ABOUT | {"source": IMAGES},
    tokens=("a", "b"),
    layer=1,
    head="mean",
    massive_positions=(0,),
    shares=(0.5,),
    emergence_layer=None,
)
PLACE = EditedPlace(position="first_delimiter", dim=3, value_mean=1.5)
INTERVENTION = Intervention(**ABOUT, layer=2, sites=(PLACE,), perplexity={"original": 2.0, "zero": math.inf})
EXPLICIT = ExplicitBias(
    model="m",
    dtype="float32",
    text="python",
    windows=1,
    context=4,
    prefix=Prefix(text="bos", tokens=(1,)),
    perplexity={"original": 2.0, "explicit": 2.0},
    largest={"original": 3.0, "explicit": 1.0},
    int8_per_tensor={"original": 4.0, "explicit": 2.5},
    logits=LogitsApart(largest_difference=0.1, relative_difference=0.2, positions=3, beyond=1),
    layers={"original": (), "explicit": ()},
)


@pytest.mark.parametrize("result", [LAYERWISE, ATTENTION, INTERVENTION, EXPLICIT], ids=lambda r: type(r).__name__)
def test_a_result_comes_back_from_its_file(tmp_path, result):
    write_json(tmp_path / "a.json", as_json(result))
    assert as_record(type(result), read_json(tmp_path / "a.json")) == result
    assert as_record(type(result), result) is result


def test_the_keys_of_files():
    found = as_json(LAYERWISE)
    assert set(found) == {
        *("model", "dtype", "weights", "bos", "text", "windows", "context"),
        *("tokens", "thresholds", "layers", "final_norm", "massive"),
    }
    assert found["text"] is None  # a prompt
    assert found["thresholds"] == {"magnitude": 100.0, "ratio": 1000.0}
    assert found["layers"][0]["top"] == [{"value": -3.5, "position": 0, "dim": 7, "token": None, "share": 0.5}]
    found = as_json(ATTENTION)
    assert (found["images"], found["image_size"]) == (["a.png"], [14, 28])
    assert not {"bos", "windows", "key_tokens", "source"} & set(found)
    assert as_json(dataclasses.replace(ATTENTION, key_tokens=("a", "slot 1")))["key_tokens"] == ["a", "slot 1"]
    found = as_json(INTERVENTION)
    assert not {"top1_agreement", "cosine_similarity", "predicted_tokens", "tokens"} & set(found)
    assert set(as_json(EXPLICIT)["logits"]) == {
        *("largest_difference", "relative_difference", "positions", "beyond_1e-4")
    }


def test_what_only_a_figure_needs_is_in_no_file():
    made = Training(model="m", attention_bias="none", dataset="d", dtype="float32", parameters=1, census=())
    assert set(as_json(made)) == {"model", "preset", "attention_bias", "dataset", "dtype", "steps", "parameters"}


def test_null_is_a_number_that_is_not_finite():
    given = json.loads(
        '{"model": "m", "dtype": "float32", "bos": true, "layer": 1, "sites": [], "perplexity": {"a": null}}'
    )
    assert math.isnan(as_record(Intervention, given).measured["a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": None}, r"a result: layers is None; expected tuple"),
        ({"layers": [{"layer": 1}]}, r"layers\[0\] has no 'top', which Layer needs; it has layer"),
        ({"layers": [{"layer": "x", "top": [], "median": 1}]}, r"layers\[0\]: layer is 'x'; expected int"),
        ({"massive": "none"}, "massive is 'none'; expected tuple"),
        ({"model": None}, "model is None; expected str"),
        ({"thresholds": 3}, "thresholds is int; give Thresholds"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        as_record(Layerwise, as_json(LAYERWISE) | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [None, [], "layerwise.json", 3])
def test_what_is_no_mapping_is_refused(given):
    with pytest.raises(ValueError, match="give Numbers, or what its JSON file holds"):
        as_record(Numbers, given)


def test_a_source_is_a_text_or_images():
    with pytest.raises(ValueError, match="has no 'images'"):
        as_record(Layerwise, {key: value for key, value in as_json(LAYERWISE).items() if key != "bos"})


def test_every_class_is_frozen_and_says_what_it_is():
    for name in results.__all__:
        cls = getattr(results, name)
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        assert cls.__doc__
        assert not cls.__doc__.startswith(f"{name}(")  # what dataclasses write where there is none
