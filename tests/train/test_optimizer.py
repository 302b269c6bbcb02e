"""The recipe: what decays, by how much, under which learning rate."""

import dataclasses
import math

import chex
import flax.traverse_util
import jax
import numpy as np
import optax
import pytest

from massive_jax.models import AttentionBias, ExpertsConfig, LanguageModel, NormConfig, declared
from massive_jax.parallel import make_mesh, spec_of
from massive_jax.train import OptimizerConfig, Trainer, decayed, make_optimizer, matrices
from massive_jax.train.checkpoints import Checkpoints
from massive_jax.train.config import check_same
from tests.fixtures.train_shapes import BIASED, GPT, RECIPE, gpt


def test_decay_mask_is_nanogpts():
    """Matrices and embeddings decay; norms, stacked over layers [L, D], and biases, [L, H, N] among them, do not."""
    tree = decayed(LanguageModel(BIASED))
    mask = {"/".join(k.key for k in path): bool(m) for path, m in jax.tree.leaves_with_path(tree)}
    assert {name for name, decays in mask.items() if decays} == {
        "embedding",
        "position_embedding",
        *(f"layers/attn/{name}/kernel" for name in ("query", "key", "value", "out")),
        *(f"layers/mlp/{name}/kernel" for name in ("up", "down")),
    }
    assert len(mask) == 8 + 6 + 3 * 2


def test_extra_keys_and_values_decay_and_a_logit_a_head_does_not():
    found = decayed(LanguageModel(dataclasses.replace(GPT, attention_bias=AttentionBias("kv", offset=True))))
    assert found["layers"]["attn"]["slots"] == {"key": True, "value": True, "logit": False}


def test_schedule():
    recipe = OptimizerConfig()
    at = {step: float(recipe.schedule(step)) for step in (0, 1999, 2000, 301_000, 600_000, 700_000)}
    assert at[0] == pytest.approx(6e-4 / 2001)
    assert at[1999] == pytest.approx(6e-4 * 2000 / 2001)
    assert at[2000] == pytest.approx(6e-4)
    assert at[301_000] == pytest.approx((6e-4 + 6e-5) / 2)
    assert at[600_000] == at[700_000] == pytest.approx(6e-5)


def test_a_schedule_that_stays():
    recipe = OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-3, warmup_steps=1, decay_steps=9)
    assert [float(recipe.schedule(step)) for step in (0, 1, 5, 99)] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])


def test_one_step_by_hand():
    """Adam's first step is the sign of the gradient; decay comes on top, for what decays, times the learning rate."""
    params = {"embedding": np.full((2, 2), 2.0, np.float32), "norm": {"scale": np.ones(2, np.float32)}}
    grads = jax.tree.map(lambda p: np.full_like(p, 5.0), params)
    optimizer = make_optimizer(RECIPE, {"embedding": True, "norm": {"scale": False}})
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    rate = 1e-2 / 4
    np.testing.assert_allclose(updates["embedding"], -rate * (1 + 0.1 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(updates["norm"]["scale"], -rate, rtol=1e-5)


def test_adamw_is_optaxs_and_its_state_has_the_same_names():
    """In checkpoints of trainings from before there were other kinds, too."""
    params = {"a": np.full((2, 2), 2.0, np.float32), "b": np.ones(2, np.float32)}
    grads, mask = jax.tree.map(lambda p: 3 * p, params), {"a": True, "b": False}
    ours = make_optimizer(RECIPE, mask)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(RECIPE.schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask),
    )
    found, expected = (optimizer.update(grads, optimizer.init(params), params) for optimizer in (ours, theirs))
    chex.assert_trees_all_equal(found, expected)


def test_gradients_are_clipped_together():
    """Of a small gradient after a large clipped one, Adam sees both at their clipped size."""
    params = {"embedding": np.zeros((1, 1), np.float32)}
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, decay_steps=10), {"embedding": True})
    state = optimizer.init(params)
    _, state = optimizer.update({"embedding": np.full((1, 1), 100.0, np.float32)}, state, params)
    adam = optax.tree.get(state, "mu")
    assert float(adam["embedding"][0, 0]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0, "final_learning_rate": 0.0}, "give a positive one"),
        ({"final_learning_rate": 1.0}, "no larger"),
        ({"warmup_steps": 600_000}, "the warm-up must end first"),
        ({"clip": 0.0}, "positive norm"),
        ({"momentum": 1.0}, "give decays from 0 to below 1"),
        ({"kind": "adam"}, "optimizer is 'adam'; give one of adamw, muon, sgd"),
        ({"kind": ["muon"]}, "optimizer is"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)
    assert math.isfinite(OptimizerConfig().clip)


