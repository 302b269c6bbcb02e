"""Every preset at full size, without its weights: shapes only, 70B too."""

import dataclasses
import gc
import math
import re

import jax
import pytest

from massive_jax import zoo
from massive_jax.models import build, declared
from massive_jax.weights.loader import count_params
from massive_jax.weights.table import expand
from massive_jax.zoo.fields import Fields


def module_of(name):
    given = zoo.PRESETS[name].config
    assert given is not None, f"{name} has no config"
    family = zoo.FAMILIES[given["model_type"]]
    fields = Fields(given, name)
    config = family.config(fields)
    fields.finish()
    return family, build(config)


# One of each family is quick: the others are other sizes of the same, or have options that parity tests have, too.
_QUICK = {(preset.config or {}).get("model_type"): name for name, preset in zoo.PRESETS.items()}


@pytest.mark.parametrize(
    "name",
    [name if name in _QUICK.values() else pytest.param(name, marks=pytest.mark.slow) for name in zoo.PRESETS],
)
def test_the_full_size_model_has_the_published_number_of_parameters(name):
    family, module = module_of(name)
    config, parameters = module.config, declared(module)
    assert sum(math.prod(it.shape) for it in parameters.values()) == zoo.PRESETS[name].num_params
    assert name in family.presets
    # The weight table has a row for every one of them, which gives it the axes that the model declares.
    rows = {row.path: row for _, row, _ in expand(family.table.rows, config.num_layers, config.sizes(1, 1)["E"])}
    assert set(parameters) <= set(rows)
    for path, it in parameters.items():
        given, ours = alike((rows[path].axes or "").partition("->")[2]), alike(it.axes)
        assert ours.endswith(given), path
        assert not given or set(ours.removesuffix(given)) <= set("LE"), path


def alike(axes):
    """Axes with one letter for what tables may call by another: heads of all kinds, widths."""
    return axes.replace("(KX)", "H").translate(str.maketrans("KYW", "HHD"))


def test_nothing_is_allocated():
    """A 70B model in the memory of a test."""
    gc.collect()  # of earlier tests
    before = sum(array.nbytes for array in jax.live_arrays())
    _, module = module_of("llama2_70b")
    assert count_params(module) == 68_976_648_192
    assert sum(array.nbytes for array in jax.live_arrays()) == before


def test_preset_names_are_used_once():
    names = [name for family in zoo.FAMILIES.values() for name in family.presets]
    assert len(names) == len(set(names)) == len(zoo.PRESETS)


def test_a_file_in_a_wheel_is_named_after_it():
    """SmolLM2-135M-Instruct.Q4_1.gguf is neither SmolLM2-135M nor of the precision of the hub's."""
    for name, preset in zoo.PRESETS.items():
        if isinstance(preset.source, zoo.WheelFile):
            file = re.sub(r"[-_.]", "", preset.source.name.lower().removesuffix(".gguf"))
            assert zoo.full_name(name).replace("_", "") == file  # gemma-3-270m is gemma3_270m here, as all Gemmas


def test_short_names_are_of_a_preset_that_is_none():
    short = {name: preset for name, preset in zoo.PRESETS.items() if preset.alias_of is not None}
    assert "smollm2_135m" in short  # what scripts have called the default model from the beginning
    for preset in short.values():
        assert dataclasses.replace(preset, alias_of=None) == zoo.PRESETS[preset.alias_of]
    assert zoo.full_name("smollm2_135m") == zoo.full_name(zoo.DEFAULT_MODEL) == zoo.DEFAULT_MODEL
    assert zoo.full_name("org/name") == "org/name"


def test_presets_say_where_and_under_which_terms():
    for name, preset in zoo.PRESETS.items():
        assert preset.licence, name
        assert isinstance(preset.source, zoo.WheelFile) or preset.source.count("/") == 1, name
