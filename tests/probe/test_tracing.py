"""Edits and captured layers are data: what is compiled, how often, with how much memory, and its derivatives."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax.forward import _forward, forward
from massive_jax.probe import OPS, Capture, Edit, stack_edits

ELEMENT_OPS = [op for op in OPS if op not in ("quantize", "move")]  # what means something for one element
KEPT = Capture("block_out", layers=(2,), top_k=3, median=True)


def random_edits(rng, count):
    return [
        Edit(
            "block_out",
            layer=int(rng.integers(1, 5)),
            position=int(rng.integers(0, 9)) if rng.random() < 0.5 else rng.integers(-1, 9, size=2),
            dim=int(rng.integers(0, 32)),
            op=str(rng.choice(ELEMENT_OPS)),
            value=float(rng.normal()),
            seed=int(rng.integers(1000)),
        )
        for _ in range(count)
    ]


def test_a_hundred_edits_are_one_program(tiny_model, tiny_tokens, compilations):
    """Another layer, position, dim, operation, value, seed, and up to four of them: no retrace."""
    rng = np.random.default_rng(0)
    seen = {np.asarray(tiny_model(tiny_tokens, edits=random_edits(rng, 1)).logits).tobytes()}
    first = compilations()
    assert first >= 1
    for i in range(100):
        seen.add(np.asarray(tiny_model(tiny_tokens, edits=random_edits(rng, 1 + i % 4)).logits).tobytes())
    assert compilations() == first
    assert len(seen) > 80  # they did act


def test_traced_once(tiny_model, tiny_tokens):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def logits(edits):
        return tiny_model(tiny_tokens, edits=edits).logits

    rng = np.random.default_rng(1)
    for _ in range(5):
        logits(tiny_model.compile_edits(random_edits(rng, 2), tiny_tokens))
    # The counter does count: another site is another program.
    with pytest.raises(AssertionError, match="traced > 1 times"):
        logits(tiny_model.compile_edits(Edit("mid", layer=1), tiny_tokens))


def test_other_layers_captured_are_the_same_program(tiny_model, tiny_tokens, compilations):
    medians = [float(tiny_model(tiny_tokens, capture=KEPT).intermediates["block_out"].median[0, 0])]
    first = compilations()
    for layer in (1, 3, 4):
        other = dataclasses.replace(KEPT, layers=layer)
        medians.append(float(tiny_model(tiny_tokens, capture=other).intermediates["block_out"].median[0, 0]))
    assert compilations() == first
    assert len(set(medians)) == 4


def test_a_sweep_is_a_vmap(tiny_model, tiny_tokens):
    rng = np.random.default_rng(2)
    sweep = [tiny_model.compile_edits(random_edits(rng, 3), tiny_tokens) for _ in range(6)]
    plan = tiny_model.compile_captures(KEPT)
    module, params = tiny_model.module, tiny_model.params
    together = jax.vmap(lambda edits: forward(module, params, edits, plan, tiny_tokens))(stack_edits(sweep))
    for i, edits in enumerate(sweep):
        alone = tiny_model(tiny_tokens, edits=edits, capture=KEPT)
        np.testing.assert_allclose(together.logits[i], alone.logits, rtol=1e-4, atol=1e-4)
        stats, expected = together.intermediates["block_out"], alone.intermediates["block_out"]
        np.testing.assert_array_equal(stats.top_dims[i], expected.top_dims)
        np.testing.assert_allclose(stats.median[i], expected.median, rtol=1e-4)


def test_under_a_callers_jit(tiny_model, tiny_tokens):
    edit = Edit("block_out", layer=1, position=np.array([0, -1]), dim=3, value=20.0)
    run = jax.jit(lambda tokens: tiny_model(tokens, edits=edit).logits)
    np.testing.assert_allclose(run(tiny_tokens), tiny_model(tiny_tokens, edits=edit).logits, rtol=1e-5, atol=1e-5)


# Memory


def bytes_of(model, tokens, capture):
    """Temporaries and outputs of the compiled program."""
    plan = model.compile_captures(capture)
    compiled = _forward.lower(model.module, model.params, {}, plan, tokens, None, logits=False).compile()
    found = compiled.memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes


def test_memory(make_model):
    model = make_model(num_layers=16)
    tokens = np.zeros((4, 96), np.int32)
    stream = 4 * 96 * 32 * 4  # bytes of one block's output
    plain = bytes_of(model, tokens, None)
    one = bytes_of(model, tokens, Capture("block_out", layers=(3,)))
    every = bytes_of(model, tokens, Capture("block_out"))
    statistics = bytes_of(model, tokens, Capture("block_out", top_k=3, median=True, kurtosis=True))
    assert every - plain >= 15 * stream  # the measure does see whole tensors
    assert one - plain <= 4 * stream
    assert statistics - plain <= 4 * stream


# Derivatives


def test_gradients_flow_through_edits_and_stop_at_what_they_overwrite(tiny_model, tiny_tokens):
    """d loss / d (a vector added to the stream): zero exactly where a later edit overwrites the stream."""
    edits = [
        Edit("block_out", layer=2, position=3, op="add", value=np.zeros(32)),
        Edit("block_out", layer=2, position=3, dim=5, value=1.0),
        Edit("block_out", layer=2, position=3, dim=6, op="scale", value=0.5),
    ]
    compiled = tiny_model.compile_edits(edits, tiny_tokens)

    def loss(added, params):
        rows = compiled["block_out"]
        value = jnp.asarray(rows[0].value).at[0].set(added)
        changed = {"block_out": (dataclasses.replace(rows[0], value=value), *rows[1:])}
        logits = forward(tiny_model.module, params, changed, tiny_model.compile_captures(None), tiny_tokens).logits
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    _, (by_vector, by_params) = run(np.zeros(32, np.float32), tiny_model.params)
    assert by_vector[5] == 0
    assert (np.delete(by_vector, 5) != 0).all()
    assert np.isfinite(by_vector).all()
    for path, leaf in jax.tree_util.tree_leaves_with_path(by_params):
        assert np.isfinite(leaf).all(), path
        assert (np.asarray(leaf) != 0).any(), path
    # Against a difference quotient, along the gradient.
    direction = np.asarray(by_vector / np.linalg.norm(by_vector))
    step = 3e-2
    up, down = (run(sign * step * direction, tiny_model.params)[0] for sign in (1, -1))
    np.testing.assert_allclose((up - down) / (2 * step), np.linalg.norm(by_vector), rtol=2e-2)
