"""Every parameter says what it is where it is made; who splits, scales, decays and counts them goes by that alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from massive_jax.models import (
    AlibiConfig,
    AttentionBias,
    ExpertsConfig,
    NormConfig,
    Parameter,
    VisionConfig,
    build,
    declared,
)
from massive_jax.models.attention_bias import ATTENTION_BIASES, SLOT_KINDS
from massive_jax.models.norms import Norm
from massive_jax.models.parameters import Module
from massive_jax.parallel import AXES, RULES, spec_of
from massive_jax.train import OptimizerConfig, Trainer, decayed, flops_per_token
from massive_jax.train.step import starting_scale
from tests.fixtures.tiny import TINY, TINY_VISION

MESH = AbstractMesh((1, 2, 2, 2), AXES)
EXPERTS = dataclasses.replace(TINY, mlp="experts", experts=ExpertsConfig(6, 2))
CLAMPED = dataclasses.replace(TINY, mlp="experts", experts=ExpertsConfig(6, 2, clamped=True), attention_bias=None)


def with_bias(kind, **options):
    return dataclasses.replace(TINY, attention_bias=AttentionBias(kind, **options))


CONFIGS = {
    "plain": TINY,
    "biases": dataclasses.replace(
        TINY,
        position="learned",
        norm=NormConfig("layer"),
        mlp="plain",
        head_bias=True,
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), True),
    ),
    "norms_of_all_heads": dataclasses.replace(TINY, qk_norm="full", norm_placement="output"),
    "norms_of_heads": dataclasses.replace(TINY, qk_norm="head", norm_placement="pre_and_output", tie_embeddings=True),
    "narrow_embedding": dataclasses.replace(TINY, embedding_size=24, position="alibi", alibi=AlibiConfig()),
    "dynamic_tanh": dataclasses.replace(
        TINY, norm=NormConfig("dynamic_tanh"), qk_norm="full", norm_placement="pre_and_output", value_scale="learned"
    ),
    "single_scale": dataclasses.replace(TINY, norm=NormConfig(single_scale=True), qk_norm="head", value_scale="fixed"),
    "experts": EXPERTS,
    "clamped_experts": CLAMPED,
    **{kind: with_bias(kind) for kind in ATTENTION_BIASES},
    **{f"{kind}_offset": with_bias(kind, slots=3, offset=True) for kind in SLOT_KINDS},
    **{f"{kind}_shared": with_bias(kind, shared=True) for kind in ("kv", "k", "v", "sink")},
    "vision": TINY_VISION,
    "vision_experts": dataclasses.replace(TINY_VISION, mlp="experts", experts=ExpertsConfig(6, 2)),
    "attention_pool": dataclasses.replace(TINY_VISION, pooling="attention", embed_norm=True, pooled_norm=True),
    "two_features": dataclasses.replace(
        TINY_VISION, pooling="class_and_patch_mean", pooled_norm=True, attention_bias=AttentionBias("gate_element")
    ),
    "dense": dataclasses.replace(TINY_VISION, pooled_dense=True, attention_bias=AttentionBias("gate_head")),
}
VISION = [name for name, config in CONFIGS.items() if isinstance(config, VisionConfig)]


@functools.cache
def parameters_of(name):
    return declared(build(CONFIGS[name]))


def sizes_of(config):
    """A size for every letter that a parameter may have."""
    two = getattr(config, "pooling", "") == "class_and_patch_mean"
    own = {"M": config.max_position + config.position_offset} if hasattr(config, "max_position") else {}
    sizes = config.sizes(1, 1) | own | {"1": 1, "n": config.num_slots}
    return sizes | ({"W": 2 * sizes["W"]} if two else {})


@pytest.mark.parametrize("name", CONFIGS)
def test_axes_are_those_of_the_shape_and_users_see_plain_arrays(name):
    config = CONFIGS[name]
    module, sizes = build(config), sizes_of(config)
    parameters = parameters_of(name)
    for path, it in parameters.items():
        assert it.shape == tuple(sizes[letter] for letter in it.axes), path
        assert it.per_layer == path.startswith("layers/"), path
        assert it.per_expert == ("experts/" in path and "router" not in path), path
        # Layers are never split, experts are where they are stacked, and no device axis is used twice.
        spec = spec_of(it.axes, it.shape, MESH)
        assert len(spec) == len(it.shape), path
        used = [axis for axis in spec if axis is not None]
        assert len(used) == len(set(used)), path
        for letter, axis in zip(it.axes, spec, strict=True):
            assert axis in (None, RULES.get(letter)), path
            assert axis is None or letter not in "L1", path
        assert it.per_expert == ("expert" in spec), path
        # What is large is split, over both axes where it has both and they divide.
        if it.role in ("kernel", "residual", "head") and it.own_axes[-1] != "E":
            used += ["tensor"] if name in VISION and path == "head" else []  # of five classes
            assert set(used) >= {RULES[letter] for letter in it.own_axes if letter in RULES}, path
    shapes = jax.eval_shape(module.init, jax.random.key(0), config.example)
    assert set(shapes) == {"params"}
    found = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(shapes["params"])}
    assert {path: leaf.shape for path, leaf in found.items()} == {path: it.shape for path, it in parameters.items()}


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("gate_head", "layers/attn/gate/gate/kernel", P(None, "fsdp", "tensor")),
        ("gate_element", "layers/attn/gate/gate/kernel", P(None, "fsdp", "tensor", None)),
        ("biases", "layers/attn/query/bias", P(None, "tensor", None)),
        ("biases", "layers/attn/out/kernel", P(None, "tensor", None, "fsdp")),
        ("biases", "layers/attn/out/bias", P(None, None)),
        ("biases", "layers/attn_norm/scale", P(None, None)),
        ("biases", "layers/mlp/up/bias", P(None, "tensor")),
        ("biases", "embedding", P("tensor", "fsdp")),
        ("biases", "head_bias", P("tensor")),
        ("biases", "norm/scale", P(None)),
        ("norms_of_all_heads", "layers/attn/key_norm/scale", P(None, "tensor", None)),
        ("norms_of_heads", "layers/attn/key_norm/scale", P(None, None)),
        ("dynamic_tanh", "layers/attn/key_norm/alpha", P(None, None)),
        ("dynamic_tanh", "layers/attn/value_scale", P(None, "tensor")),
        ("single_scale", "layers/attn_norm/scale", P(None, None)),
        ("experts", "layers/experts/gate", P(None, "expert", "fsdp", "tensor")),
        ("experts", "layers/experts/down", P(None, "expert", "tensor", "fsdp")),
        ("clamped_experts", "layers/experts/up_bias", P(None, "expert", "tensor")),
        ("clamped_experts", "layers/experts/down_bias", P(None, "expert", None)),
        ("clamped_experts", "layers/experts/router/bias", P(None, None)),
        ("kv", "layers/attn/slots/key", P(None, "tensor", None, None)),
        ("kv_shared", "layers/attn/slots/key", P(None, None, None, None)),
        ("sink", "layers/attn/slots/logit", P(None, "tensor")),
        ("attention_pool", "pool/out/kernel", P("tensor", None, "fsdp")),
        ("vision", "patch/kernel", P(None, None, None, "fsdp")),
    ],
)
def test_split(name, path, expected):
    it = parameters_of(name)[path]
    assert spec_of(it.axes, it.shape, MESH) == expected


def test_what_does_not_divide_is_whole():
    assert spec_of("DHN", (9, 3, 8), MESH) == P(None, None, None)
    assert spec_of("WD", (9, 8), MESH) == P(None, "fsdp")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_adds_to_the_stream_starts_smaller(name):
    config = CONFIGS[name]
    smaller = 1 / (2 * config.num_layers) ** 0.5
    for path, it in parameters_of(name).items():
        scale = starting_scale(it, config.num_layers)
        if path in ("layers/attn/out/kernel", "layers/mlp/down/kernel", "layers/experts/down"):
            assert scale == smaller, path
        elif path.endswith("kernel") or path in ("layers/experts/gate", "layers/experts/up"):
            assert scale == 1, path  # an image's pooling adds to a vector of its own, once
        else:
            assert scale is None, path


def test_experts_start_as_other_kernels_do():
    params = Trainer(build(EXPERTS), OptimizerConfig()).init(0).params["layers"]["experts"]
    assert np.std(params["gate"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["down"]) == pytest.approx(0.02 / np.sqrt(2 * EXPERTS.num_layers), rel=0.05)
    assert np.std(params["router"]["kernel"]) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_matrices_decay_and_vectors_do_not(name):
    parameters = parameters_of(name)
    decays = {
        "/".join(k.key for k in path): it for path, it in jax.tree.leaves_with_path(decayed(build(CONFIGS[name])))
    }
    assert decays.keys() == parameters.keys()
    for path in parameters:
        last = path.rsplit("/", 1)[-1]
        if last in ("kernel", "gate", "up", "down", "embedding", "position_embedding", "key", "value", "sink_token"):
            assert decays[path], path
        if last.endswith(("bias", "scale", "alpha")) or last in ("logit", "class_token", "probe"):
            assert not decays[path], path


def test_a_token_multiplies_the_experts_that_it_goes_to():
    one, both = (
        flops_per_token(dataclasses.replace(EXPERTS, experts=ExpertsConfig(6, chosen)), 8) for chosen in (1, 2)
    )
    of_an_expert = 6 * TINY.num_layers * 3 * TINY.hidden_size * TINY.intermediate_size
    assert both - one == of_an_expert
    router = 6 * TINY.num_layers * TINY.hidden_size * 6
    assert one == flops_per_token(TINY, 8) + router
    many = dataclasses.replace(EXPERTS, experts=ExpertsConfig(60, 2))
    assert flops_per_token(many, 8) - both == 6 * TINY.num_layers * TINY.hidden_size * 54


MAPS = ("D HN", "D KN", "HN D", "D F", "F D", "D E", "D H", "W D", "D W", "IJC D")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_linear_map_reads_its_first_axes_and_writes_the_others(name):
    found = {path: it for path, it in parameters_of(name).items() if it.matrix is not None}
    assert found.keys() == {path for path, it in parameters_of(name).items() if it.role in ("kernel", "residual")}
    for path, it in found.items():
        words = ["".join(it.axes[axis] for axis in axes) for axes in it.matrix]
        assert " ".join(words) in MAPS, path
        assert "".join(words) == it.own_axes, path


def test_axes_of_one_layer_and_expert():
    def own(axes):
        return Parameter(axes, "kernel", (1,) * len(axes)).own_axes

    assert [own(axes) for axes in ("LEDF", "LDE", "LE", "EF", "LD", "VW", "L")] == [
        "DF",
        "DE",
        "E",
        "F",
        "D",
        "VW",
        "L",
    ]


def test_an_axis_without_a_letter_is_refused():
    class Odd(Module):
        def __call__(self, x):
            return self.declare("odd", "D", "kernel", jax.nn.initializers.zeros, (2, 3))

    with pytest.raises(ValueError, match="give a letter an axis"):
        Odd().init(jax.random.key(0), 0)
    found = Norm(NormConfig(), "HN").init(jax.random.key(0), np.zeros((1, 2, 3), np.float32))["params"]
    assert found["scale"].shape == (2, 3)