def newton_schulz(matrix):
    """Five steps of the quintic iteration whose coefficients Muon's author gives."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_by_hand():
    """Two steps: every layer and expert is a matrix, a head's axes one axis of it; what is no matrix has AdamW."""
    module = LanguageModel(gpt(mlp="experts", experts=ExpertsConfig(3, 2)))
    recipe = OptimizerConfig(0.5, 0.5, 0, 10, weight_decay=0.2, clip=1e9, kind="muon", momentum=0.8)
    # Inputs and outputs of one map: H·N = 32 = D.
    sizes = {"layers/attn/query/kernel": (32, 32), "layers/attn/out/kernel": (32, 32), "layers/experts/up": (32, 128)}
    paths = (*sizes, "layers/experts/down", "embedding", "layers/attn_norm/scale")
    sizes["layers/experts/down"] = (128, 32)
    rng, shapes = np.random.default_rng(0), {path: declared(module)[path].shape for path in paths}
    params, first, second = (
        {path: np.float32(rng.normal(size=shape)) for path, shape in shapes.items()} for _ in range(3)
    )
    decays, maps = (flax.traverse_util.flatten_dict(of(module), sep="/") for of in (decayed, matrices))
    optimizer = make_optimizer(recipe, *({path: tree[path] for path in paths} for tree in (decays, maps)))
    update, state, found = jax.jit(optimizer.update), optimizer.init(params), []
    for grads in (first, second):
        updates, state = update(grads, state, params)
        found.append(updates)
    for path, shape in shapes.items():
        a, b = np.float64(first[path]), np.float64(second[path])
        decay = 0.2 * params[path] if path != "layers/attn_norm/scale" else 0.0
        if path not in sizes:
            np.testing.assert_allclose(found[0][path], -0.5 * (a / (np.abs(a) + 1e-8) + decay), rtol=1e-4, err_msg=path)
            continue
        # Nesterov's momentum, a step ahead and without the bias of its start.
        mu = [0.2 * a, 0.8 * 0.2 * a + 0.2 * b]
        ahead = [0.8 * mu[i] / (1 - 0.8 ** (i + 2)) + 0.2 * g / (1 - 0.8 ** (i + 1)) for i, g in enumerate((a, b))]
        for updates, momentum in zip(found, ahead, strict=True):
            exact = np.stack([newton_schulz(matrix) for matrix in momentum.reshape(-1, *sizes[path])])
            exact = 0.2 * math.sqrt(max(sizes[path])) * exact.reshape(shape)
            np.testing.assert_allclose(updates[path], -0.5 * (exact + decay), rtol=2e-3, atol=2e-3, err_msg=path)


def test_muon_is_told_what_is_a_matrix():
    with pytest.raises(ValueError, match=r"^Muon has to know what is a matrix: give massive_jax\.train\.matrices"):
        make_optimizer(OptimizerConfig(kind="muon"), {"embedding": True})


