"""The step: the loss and its gradient, accumulation, rematerialisation, and the same numbers on eight devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from massive_jax.models import Head, LanguageModel, head_logits, loss
from massive_jax.train import Trainer
from tests.fixtures.train_shapes import GPT, RECIPE, gpt

TOKENS = np.random.default_rng(0).integers(0, 256, (4, 17)).astype(np.int32)


def assert_close(a, b, **tolerance):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance, err_msg=str(path))


@pytest.mark.parametrize("changes", [{}, {"logit_softcap": 2.0, "logit_scale": 0.5}])
@pytest.mark.parametrize("chunk", [8, 1000])
def test_loss_and_gradient_are_those_of_whole_logits(changes, chunk, monkeypatch):
    monkeypatch.setattr(loss, "_FEWEST", 3)
    config = gpt(**changes)
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(2, 10, 32)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=256), jnp.float32) if changes else None
    head = Head(jnp.asarray(rng.normal(size=(256, 32)), jnp.float32), bias)
    targets = jnp.asarray(rng.integers(0, 256, (2, 10)))

    def whole(hidden, head):
        return optax.softmax_cross_entropy_with_integer_labels(head_logits(config, hidden, head), targets).mean()

    def ours(hidden, head):
        return 3 * loss.mean_nll(config, hidden, head, targets, chunk, True) / 3  # float32 is not rounded

    @jax.jit
    def everything(hidden, head):
        plain = loss.mean_nll(config, hidden, head, targets)
        return *(jax.value_and_grad(f, (0, 1))(hidden, head) for f in (whole, ours)), plain

    expected, found, plain = everything(hidden, head)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plain, expected[0], rtol=1e-6)


def run(trainer, steps=2, tokens=TOKENS):
    state, losses = trainer.init(0), []
    for _ in range(steps):
        state, metrics = trainer.step(state, tokens)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def plain():
    return run(Trainer(LanguageModel(GPT), RECIPE))


def test_starts_as_nanogpt():
    params = Trainer(LanguageModel(GPT), RECIPE).init(0).params
    assert np.std(params["layers"]["mlp"]["up"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["layers"]["mlp"]["down"]["kernel"]) == pytest.approx(0.01, rel=0.05)  # 0.02 / √4
    assert float(jnp.abs(params["layers"]["attn"]["query"]["kernel"][0, 0] - 0).max()) > 0
    assert not np.array_equal(*params["layers"]["attn"]["query"]["kernel"])


def test_first_loss_is_near_uniform_and_falls(plain):
    _, losses = plain
    assert losses[0] == pytest.approx(np.log(256), abs=0.1)
    assert losses[1] < losses[0]


def test_accumulated_step_equals_whole_step(plain):
    state, losses = run(Trainer(LanguageModel(GPT), RECIPE, accumulate=2))
    np.testing.assert_allclose(losses, plain[1], rtol=1e-5)
    assert_close(state.opt_state, plain[0].opt_state, atol=1e-5)


def test_rounded_logits_change_the_gradient_by_their_rounding():
    config = gpt(dtype="bfloat16")
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(2, 10, 32)), jnp.bfloat16)
    head = Head(jnp.asarray(rng.normal(size=(256, 32)), jnp.float32))
    targets = jnp.asarray(rng.integers(0, 256, (2, 10)))
    whole, rounded = (
        jax.grad(lambda x, rounded: loss.mean_nll(config, x, head, targets, None, rounded))(hidden, choice)
        for choice in (False, True)
    )
    assert np.any(whole != rounded)
    np.testing.assert_allclose(*(np.float32(x) for x in (rounded, whole)), atol=0.02 * float(jnp.abs(whole).max()))


def gradient_of_blocks(remat, **changes):
    """The jaxpr of a gradient, and the bytes that the loop over blocks keeps for its backward pass."""
    trainer = Trainer(LanguageModel(gpt(dtype="bfloat16", **changes), remat=remat), RECIPE)
    gradient = jax.make_jaxpr(jax.grad(lambda params: trainer.objective.loss(trainer.module, params, TOKENS)))
    jaxpr = gradient(trainer.abstract().params).jaxpr
    scan = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == 2)
    return jaxpr, sum(x.aval.size * x.aval.dtype.itemsize for x in scan.outvars[scan.params["num_carry"] :])


def test_cheap_keeps_products_only():
    """The input of a block, queries, keys, values, what attention adds, and one array of the MLP, in 16 bits."""
    B, T, D, F, L = 4, 16, 32, 128, 2
    assert gradient_of_blocks("cheap")[1] == 2 * L * B * T * (5 * D + F) < gradient_of_blocks("none")[1] / 5


def test_cheap_runs_a_kernel_once():
    """Forward and two backward kernels; "dots" runs the forward one twice."""
    count = {
        x: str(gradient_of_blocks(x, attention_kernel="splash")[0]).count("pallas_call[") for x in ("cheap", "dots")
    }
    assert count == {"cheap": 3, "dots": 4}


@pytest.mark.parametrize("remat", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("dots", "full")), "cheap"])
def test_rematerialised_step_equals_plain_step(plain, remat):
    state, losses = run(Trainer(LanguageModel(GPT, remat=remat), RECIPE))
    np.testing.assert_allclose(losses, plain[1], rtol=1e-5)
    assert_close(state.opt_state, plain[0].opt_state, atol=1e-5)


def test_half_precision_computes_on_float32_masters(plain):
    state, losses = run(Trainer(LanguageModel(gpt(dtype="bfloat16")), RECIPE))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(losses, plain[1], rtol=1e-2)
    assert losses != plain[1]


SHARDED = """
import dataclasses, functools, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tests.fixtures.train_shapes import GPT, RECIPE
from massive_jax.models import AttentionBias, LanguageModel
from massive_jax.models.splash import splash_attention
from massive_jax.parallel import make_mesh, mesh_set
from massive_jax.train import Trainer
tokens = np.random.default_rng(0).integers(0, 256, (8, 17)).astype(np.int32)
config, eight = dataclasses.replace(GPT, attention_bias=AttentionBias("kv")), make_mesh(4, 2)
for kind, runs in {
    "adamw": ((None, 1, "xla"), (eight, 2, "xla"), (eight, 1, "splash")),
    "muon": ((None, 1, "xla"), (eight, 1, "xla")),
}.items():
    found = []
    for mesh, accumulate, kernel in runs:
        module = LanguageModel(dataclasses.replace(config, attention_kernel=kernel))
        # So that no step of Adam's is decided by the rounding of a gradient that is next to nothing.
        recipe = dataclasses.replace(RECIPE, kind=kind, eps=1e-6)
        trainer = Trainer(module, recipe, accumulate, mesh)
        state = trainer.init(0)
        found.append([trainer.loss(state.params, tokens)])
        state, metrics = trainer.step(state, tokens)
        if mesh is not None:
            kernel = state.params["layers"]["mlp"]["up"]["kernel"]
            first = state.opt_state[1][0]
            moments = first.mu if kind == "adamw" else first.inner_states["muon"].inner_state[0].mu
            for x in (kernel, moments["layers"]["mlp"]["up"]["kernel"]):
                assert x.sharding.shard_shape(x.shape) == (2, 8, 64), x.sharding
        found[-1] = jax.device_get((*found[-1], metrics, state.params))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found[0], other)
# The compiler for TPUs would refuse to split the kernel itself: here it is split already.
jax.default_backend = lambda: "tpu"
split = NamedSharding(eight, PartitionSpec("fsdp", None, "tensor"))
x = jax.ShapeDtypeStruct((4, 8, 2, 16), np.float32, sharding=split)
attend = jax.jit(functools.partial(splash_attention, scale=1.0, is_causal=True))
with mesh_set(eight):
    assert "tpu_custom_call" in attend.trace(x, x, x).lower(lowering_platforms=("tpu",)).as_text()
print("same")
"""


@pytest.mark.slow
def test_on_eight_devices():
    """Data, fully sharded and tensor parallel steps give the state of one device, whatever the attention kernel."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "same", done.stderr[-2000:]
