"""Functions as the operation of an edit: an SAE, a direction taken out; padding, generation; and what is refused."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.forward import _forward, left_pad
from massive_jax.probe import Edit, PerToken
from tests.fixtures.tiny import programs

F = 48


@pytest.fixture(scope="module")
def sae():
    """A sparse autoencoder of F features of the stream [32]."""
    rng = np.random.default_rng(0)
    shapes = {"encoder": (32, F), "bias": (F,), "decoder": (F, 32), "mean": (32,)}
    return {name: 0.3 * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def splice(x, sae):
    """The reconstruction, with some features set and the others as they are."""
    features = jax.nn.relu((x - sae["mean"]) @ sae["encoder"] + sae["bias"])
    features = jnp.where(sae["clamped"], sae["to"], features)
    return features @ sae["decoder"] + sae["mean"]


def clamped(sae, feature=None, to=0.0):
    return {**sae, "clamped": np.arange(F) == (F if feature is None else feature), "to": np.float32(to)}


def in_numpy(x, sae):
    features = np.maximum((x - sae["mean"]) @ sae["encoder"] + sae["bias"], 0)
    return np.where(sae["clamped"], sae["to"], features) @ sae["decoder"] + sae["mean"]


def test_an_sae_is_spliced_in(tiny_model, tiny_tokens, sae):
    """Its reconstruction of a batch, and that with a feature clamped, are patched in as values: the same output."""
    kept = mj.Capture("block_out", layers=2)
    stream = np.asarray(tiny_model(tiny_tokens, capture=kept).intermediates["block_out"][0])
    for value in (clamped(sae), clamped(sae, 7, 2.5)):
        spliced = tiny_model(tiny_tokens, edits=Edit("block_out", layer=2, op=splice, value=value), capture=kept)
        np.testing.assert_allclose(spliced.intermediates["block_out"][0], in_numpy(stream, value), rtol=1e-4, atol=1e-4)
        patched = tiny_model(tiny_tokens, edits=Edit("block_out", layer=2, value=in_numpy(stream, value)), capture=kept)
        np.testing.assert_allclose(spliced.logits, patched.logits, rtol=1e-3, atol=1e-3)


def test_it_is_traced_once(tiny_model, tiny_tokens, sae):
    """Other weights, features, layers and positions are other numbers: no trace, and no program."""
    traces = []

    def counted(x, value):
        traces.append(x.shape)
        return splice(x, value)

    seen, counts = set(), []
    for i, (layer, feature) in enumerate(((1, 3), (3, 3), (4, 20))):
        value = clamped(sae, feature, i)
        edit = Edit("block_out", layer=layer, position=slice(i, 5), op=counted, value=value)
        seen.add(np.asarray(tiny_model(tiny_tokens, edits=edit).logits).tobytes())
        counts.append((len(traces), programs(_forward)))
    assert counts[0] == counts[1] == counts[2]
    assert len(seen) == 3
    assert set(traces) == {(2, 9, 32)}

    @jax.jit
    @chex.assert_max_traces(n=1)
    def logits(edits):
        return tiny_model(tiny_tokens, edits=edits).logits

    for layer in (1, 2):
        logits(tiny_model.compile_edits(Edit("block_out", layer=layer, op=splice, value=clamped(sae)), tiny_tokens))


def without(x, direction):
    return x - (x @ direction)[..., None] * direction


def test_a_direction_is_removed_where_it_is_asked_for(tiny_model, tiny_tokens):
    direction = np.eye(32, dtype=np.float32)[3]
    kept = mj.Capture("mid")
    plain = np.asarray(tiny_model(tiny_tokens, capture=kept).intermediates["mid"])
    edit = Edit("mid", layer=[2, 3], position=[0, 4, 5], op=without, value=direction)
    found = np.asarray(tiny_model(tiny_tokens, edits=edit, capture=kept).intermediates["mid"])
    assert np.abs(found[1:3, :, [0, 4, 5], 3]).max() < 1e-5
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1][:, [1, 2, 3]], plain[1][:, [1, 2, 3]], rtol=1e-5, atol=1e-6)
    assert (np.abs(found[3, ..., 3]) > 0).all()


def test_order_beside_other_edits_and_what_it_sees(tiny_model, tiny_tokens):
    """Between a set and a scale; of one head at one position [B, N]; a tensor of other sequences as its data."""
    seen = []

    def mirrored(x, other):
        seen.append(x.shape)
        return other - x

    value = np.full((2, 8), 5.0, np.float32)
    where = {"layer": 2, "head": 1, "position": -1}
    edits = [
        Edit("head_out", **where, value=2.0),
        Edit("head_out", **where, op=mirrored, value=value),
        Edit("head_out", **where, op="scale", value=10.0),
    ]
    out = tiny_model(tiny_tokens, edits=edits, capture=mj.Capture("head_out", layers=2)).intermediates["head_out"][0]
    np.testing.assert_allclose(out[:, -1, 1], 30.0)
    assert set(seen) == {(2, 8)}


def test_a_token_in_a_padded_batch_and_while_generating(tiny_model, sae):
    rows = [[1, 2, 3], [4, 5, 6, 7, 8]]
    tokens, mask = left_pad(rows)
    edits = [
        Edit("block_out", layer=2, op=PerToken(splice), value=clamped(sae, 5, 1.0)),
        Edit("head_out", layer=3, head={1, 2}, op=PerToken(lambda x, value: x[::-1] * value), value=2.0),
    ]
    out = tiny_model(tokens, mask=mask, edits=edits)
    alone = tiny_model(np.array(rows[:1]), edits=edits)
    np.testing.assert_allclose(out.logits[0, -3:], alone.logits[0], rtol=1e-4, atol=1e-4)
    assert np.abs(alone.logits - tiny_model(np.array(rows[:1])).logits).max() > 0.1
    made = tiny_model.generate(tokens, mask=mask, max_new_tokens=3, edits=edits, keep_logits=True)
    full = np.concatenate([tokens[1:], made.tokens[1:, -3:-1]], axis=1)
    expected = tiny_model(full, edits=edits).logits[0, -3:]
    np.testing.assert_allclose(made.logits[:, 1], expected, rtol=1e-4, atol=1e-4)


def test_a_function_of_whole_tensors_is_refused_where_there_are_others(tiny_model):
    tokens, mask = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])
    edit = Edit("block_out", layer=2, op=without, value=np.ones(32, np.float32))
    with pytest.raises(ValueError, match="a function of whole tensors in a batch with padding, .* give PerToken"):
        tiny_model(tokens, mask=mask, edits=edit)
    with pytest.raises(ValueError, match="a function of whole tensors while generating"):
        tiny_model.generate(tokens[1:], max_new_tokens=2, edits=edit)
    with pytest.raises(
        ValueError, match="compiled edits: block_out: a function of whole tensors in a batch with padding"
    ):
        tiny_model(tokens, mask=mask, edits=tiny_model.compile_edits(edit, tokens))
    of_keys = Edit("attn_probs", layer=2, op=PerToken(lambda x, value: x), value=0.0)
    with pytest.raises(ValueError, match="a function of all keys while generating"):
        tiny_model.generate(tokens[1:], max_new_tokens=2, edits=of_keys)
    # Where nothing of others is to be seen: at one position of each sequence, and without padding.
    edit = Edit("block_out", layer=2, op=without, value=np.ones(32, np.float32))
    assert tiny_model.compile_edits(dataclasses.replace(edit, position=1), tokens, mask)
    assert tiny_model.compile_edits(edit, tokens, np.ones_like(mask))


def test_gradients_by_its_arrays(tiny_model, tiny_tokens):
    def loss(direction):
        return tiny_model(tiny_tokens, edits=Edit("mid", layer=2, op=without, value=direction)).logits[:, -1, 3].sum()

    direction = jnp.linspace(-0.2, 0.3, 32)
    gradient = jax.grad(loss)(direction)
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    slope = (loss(direction + step) - loss(direction - step)) / (2 * jnp.linalg.norm(step))
    np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=2e-2)


@dataclasses.dataclass  # so it compares by its fields, and has no hash
class Unhashable:
    def __call__(self, x, value):
        return x


def leaves(x, value):
    return np.asarray(x) + value


def decides(x, value):
    return x if x[0, 0, 0] > 0 else -x


REFUSED = {
    "another shape": (lambda x, v: x[..., :4], {}, r"gives float32\[2, 9, 4\]; it has to give .* float32\[2, 9, 32\]"),
    "another dtype": (lambda x, v: x.astype(jnp.bfloat16), {}, r"gives bfloat16\[2, 9, 32\]"),
    "nothing": (lambda x, v: None, {}, "the function gives None"),
    "two": (lambda x, v: (x, x), {}, "the function gives "),
    "numpy": (leaves, {}, "fails with TracerArrayConversionError: .*; stay in jax"),
    "a condition": (decides, {}, "fails with TracerBoolConversionError: .*; stay in jax"),
    "shapes that do not go together": (
        without,
        {"value": np.ones(7)},
        r"given x float32\[2, 9, 32\] \(B, T, D\), fails",
    ),
    "one argument": (lambda x: x, {}, "fails with TypeError: .*takes 1 positional argument"),
    "no hash": (Unhashable(), {}, "cannot be hashed"),
    "a word for data": (without, {"value": {"direction": "up"}}, "value holds 'up'; give a function arrays"),
    "nothing for data": (without, {"value": None}, "fails with"),
    "a position beyond": (without, {"position": [1, 2, 9]}, "position 9 is out of range"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tiny_model, tiny_tokens, compilations, case):
    fn, fields, message = REFUSED[case]
    for op in (fn, PerToken(fn)) if case in ("nothing", "one argument", "no hash") else (fn,):
        with pytest.raises(ValueError, match=message) as caught:
            tiny_model(tiny_tokens, edits=Edit("mid", layer=1, op=op, **fields))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert compilations() == 0


def test_what_is_no_function_of_a_token():
    with pytest.raises(ValueError, match="PerToken: fn is 'mean'; give a function"):
        PerToken("mean")