def test_sgd_by_hand():
    params, grads = {"embedding": np.full((2, 2), 2.0, np.float32)}, {"embedding": np.full((2, 2), 0.1, np.float32)}
    recipe = dataclasses.replace(RECIPE, warmup_steps=0, kind="sgd", clip=1e9)
    optimizer = make_optimizer(recipe, {"embedding": True})
    state = optimizer.init(params)
    for rate, momentum in ((1e-2, 0.1), (float(recipe.schedule(1)), 0.9 * 0.1 + 0.1)):
        updates, state = optimizer.update(grads, state, params)
        np.testing.assert_allclose(updates["embedding"], -rate * (momentum + 0.1 * 2.0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_moments_are_kept_where_their_parameters_are(kind):
    """And what belongs to no parameter, Muon's coefficients among it, is whole."""
    trainer = Trainer(LanguageModel(GPT), dataclasses.replace(RECIPE, kind=kind), mesh=make_mesh())
    parameters, seen = declared(trainer.module), set()
    for path, leaf in jax.tree.leaves_with_path(trainer.abstract()):
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        ends = {"/".join(names[start:]) for start in range(len(names))} & set(parameters)
        axes = parameters[ends.pop()].axes if ends else "1" * leaf.ndim
        seen.add(axes)
        assert leaf.sharding.spec == spec_of(axes, leaf.shape, trainer.mesh), path
    assert {"LDHN", "LFD", "VW"} <= seen


VARIANTS = {
    "dynamic tanh, V-scale, clipped, Muon": (
        {
            "norm": NormConfig("dynamic_tanh"),
            "norm_placement": "pre_and_output",
            "value_scale": "learned",
            "clip_residual": 3.0,
        },
        {"kind": "muon"},
    ),
    "norms after, of one scale, SGD": (
        {"norm_placement": "after_residual", "norm": NormConfig(single_scale=True), "value_scale": "fixed"},
        {"kind": "sgd", "weight_decay": 0.0},
    ),
}


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
    "name",
    # The slow one's rule is done by hand above.
    [
        pytest.param(name, marks=[pytest.mark.slow] * recipe["kind"].startswith("muon"))
        for name, (_, recipe) in VARIANTS.items()
    ],
)
def test_variants_train_and_go_on_to_the_last_bit(name, tmp_path):
    """Every parameter moves, the loss falls, and a state from a checkpoint is the state that was."""
    changes, recipe = VARIANTS[name]
    trainer = Trainer(LanguageModel(gpt(**changes)), dataclasses.replace(RECIPE, **recipe))
    tokens = np.random.default_rng(0).integers(0, 256, (4, 17)).astype(np.int32)
    state = trainer.init(0)
    start = jax.device_get(state.params)
    state, first = trainer.step(state, tokens)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {}, {})
        checkpoints.wait()
        stored = checkpoints.load(1, trainer.abstract())
        assert jax.tree.structure(stored) == jax.tree.structure(state)
        ended, metrics = trainer.step(state, tokens)
        other, same = trainer.step(stored, tokens)
    assert float(metrics["loss"]) < float(first["loss"]) < 1.05 * math.log(256)
    jax.tree.map(np.testing.assert_array_equal, (other, same), (ended, metrics))
    still = jax.tree.map(np.array_equal, start, jax.device_get(ended.params))
    assert not any(jax.tree.leaves(still)), still


def test_a_training_from_before_an_option_goes_on(make_config, tmp_path):
    """What is not stored was as its default is; another value of it is another training."""
    config = make_config()
    stored = config.described()
    for fields, names in (
        (stored["optimizer"], ("kind", "momentum")),
        (stored["model"], ("value_scale", "clip_residual")),
        (stored["model"]["norm"], ("single_scale", "alpha")),
    ):
        for name in names:
            del fields[name]
    check_same(stored, config, tmp_path)
    other = make_config(
        optimizer=dataclasses.replace(RECIPE, kind="muon"),
        model=gpt(norm=NormConfig("layer", 1e-5, bias=False, single_scale=True)),
    )
    expected = "model.norm.single_scale was False and is True; optimizer.kind was 'adamw' and is 'muon'"
    with pytest.raises(ValueError, match="optimizer.kind was 'adamw' and is 'muon'") as caught:
        check_same(stored, other, tmp_path)
    assert sorted(expected.split("; ")) == sorted(str(caught.value).split(": ")[1].split(". Give")[0].split("; "))
