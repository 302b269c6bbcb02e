import pytest

from experiments import verify
from massive_jax import zoo
from massive_jax.zoo import atlas


def test_every_entry_is_sound():
    for name, entry in atlas.entries().items():
        assert set(entry.sources) <= set(atlas.sources()), name
        assert entry.sources, name
        if entry.layers is not None:
            assert 1 <= entry.layers[0] <= entry.layers[1], name
        preset = zoo.PRESETS.get(name)
        if preset is not None and isinstance(preset.source, str):
            assert preset.source == entry.hub_id
        if preset is not None and preset.config is not None and entry.dims:
            width = preset.config.get("hidden_size") or preset.config["n_embd"]
            assert max(entry.dims) < width, name


def test_find_by_name_and_by_hub_id():
    assert atlas.find("llama2_7b") == atlas.find("meta-llama/Llama-2-7b-hf")
    assert atlas.find("llama2_7b").dims == (1415, 2533)
    with pytest.raises(ValueError, match="no entry for 'nothing'; it has smollm2_135m"):
        atlas.find("nothing")


FOUND = {"dims": [507], "layers": [12, 28], "largest": 23147.0}


@pytest.mark.parametrize(
    ("changes", "agree"),
    [
        ({}, [True, True, True]),
        ({"dims": [506]}, [False, True, True]),
        ({"dims": []}, [False, True, True]),
        ({"layers": [11, 28]}, [True, False, True]),
        ({"layers": []}, [True, False, True]),
        ({"largest": 22000.0}, [True, True, False]),
    ],
)
def test_comparison_with_a_measured_entry(changes, agree):
    rows = verify.compare(atlas.find("smollm2_135m"), FOUND | changes)
    assert [row[3] for row in rows] == agree


def test_comparison_with_what_others_reported():
    rows = verify.compare(atlas.find("llama2_7b"), {"dims": [1415, 2533, 7], "layers": [2, 31], "largest": 2300.0})
    assert [row[3] for row in rows] == [True, None, None]
    assert verify.compare(atlas.find("olmo2_7b"), FOUND)[0][3] is False
    assert verify.compare(atlas.find("olmo2_7b"), {"dims": [], "layers": [], "largest": 9.0})[0][3] is True
