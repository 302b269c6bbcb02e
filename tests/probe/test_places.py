"""Edits of several layers, positions, heads and dims, and values of a tensor's size; and what is refused."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import massive_jax as mj
from massive_jax.forward import _forward, left_pad
from massive_jax.probe import Edit, compile_edits
from massive_jax.probe.coordinates import Coordinates
from tests.fixtures.tiny import programs
from tests.probe.test_edit import SIZES, B, H, L, N, T, _apply, apply, tensor

BLOCK = {"site": "block_out", "layer": 1}


def several(size):
    """Several places of an axis in every form, negative ones too, and which they are."""
    numbers = st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True)
    ends = st.one_of(st.none(), st.integers(-size, size))
    cut = st.builds(slice, ends, ends, st.sampled_from([None, 1, 2])).filter(lambda s: len(range(size)[s]))
    return st.one_of(
        numbers.map(lambda n: (set(n), n)),
        numbers.filter(lambda n: len(n) not in (B, size)).map(lambda n: (n, n)),
        cut.map(lambda s: (s, list(range(size)[s]))),
    )


def of_layers():
    numbers = st.lists(st.integers(1, L), min_size=1, unique=True)
    first = st.integers(1, L)
    return st.one_of(numbers.map(lambda n: (n, n)), first.map(lambda i: (slice(i, None), list(range(i, L + 1)))))


@given(
    several(T),
    several(N),
    several(H),
    of_layers(),
    st.sampled_from(["set", "scale", "add"]),
    st.sampled_from([(), (N,), (T, H, N), (B, 1, H, N)]),
    st.integers(1, L),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=40)
def test_several_places_and_values_of_every_shape(positions, dims, heads, layers, op, shape, layer, seed):
    value = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    edit = Edit("query", layers[0], positions[0], dims[0], op, value, heads[0])
    x = tensor(seed=seed)
    new = {"set": 0 * x + value, "scale": value * x, "add": x + value}[op]
    here = np.zeros((T, H, N), bool)
    here[np.ix_(positions[1], heads[1], dims[1])] = layer in layers[1]
    np.testing.assert_allclose(apply(x, [edit], layer), np.where(here, new, x), rtol=1e-6)


def test_another_number_of_places_is_no_other_program():
    before = programs(_apply)
    rng = np.random.default_rng(0)
    for layers, positions in (([1], {2}), ([2, 4], slice(1, 5)), (slice(None), rng.random((B, T)) > 0.5)):
        for _ in range(2):
            value = rng.normal(size=(B, T, 8))
            apply(tensor("mlp_out"), [Edit("mlp_out", layers, positions, value=value)], 2, "mlp_out")
    assert programs(_apply) == (before[0] + 1,)


def test_a_value_is_taken_where_the_edit_is():
    """What a capture gave, whole, at one place of every kind; and with one entry for each place that is named."""
    x, clean = tensor(), tensor(seed=1)
    for fields, where in (
        ({"position": -2}, np.s_[:, 4]),
        ({"position": 1, "dim": 3}, np.s_[:, 1, :, 3]),
        ({"head": 2}, np.s_[:, :, 2]),
        ({"position": [5, 0, 3]}, np.s_[:, [5, 0, 3]]),
    ):
        expected = x.copy()
        expected[where] = clean[where]
        for value in (clean, clean[where]):
            np.testing.assert_array_equal(apply(x, [Edit("query", layer=2, value=value, **fields)]), expected)
    each = Edit("query", layer=2, position=np.array([4, -1]), value=clean)
    expected = x.copy()
    expected[0, 4] = clean[0, 4]
    np.testing.assert_array_equal(apply(x, [each]), expected)
    keys = Edit("attn_probs", layer=2, key=[0, -1], head=1, value=tensor("attn_probs", 1))
    expected = tensor("attn_probs")
    expected[:, 1][..., [0, -1]] = tensor("attn_probs", 1)[:, 1][..., [0, -1]]
    np.testing.assert_array_equal(apply(tensor("attn_probs"), [keys], 2, "attn_probs"), expected)


def test_several_places_have_one_scale_and_their_own_noise():
    x = tensor("mid")
    edit = Edit("mid", layer=2, position={1, 4}, op="quantize", value=3)
    step = np.abs(x[:, [1, 4]]).max(axis=(1, 2), keepdims=True) / 3
    expected = x.copy()
    expected[:, [1, 4]] = np.round(x[:, [1, 4]] / step) * step
    np.testing.assert_allclose(apply(x, [edit], 2, "mid"), expected, rtol=1e-5)
    for op in ("noise", "shuffle"):
        all_of_it = apply(x, [Edit("mid", layer=2, op=op, value=1.0, seed=3)], 2, "mid")
        some = apply(x, [Edit("mid", layer=2, op=op, value=1.0, seed=3, position={1, 4})], 2, "mid")
        here = np.isin(np.arange(T), [1, 4])[:, None]
        np.testing.assert_array_equal(some, np.where(here, all_of_it, x))


def test_edits_of_one_place_and_of_several_keep_their_order():
    edits = [
        Edit("mid", layer=2, position={1, 2}, value=1.0),
        Edit("mid", layer=2, position=1, op="add", value=2.0),
        Edit("mid", layer=[2, 3], position=slice(0, 2), op="scale", value=3.0),
    ]
    x = apply(tensor("mid"), edits, 2, "mid")
    assert (x[:, 1] == 9).all()
    assert (x[:, 2] == 1).all()


def test_patching_a_whole_tensor_is_running_the_other(tiny_model, tiny_tokens):
    """The stream of another run, put in: what comes after is that run's; half of the batch, half of the stream."""
    other = (tiny_tokens + 7) % 250
    clean = tiny_model(other, capture=mj.Capture("block_out"))
    stream = clean.intermediates["block_out"][1]
    patched = tiny_model(tiny_tokens, edits=Edit("block_out", layer=2, value=stream))
    np.testing.assert_allclose(patched.logits, clean.logits, rtol=1e-4, atol=1e-4)
    before = programs(_forward)
    for layer in (1, 3):
        stream = clean.intermediates["block_out"][layer - 1]
        patched = tiny_model(tiny_tokens, edits=Edit("block_out", layer=layer, value=stream))
        np.testing.assert_allclose(patched.logits, clean.logits, rtol=1e-4, atol=1e-4)
    assert programs(_forward) == before
    first = np.arange(2)[:, None] == np.zeros(9)
    half = tiny_model(tiny_tokens, edits=Edit("block_out", layer=3, position=first, value=stream)).logits
    np.testing.assert_allclose(half[0], clean.logits[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(half[1], tiny_model(tiny_tokens).logits[1], rtol=1e-4, atol=1e-4)


def edits_of(rng, tokens, mask, value):
    """Every kind of place and value, for sequences of three tokens at least; values [B, T, D] by column."""
    layer = int(rng.integers(1, 5))
    some = set(rng.permutation(3)[:2].tolist())
    return [
        Edit("block_out", layer, value=value),
        Edit("mlp_out", [layer, 2], some, value=value, op="add"),
        Edit("attn_out", layer, slice(-3, None, 2), slice(3, 9), "add", value[..., 3:9]),
        Edit("mid", layer, tokens % 2 == 1, op="scale", value=1.5),
        Edit("mid", layer, lambda t: t % 3 == 0, op="noise", value=0.3),
        Edit("attn_logits", layer, key=[0, -1], head={1, 2}, op="add", value=1.0),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_sequence_in_a_padded_batch_gives_what_it_gives_alone(make_model, seed):
    model = make_model(attention_bias=mj.models.AttentionBias("kv", slots=2))
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 250, n) for n in (5, 3, 5)]
    tokens, mask = np.full((3, 7), 251), np.zeros((3, 7), bool)
    for b, row in enumerate(rows):
        own = np.sort(rng.permutation(7)[: len(row)])
        tokens[b, own], mask[b, own] = row, True
    value = rng.normal(size=(3, 7, 32)).astype(np.float32)
    out = model(tokens, mask=mask, edits=edits_of(rng_of(seed), tokens, mask, value))
    plain = model(tokens, mask=mask).logits
    for b in (0, 2):
        its, own = tokens[b : b + 1, mask[b]], mask[b]
        alone = model(its, edits=edits_of(rng_of(seed), its, None, value[b : b + 1, own]))
        np.testing.assert_allclose(out.logits[b, own], alone.logits[0], rtol=1e-4, atol=2e-4)
    assert not np.asarray(out.logits)[~mask].any()
    assert (np.abs(out.logits - plain).max(axis=-1)[mask] > 1e-2).all()


@pytest.mark.slow  # of functions, and of edits of one place, there are quick ones
def test_while_generating(tiny_model):
    """Prompts of two lengths, padded: the new tokens' logits are those of a pass over each, with the same edits."""
    rows = [[1, 2, 3], [4, 5, 6, 7, 8]]
    (tokens, mask), new = left_pad(rows), 3
    rng = np.random.default_rng(0)
    value, listed = (rng.normal(size=(2, n, 32)).astype(np.float32) for n in (5, 3))

    def edits(value, listed, odd):
        return [
            Edit("block_out", layer=2, value=value, op="add", position=odd),  # of the prompt
            Edit("mlp_out", layer=[1, 3], position=[0, 2, 4], value=listed),  # on into what is new
            Edit("mid", layer=4, position=slice(1, None), op="scale", value=1.5),
            Edit("attn_logits", layer=1, key=[1, 4], op="add", value=2.0),
        ]

    made = tiny_model.generate(
        tokens, mask=mask, max_new_tokens=new, edits=edits(value, listed, tokens % 2 == 1), keep_logits=True
    )
    for b, row in enumerate(rows):
        full, n = made.tokens[b : b + 1, 5 - len(row) : -1], len(row)
        own = np.zeros((1, full.shape[1], 32), np.float32)
        own[0, :n] = value[b, 5 - n :]
        its = edits(own, listed[b : b + 1], (full % 2 == 1) & (np.arange(full.shape[1]) < n))
        expected = tiny_model(full, edits=its).logits[0, n - 1 :]
        np.testing.assert_allclose(made.logits[:, b], expected, rtol=1e-4, atol=2e-4)
    plain = tiny_model.generate(tokens, mask=mask, max_new_tokens=new, keep_logits=True)
    assert (np.abs(made.logits - plain.logits).max(axis=-1) > 0.05).all()
    with pytest.raises(
        ValueError, match="a value of the tokens that are given, at a position of one that is generated"
    ):
        tiny_model.generate(
            tokens[1:], max_new_tokens=2, edits=Edit("mid", layer=1, position=[1, 5], value=value[1:, :5])
        )
    with pytest.raises(ValueError, match="at keys after the query, which are not there while generating"):
        tiny_model.generate(tokens[1:], max_new_tokens=2, edits=Edit("attn_probs", layer=1, key=[0, 5], value=1.0))


def rng_of(seed):
    return np.random.default_rng(100 + seed)


def test_values_and_masks_under_a_transform(tiny_model, tiny_tokens):
    """Gradients by a value, a batch of values, and a mask that is traced."""
    value = np.random.default_rng(0).normal(size=(2, 9, 32)).astype(np.float32)

    def loss(value):
        edit = Edit("block_out", layer=2, position=slice(2, 4), op="add", value=value)
        return tiny_model(tiny_tokens, edits=edit).logits[:, -1, 7].sum()

    gradient = jax.grad(loss)(jnp.asarray(value))
    assert (np.asarray(gradient)[:, 2:4] != 0).all()
    assert not np.asarray(gradient)[:, [0, 1, *range(4, 9)]].any()
    tokens, mask = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def last(mask, value):
        edits = [Edit("mid", layer=1, position=slice(1, 3), value=value), Edit("mlp_out", layer=2, position=mask)]
        return tiny_model(tokens, mask=mask, edits=edits).logits

    value = value[:, :5]
    edits = [Edit("mid", layer=1, position=slice(1, 3), value=value), Edit("mlp_out", layer=2, position=mask)]
    plain = tiny_model(tokens, mask=mask, edits=edits).logits
    np.testing.assert_allclose(last(mask, value), plain, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="whose lengths a jax transform hides"):
        jax.jit(lambda m: tiny_model(tokens, mask=m, edits=Edit("mid", layer=1, position=slice(-2, None))).logits)(mask)
    with pytest.raises(ValueError, match="position is hidden by a jax transform"):
        jax.jit(lambda p: tiny_model(tokens, edits=Edit("mid", layer=1, position=p)).logits)(np.array([0, 1]))


REFUSED = {
    "a list as long as the batch": (
        BLOCK | {"position": [0, 3]},
        r"2 for 2 sequences: write np.array\(\[0, 3\]\) for one a sequence .*or the set \{0, 3\}",
    ),
    "a tuple with none": (BLOCK | {"position": (0, -1)}, "or the set {0, -1}"),
    "a position beyond": (BLOCK | {"position": [0, 1, 6]}, "position 6 is out of range"),
    "no positions": (BLOCK | {"position": []}, "names none; there are positions 0 to 5"),
    "an empty slice": (BLOCK | {"position": slice(4, 2)}, "names none"),
    "a slice of words": (BLOCK | {"position": slice("a", "b")}, "is no slice of integers"),
    "a mask of other lengths": (
        BLOCK | {"position": np.ones((2, 5), bool)},
        r"position is bool\[2, 5\]; .* bool\[2, 6\]",
    ),
    "ragged positions": (BLOCK | {"position": [[0], [1, 2]]}, "position is object"),
    "a layer beyond": ({"site": "mid", "layer": [1, 6]}, "layer 6 is out of range"),
    "layer 0 of a slice": ({"site": "mid", "layer": slice(0, 2)}, "layer 0 is out of range"),
    "no layers": ({"site": "mid", "layer": slice(4, 2)}, "names no layer; there are 1 to 5"),
    "layers around the blocks": ({"site": "embed", "layer": [1, 2]}, "outside the blocks"),
    "a head beyond": ({"site": "query", "layer": 1, "head": [0, 3]}, "head 3 is out of range"),
    "dims of another model": (BLOCK | {"dim": np.ones(7, bool)}, r"dim is bool\[7\]; .* give numbers, or bool\[8\]"),
    "a key beyond": ({"site": "attn_probs", "layer": 1, "key": [0, 1, 6]}, "key 6 is out of range"),
    "keys by name": ({"site": "attn_probs", "layer": 1, "key": "last"}, "key 'last' is not an integer"),
    "a value of another batch": (
        BLOCK | {"value": np.ones((3, 6, 8))},
        r"value has shape \(3, 6, 8\); give one number, .* or what fits \[B=2, T=6, D=8\]",
    ),
    "a capture with its layers": (BLOCK | {"value": np.ones((1, 2, 6, 8))}, "first axis of a capture is its layers"),
    "a value with axes more": (BLOCK | {"value": np.ones((1, 1, 2, 6, 8))}, "fits .B=2, T=6, D=8"),
    "a value of more positions": (
        BLOCK | {"position": [0, 1, 2], "value": np.ones((2, 4, 8))},
        r"fits \[B=2, T=3 or 6, D=8\]",
    ),
    "an entry for a place named twice": (
        BLOCK | {"position": [0, 1, 1], "value": np.ones((3, 8))},
        "each position, of which one is named twice",
    ),
    "all, in another order": (
        BLOCK | {"position": [1, 0, 2, 3, 4, 5], "value": np.ones((2, 6, 8))},
        "name them in ascending order",
    ),
    "move at several dims": (BLOCK | {"dim": [0, 1, 2], "op": "move"}, "move takes one dim"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    fields, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        compile_edits(Edit(**fields), SIZES, tokens=np.zeros((B, T), np.int32))
    assert str(caught.value).startswith(f"edit 0 (site={fields['site']!r}")
    assert "\n" not in str(caught.value)


def test_one_position_in_a_list_is_that_of_the_one_sequence():
    one = SIZES | {"B": 1}
    assert compile_edits(Edit("mid", layer=1, position=[3]), one)["mid"][0].chosen["T"][0].nonzero()[1].tolist() == [3]
    with pytest.raises(ValueError, match=r"write np.array\(\[-1\]\)"):
        compile_edits(Edit("mid", layer=1, position=[-1]), one)


def test_compiled_for_other_inputs_is_refused(tiny_model, tiny_tokens):
    def compiled(**fields):
        return tiny_model.compile_edits(Edit("block_out", **{"layer": 1, "position": {0, 1}} | fields), tiny_tokens)

    whole = np.ones((2, 9, 32))
    for edits, message in (
        (compiled(), r"chosen T has shape \(4, 2, 9\), not \(4, 2, 8\)"),
        (compiled(layer=[1, 2], position=None, value=whole), r"value has shape \(1, 2, 9, 32\)"),
    ):
        assert tiny_model.compile_edits(edits, tiny_tokens) is edits
        with pytest.raises(ValueError, match=message):
            tiny_model(tiny_tokens[:, :8], edits=edits)
    (rows,) = compiled(layer=[1, 2])["block_out"]
    short = dataclasses.replace(rows, chosen={**rows.chosen, "L": np.ones((4, 5), bool)})
    with pytest.raises(ValueError, match=r"chosen L has shape \(4, 5\), not \(4, 4\)"):
        tiny_model(tiny_tokens, edits={"block_out": (short,)})


def test_spread():
    """By position to by column: padding anywhere, slots behind."""
    at = np.array([[-1, 0, 1, -1, 2, 3], [0, -1, -1, -1, 1, 2]], np.int32)
    coordinates = Coordinates({"S": jnp.asarray(at)}, slots=1)
    got = coordinates.spread("S", 6, jnp.array([[10, 11, 12, 13, 99], [20, 21, 22, 23, 98]]), 1)
    valid = at >= 0
    np.testing.assert_array_equal(np.asarray(got)[valid], [10, 11, 12, 99, 20, 21, 98])
