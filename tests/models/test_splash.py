"""The kernel "splash", as it is interpreted where there is no TPU: against the logits written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax.models import AlibiConfig, AttentionBias
from massive_jax.models import splash as splash_module
from massive_jax.models.attention import Surroundings, attend, causal_mask
from massive_jax.models.splash import splash_attention
from tests.fixtures.tiny import TINY, TINY_VISION, random_model

B, H, N = 2, 4, 8
NOTHING = Surroundings(None, None, None, None)


def on(kernel, config, **changes):
    return dataclasses.replace(config, attention_kernel=kernel, **changes)


def error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("T", "K", "options"),
    [
        (130, 1, {"attention_softcap": 2.0}),
        pytest.param(600, 2, {}, marks=pytest.mark.slow),  # five blocks of keys and of queries
        (600, 2, {"window": 70}),  # of which a query sees two
        (600, 4, None),
    ],
)
def test_lengths_windows_heads(T, K, options):
    """Forward and gradients; None is for attention that is not causal."""
    base = TINY_VISION if options is None else TINY
    cfg = dataclasses.replace(base, num_kv_heads=K, **(options or {}))
    rng = np.random.default_rng(T)
    arrays = [1.5 * rng.normal(size=(B, T, heads, N)).astype(np.float32) for heads in (H, K, K)]
    weight = rng.normal(size=(B, T, H, N)).astype(np.float32)

    # With a mask that is given, the logits are written out.
    masked = Surroundings(None, None, None, causal_mask(T, cfg.window)[None] | (not cfg.causal))

    def loss(arrays, around):
        out = attend(on("splash", cfg), *arrays, around)
        return jnp.sum(out * weight), out

    @jax.jit
    def everything(arrays):
        return [jax.value_and_grad(loss, has_aux=True)(arrays, around) for around in (NOTHING, masked)]

    ((_, ours), our_grads), ((_, theirs), their_grads) = everything(arrays)
    assert error(ours, theirs) < 1e-6
    for ours, theirs in zip(our_grads, their_grads, strict=True):
        assert error(ours, theirs) < 1e-6


def test_log_sum_exp():
    T = 130
    query, key = (np.random.default_rng(i).normal(size=(B, T, 2, N)).astype(np.float32) for i in range(2))
    _, lse = splash_attention(query, key, key, scale=0.7, is_causal=True, return_residual=True)
    logits = 0.7 * np.einsum("bthn,bshn->bhts", *(x.astype(np.float64) for x in (query, key)))
    expected = np.log(np.sum(np.exp(logits) * np.asarray(causal_mask(T)), axis=-1))
    assert lse.dtype == jnp.float32
    np.testing.assert_allclose(lse, np.moveaxis(expected, 1, 2), rtol=1e-6, atol=1e-6)


def test_bfloat16():
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(B, 40, heads, N)), jnp.bfloat16) for heads in (H, 2, 2)]
    got = jax.jit(lambda arrays: attend(on("splash", TINY, dtype="bfloat16"), *arrays, NOTHING))(arrays)
    exact = jax.jit(lambda arrays: attend(TINY, *arrays, NOTHING))([x.astype(jnp.float32) for x in arrays])
    assert got.dtype == jnp.bfloat16
    assert error(got, exact) < 0.01


def products(function, *args):
    """The precisions of the matrix products of a program, those inside its kernels included."""
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append(equation.params["precision"])
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    visit(getattr(inner, "jaxpr", inner))

    visit(jax.make_jaxpr(function)(*args).jaxpr)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_is_multiplied_in_float32(dtype):
    """Forward and backward, whatever is around it; bfloat16 is not, which the compiler for TPUs would refuse."""
    x = jnp.ones((1, 4, 2, N), dtype)

    def loss(x):
        with jax.default_matmul_precision("high"):
            return jnp.sum(splash_attention(x, x, x, scale=1.0, is_causal=True).astype(jnp.float32))

    highest, default = ((getattr(jax.lax.Precision, name),) * 2 for name in ("HIGHEST", "DEFAULT"))
    found = products(jax.grad(loss), x)
    assert len(found) >= 9  # forward, and what the gradients of queries and of keys and values take
    assert set(found) <= ({highest} if dtype == "float32" else {default, None})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_a_tpu(dtype, monkeypatch):
    """Not interpreted there: three kernels, forward, for queries, and for keys and values."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    x = jax.ShapeDtypeStruct((1, 130, 2, N), dtype)

    def loss(x):
        return jnp.sum(splash_attention(x, x, x, scale=1.0, is_causal=False).astype(jnp.float32))

    lowered = jax.jit(jax.grad(loss)).trace(x).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("@tpu_custom_call") == 3


@pytest.mark.slow
def test_language_model(tiny_tokens):
    """A whole model: logits and gradients of its parameters. Its sink token's own attention has no slots."""
    options = {"num_layers": 2, "window": 5, "attention_bias": AttentionBias("sink_token")}
    models = [random_model(on(kernel, TINY, **options)) for kernel in ("splash", "xla")]
    weight = np.random.default_rng(0).normal(size=(*tiny_tokens.shape, TINY.vocab_size)).astype(np.float32)

    def loss(params, model):
        logits, _ = model.module.apply({"params": params}, tiny_tokens)
        return jnp.mean(logits * weight), logits

    @jax.jit
    def everything(params):
        return [jax.value_and_grad(loss, has_aux=True)(params, model) for model in models]

    ((_, ours), our_grads), ((_, theirs), their_grads) = everything(models[0].params)
    assert error(ours, theirs) < 3e-6
    for path, grad in jax.tree_util.tree_leaves_with_path(our_grads):
        expected = their_grads
        for step in path:
            expected = expected[step.key]
        assert error(grad, expected) < 2e-5, path


def test_prefix(make_model, tiny_tokens):
    options = {"num_layers": 1, "window": 5, "attention_bias": AttentionBias("kv", slots=2, prefix=True)}
    ours, theirs = (make_model(attention_kernel=kernel, **options) for kernel in ("splash", "xla"))
    assert error(ours(tiny_tokens).logits, theirs(tiny_tokens).logits) < 3e-6


def test_vision_model(make_vision, tiny_images):
    """Attention to all, whose padding must not be seen."""
    ours, theirs = (make_vision(attention_kernel=kernel, num_layers=1) for kernel in ("splash", "xla"))
    assert error(ours(tiny_images).logits, theirs(tiny_images).logits) < 3e-6


def test_generation_writes_the_logits_out(make_model, tiny_tokens, monkeypatch):
    """With a cache, the mask is known when the model runs only."""
    model = make_model(attention_kernel="splash", num_layers=1)
    monkeypatch.setattr(splash_module, "_run", None)
    assert model.generate(tiny_tokens, max_new_tokens=2).tokens.shape == (2, 11)
    with pytest.raises(TypeError):
        model(tiny_tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "'splash' does not take dtype float16"),
        ({"window": 4, "window_layers": (True, False) * 2}, "does not take window_layers"),
        ({"attention_bias": AttentionBias("sigmoid")}, "does not take attention bias 'sigmoid'"),
        ({"attention_bias": AttentionBias("kv"), "attention_softcap": 2.0}, "attention_softcap with slots"),
        ({"position": "alibi", "alibi": AlibiConfig()}, "position 'alibi'; 'xla' does"),
    ],
)
def test_a_config_beyond_the_kernel_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        on("splash", TINY, **changes)


def test_other_shapes_are_refused():
    x = jnp.zeros((1, 4, 2, N))
    with pytest.raises(ValueError, match="3 queries and 4 keys"):
        splash_attention(x[:, :3], x, x, scale=1.0, is_causal=True)
    with pytest.raises(ValueError, match="window with it only"):
        splash_attention(x, x, x, scale=1.0, is_causal=False, local_window_size=(1, 1))
