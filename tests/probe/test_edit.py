"""What single edits and sequences of edits do to a tensor, against numpy; and what is refused."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import massive_jax as mj
from massive_jax.probe import OPS, SITES, Edit, compile_edits, stack_edits
from massive_jax.probe.rows import apply_edits

B, T, H, N, L = 2, 6, 3, 4, 5
SIZES = {"B": B, "T": T, "S": T, "D": 8, "H": H, "K": 1, "N": N, "F": 10, "V": 11, "E": 7, "L": L}
NAMES = {"T": "position", "S": "key", "H": "head", "K": "head"}


@functools.partial(jax.jit, static_argnames="site")
def _apply(x, rows, layer, site):
    for group in rows:
        x = apply_edits(x, group, SITES[site], layer)
    return x


def apply(x, edits, layer=2, site="query"):
    """The library on one tensor, at one layer."""
    return np.asarray(_apply(x, compile_edits(edits, SIZES).get(site, ()), layer, site))


def tensor(site="query", seed=0):
    return np.random.default_rng(seed).normal(size=SITES[site].shape(SIZES)).astype(np.float32)


def apply_in_numpy(x, edits, layer=2, site="query"):
    """The definition of set, scale and add, element by element."""
    x = x.copy()
    for edit in edits:
        if edit.layer != layer:
            continue
        for b in range(B):
            index: list = [b]
            for axis in SITES[site].axes[1:]:
                given = getattr(edit, NAMES.get(axis, "dim"))
                given = given[b] if isinstance(given, np.ndarray) else given
                index.append(slice(None) if given is None else slice(given, given + 1) if given >= 0 else slice(0))
            part, value = x[tuple(index)], np.asarray(edit.value, np.float32)
            x[tuple(index)] = {"set": 0 * part + value, "scale": value * part, "add": part + value}[edit.op]
    return x


index = {
    "position": st.one_of(
        st.integers(0, T - 1), st.lists(st.integers(-1, T - 1), min_size=B, max_size=B).map(np.array)
    ),
    "head": st.integers(0, H - 1),
    "dim": st.integers(0, N - 1),
}
number = st.floats(-4, 4, width=32)


def some_edits(*names):
    """One to four edits that index the axes `names`; those without a dim may have a value a dim."""
    value = number if "dim" in names else st.one_of(number, st.lists(number, min_size=N, max_size=N))
    return st.lists(
        st.builds(
            Edit,
            st.just("query"),
            layer=st.integers(1, 3),
            op=st.sampled_from(["set", "scale", "add"]),
            value=value,
            **{name: index[name] for name in names},
        ),
        min_size=1,
        max_size=4,
    )


@given(
    st.tuples(
        some_edits("position", "head", "dim"), some_edits("dim"), some_edits("position"), some_edits("position", "dim")
    )
)
@settings(deadline=None, max_examples=120)
def test_edits_apply_in_order_whatever_axes_they_name(runs):
    """Four runs of edits, each run with other axes: as many compiled groups, one program."""
    edits = [edit for run in runs for edit in run]
    np.testing.assert_allclose(apply(tensor(), edits), apply_in_numpy(tensor(), edits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("site", ["block_out", "query", "attn_probs"])
@pytest.mark.parametrize("indexed", ["none", "last", "position", "all"])
def test_every_combination_of_axes(site, indexed):
    axes = SITES[site].axes[1:]
    chosen = {"none": "", "last": axes[-1], "position": "T", "all": axes}[indexed]
    fields = {NAMES.get(axis, "dim"): 2 for axis in chosen}
    size = SIZES[axes[-1]]
    value = 3.0 if axes[-1] in chosen else np.arange(size, dtype=np.float32)
    edits = [Edit(site, layer=2, op=op, value=value, **fields) for op in ("set", "add")]
    x = tensor(site)
    np.testing.assert_array_equal(apply(x, edits, 2, site), apply_in_numpy(x, edits, 2, site))


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([("set", 3.0), ("scale", 2.0)], 6.0),
        ([("scale", 2.0), ("set", 3.0)], 3.0),
        ([("set", 3.0), ("add", 1.0), ("scale", 2.0)], 8.0),
        ([("set", 3.0), ("scale", 2.0), ("add", 1.0)], 7.0),
        ([("set", 3.0), ("noise", 0.0)], 3.0),
    ],
)
def test_order(edits, expected):
    x = apply(tensor(), [Edit("query", layer=2, position=1, head=0, dim=3, op=op, value=v) for op, v in edits])
    assert x[:, 1, 0, 3].tolist() == [expected] * B


def test_order_of_interleaved_axes():
    """Edits that name other axes are compiled into other arrays; their order stays that given."""
    at = {"layer": 2, "position": 1}
    one, many = {"head": 0, "dim": 3}, {"head": 0}
    x = apply(
        tensor(),
        [
            Edit("query", **at, **one, value=1.0),
            Edit("query", **at, **many, op="add", value=1.0),
            Edit("query", **at, **one, op="scale", value=5.0),
            Edit("query", **at, **many, op="scale", value=2.0),
        ],
    )
    assert x[:, 1, 0, 3].tolist() == [20.0] * B  # ((1 + 1) · 5) · 2


def test_other_layers_are_left_alone():
    edits = [Edit("query", layer=layer, op="set", value=9.0) for layer in (1, 3, 4, 5)]
    np.testing.assert_array_equal(apply(tensor(), edits), tensor())


def test_no_edits_are_an_empty_collection(tiny_model, tiny_tokens):
    assert compile_edits((), SIZES) == {}
    assert tiny_model.compile_edits(None, tiny_tokens) == {}


# Noise and shuffle


def noise_of(**fields):
    """What noise adds to zeros [B, T, D] of block_out."""
    return apply(np.zeros((B, T, 8), np.float32), [Edit("block_out", layer=2, op="noise", **fields)], 2, "block_out")


def test_noise_is_gaussian_with_the_standard_deviation_asked_for():
    x = np.zeros((4, 500, 8), np.float32)
    rows = compile_edits(Edit("block_out", layer=2, op="noise", value=3.0), SIZES | {"B": 4, "T": 500})
    z = np.asarray(_apply(x, rows["block_out"], 2, "block_out")) / 3
    n = z[0].size
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    # By position, so that a sequence has the same in every batch; each position its own.
    np.testing.assert_array_equal(z, np.broadcast_to(z[:1], z.shape))
    first = z[0]
    assert np.abs(np.corrcoef(first.T) - np.eye(8)).max() < 5 / np.sqrt(len(first))
    assert abs(np.corrcoef(first[:-1].ravel(), first[1:].ravel())[0, 1]) < 5 / np.sqrt(first.size)


def test_noise_has_one_standard_deviation_a_dim_where_given():
    z = noise_of(value=[0.0] * 7 + [2.0])
    assert not z[..., :7].any()
    assert z[..., 7].std() > 0.5


def test_noise_follows_its_seed():
    np.testing.assert_array_equal(noise_of(value=1.0, seed=3), noise_of(value=1.0, seed=3))
    assert not np.array_equal(noise_of(value=1.0, seed=3), noise_of(value=1.0, seed=4))
    assert not np.array_equal(noise_of(value=1.0, seed=-1), noise_of(value=1.0, seed=1))
    np.testing.assert_array_equal(noise_of(value=2.0, seed=3), 2 * noise_of(value=1.0, seed=3))


def test_noise_differs_between_layers_and_between_edits():
    x = np.zeros((B, T, 8), np.float32)
    edits = [Edit("block_out", layer=layer, op="noise", value=1.0) for layer in (1, 2)]
    first, second = (apply(x, [edit], edit.layer, "block_out") for edit in edits)
    assert not np.array_equal(first, second)
    twice = apply(x, [edits[0], edits[0]], 1, "block_out")
    assert not np.allclose(twice, 2 * first)


@pytest.mark.parametrize("seed", range(6))
def test_shuffle_is_a_permutation_of_the_positions_without_fixed_points(seed):
    x = np.arange(B * T * 8, dtype=np.float32).reshape(B, T, 8)
    found = apply(x, [Edit("block_out", layer=2, op="shuffle", seed=seed)], 2, "block_out")
    source = [np.flatnonzero((x[0] == row).all(axis=1)).item() for row in found[0]]
    assert sorted(source) == list(range(T))
    assert all(t != s for t, s in enumerate(source))
    np.testing.assert_array_equal(found, x[:, source])
    # The same edit of one position or one dim moves the same values there and nothing else.
    at = apply(x, [Edit("block_out", layer=2, op="shuffle", seed=seed, position=4)], 2, "block_out")
    np.testing.assert_array_equal(at, np.where(np.arange(T)[None, :, None] == 4, found, x))
    of = apply(
        x, [Edit("block_out", layer=2, op="shuffle", seed=seed, position=np.array([4, -1]), dim=3)], 2, "block_out"
    )
    here = (np.arange(B) == 0)[:, None, None] & (np.arange(T) == 4)[:, None] & (np.arange(8) == 3)
    np.testing.assert_array_equal(of, np.where(here, found, x))


def test_shuffles_differ_between_seeds():
    x = np.arange(B * T * 8, dtype=np.float32).reshape(B, T, 8)
    found = {
        apply(x, [Edit("block_out", layer=2, op="shuffle", seed=seed)], 2, "block_out").tobytes() for seed in range(8)
    }
    assert len(found) > 4


def test_shuffle_of_a_single_token_leaves_it(make_model):
    model = make_model(num_layers=1)
    tokens = np.array([[65]])
    edit = Edit("block_out", layer=1, op="shuffle")
    np.testing.assert_allclose(model(tokens, edits=edit).logits, model(tokens).logits, rtol=1e-5, atol=1e-6)


def test_move_gathers_a_dim_at_one_position():
    x = tensor("mlp_hidden") - 1
    expected = x.copy()
    expected[..., 7] = 0
    expected[:, 4, 7] = np.delete(x[..., 7], 4, axis=1).max(axis=1)
    edit = Edit("mlp_hidden", layer=2, dim=7, op="move", value=4)
    np.testing.assert_array_equal(apply(x, [edit], 2, "mlp_hidden"), expected)
    np.testing.assert_array_equal(apply(x, [edit], 1, "mlp_hidden"), x)
    heads = tensor("query")
    expected = heads.copy()
    expected[:, :, 1, 2] = 0
    expected[:, 0, 1, 2] = heads[:, 1:, 1, 2].max(axis=1)
    np.testing.assert_array_equal(apply(heads, [Edit("query", layer=2, head=1, dim=2, op="move", value=0)]), expected)


# Positions


def positions_of(position, tokens, model):
    rows = model.compile_edits(Edit("block_out", layer=1, position=position), tokens)["block_out"]
    return rows[0].index["T"][0].tolist()


def test_position_rules(tiny_model):
    tokens = np.array([tiny_model.tokenizer.encode(text) for text in ("ab. c.", "\nabcd\n"[:6], ".abcde")], np.int32)
    assert positions_of("first", tokens, tiny_model) == [0, 0, 0]
    assert positions_of("last", tokens, tiny_model) == [5, 5, 5]
    assert positions_of("first_delimiter", tokens, tiny_model) == [2, 5, -1]  # after position 0
    assert positions_of(4, tokens, tiny_model) == [4, 4, 4]
    for array in (np.array([0, -1, 5]), np.array([0, -1, 5], np.int64), jax.numpy.array([0, -1, 5])):
        assert positions_of(array, tokens, tiny_model) == [0, -1, 5]
    assert positions_of(lambda t: (t == ord("c")).argmax(axis=1), tokens, tiny_model) == [4, 3, 3]
    assert tiny_model.first_delimiter(tokens).tolist() == [2, 5, -1]


def test_a_rule_edits_each_sequence_at_its_own_position(tiny_model):
    tokens = np.array([tiny_model.tokenizer.encode(text) for text in ("ab. c.", "abcdef", "a\nbcde")], np.int32)
    edit = Edit("block_out", layer=2, position="first_delimiter", dim=3, value=77.0)
    kept = tiny_model(tokens, edits=edit, capture=mj.Capture("block_out", layers=2)).intermediates["block_out"][0]
    assert np.argwhere(np.asarray(kept[..., 3]) == 77.0).tolist() == [[0, 2], [2, 1]]


def test_rules_need_tokens():
    with pytest.raises(ValueError, match="position rule 'first' needs the tokens"):
        compile_edits(Edit("embed", position="first"), SIZES)


def test_first_delimiter_needs_a_tokenizer(tiny_model, tiny_tokens):
    bare = mj.Model(tiny_model.module, tiny_model.params, tiny_model.config)
    with pytest.raises(ValueError, match="tokenizer"):
        bare(tiny_tokens, edits=Edit("embed", position="first_delimiter"))


def test_rules_cannot_be_worked_out_under_a_transform(tiny_model, tiny_tokens):
    with pytest.raises(ValueError, match="under a jax transform"):
        jax.jit(lambda t: tiny_model(t, edits=Edit("embed", position="first_delimiter")).logits)(tiny_tokens)


# What is refused

BLOCK = {"site": "block_out", "layer": 1}
REFUSED = {
    "site": ({"site": "blokc_out", "layer": 1}, "unknown site 'blokc_out'; the sites are embed, .*logits"),
    "no layer": ({"site": "block_out"}, "block_out is in every block: give layer=1 to 5"),
    "layer 0": ({"site": "block_out", "layer": 0}, "layer 0 is out of range.* 1 to 5"),
    "layer L + 1": ({"site": "block_out", "layer": 6}, "layer 6 is out of range"),
    "layer -1": ({"site": "block_out", "layer": -1}, "layer -1 is out of range"),
    "layer True": ({"site": "block_out", "layer": True}, "layer True is out of range"),
    "layer 1.0": ({"site": "block_out", "layer": 1.0}, "layer 1.0 is out of range"),
    "layer of embed": ({"site": "embed", "layer": 1}, "embed is outside the blocks: leave layer out"),
    "layer of logits": ({"site": "logits", "layer": 5}, "logits is outside the blocks"),
    "op": (BLOCK | {"op": "zero"}, "unknown op 'zero'; the operations are set, scale, add, noise, shuffle"),
    "position T": (BLOCK | {"position": T}, "position 6 is out of range; .* 0 to 5"),
    "position before the first": (BLOCK | {"position": -T - 1}, f"position {-T - 1} is out of range"),
    "position -2 in an array": (
        BLOCK | {"position": np.array([0, -2])},
        r"position -2 is out of range.*\(-1 for none\)",
    ),
    "position T in an array": (BLOCK | {"position": np.array([T, 0])}, "position 6 is out of range"),
    "positions too few": (BLOCK | {"position": np.array([0])}, r"position is int64\[1\]; give an int, or int\[2\]"),
    "positions of two axes": (BLOCK | {"position": [[0], [1]]}, r"int64\[2, 1\]"),
    "position 1.0": (BLOCK | {"position": 1.0}, "position is float64"),
    "positions float": (BLOCK | {"position": [0.0, 1.0]}, "position is float64"),
    "position True": (BLOCK | {"position": True}, "position is bool"),
    "positions bool": (BLOCK | {"position": [True, False]}, "position is bool"),
    "rule": (BLOCK | {"position": "firts"}, "unknown position rule 'firts'; the rules are first, last"),
    "rule's shape": (BLOCK | {"position": lambda t: np.zeros((3,), int)}, r"int64\[3\]"),
    "rule's range": (BLOCK | {"position": lambda t: np.full(len(t), T)}, "position 6 is out of range"),
    "dim D": (BLOCK | {"dim": 8}, "dim 8 is out of range; block_out has dim 0 to 7"),
    "dim -1": (BLOCK | {"dim": -1}, "dim -1 is out of range"),
    "dim True": (BLOCK | {"dim": True}, "dim True is out of range"),
    "dim 1.0": (BLOCK | {"dim": 1.0}, "dim 1.0 is out of range"),
    "dims": (BLOCK | {"dim": [1, 8]}, "dim 8 is out of range"),
    "no dims": (BLOCK | {"dim": []}, "names none; block_out has dim 0 to 7"),
    "dims float": (BLOCK | {"dim": np.array([1.0])}, "dim 1.0 is out of range"),
    "dim of the MLP": ({"site": "mlp_hidden", "layer": 1, "dim": 10}, "dim 10 is out of range"),
    "dim of probabilities": ({"site": "attn_probs", "layer": 1, "dim": 0}, "attn_probs has axes BHTS and no dim"),
    "head H": ({"site": "query", "layer": 1, "head": H}, "head 3 is out of range; query has head 0 to 2"),
    "head K": ({"site": "key", "layer": 1, "head": 1}, "head 1 is out of range; key has head 0 to 0"),
    "head -1": ({"site": "query", "layer": 1, "head": -1}, "head -1 is out of range"),
    "head of the stream": (BLOCK | {"head": 0}, "block_out has axes BTD and no head"),
    "key T": ({"site": "attn_logits", "layer": 1, "key": T}, "key 6 is out of range"),
    "key of the stream": (BLOCK | {"key": 0}, "no key"),
    "vector with a dim": (BLOCK | {"dim": 0, "value": [1.0]}, r"value has shape \(1,\); with a dim given"),
    "short vector": (BLOCK | {"value": np.ones(7)}, r"value has shape \(7,\).*each of the 8 dims: shape \(8,\)"),
    "matrix": (BLOCK | {"value": np.ones((8, 6))}, r"value has shape \(8, 6\)"),
    "vector of keys": ({"site": "attn_probs", "layer": 1, "value": np.ones(7)}, "each of the 6 keys"),
    "word": (BLOCK | {"value": "zero"}, "value"),
    "move of one position": (BLOCK | {"op": "move", "dim": 0, "position": 1}, "move takes one dim .* of all positions"),
    "move of all dims": (BLOCK | {"op": "move"}, "move takes one dim"),
    "move of all heads": ({"site": "query", "layer": 1, "dim": 0, "op": "move"}, r"one dim \(and head\)"),
    "move to nowhere": (
        BLOCK | {"op": "move", "dim": 0, "value": T},
        "move to position 6 is out of range; there are positions 0 to 5",
    ),
    "move between": (BLOCK | {"op": "move", "dim": 0, "value": 0.5}, "move to position 0.5"),
    "no value": (BLOCK | {"value": None}, "value"),
    "ragged value": (BLOCK | {"value": [[1], [1, 2]]}, "give a number or an array"),
    "value beyond float32": (BLOCK | {"value": 1e39}, r"value is 1e\+39, which float32 does not hold"),
    "factor beyond float32": (BLOCK | {"op": "scale", "value": -1e39}, "float32 does not hold"),
    "seed 1.5": (BLOCK | {"op": "noise", "seed": 1.5}, r"seed is 1\.5; give a whole number"),
    "seed of 33 bits": (BLOCK | {"op": "noise", "seed": 1 << 32}, "seed is 4294967296"),
    "seed None": (BLOCK | {"seed": None}, "seed is None"),
    "layer in words": (BLOCK | {"layer": "every"}, "layer 'every' is out of range"),
    "layer of embed, False": ({"site": "embed", "layer": False}, "leave layer out"),
    "ops": (BLOCK | {"op": ["set"]}, r"unknown op \['set'\]"),
    "sites": ({"site": ["mid"], "layer": 1}, r"unknown site \['mid'\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    fields, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        compile_edits(Edit(**fields), SIZES, tokens=np.zeros((B, T), np.int32))
    assert str(caught.value).startswith(f"edit 0 (site={fields['site']!r}")


def test_every_wrong_edit_is_named_at_once():
    edits = [
        Edit("block_out", layer=9),
        Edit("block_out", layer=1, position=2, dim=3),
        Edit("nowhere"),
        Edit("query", layer=2, head=7, op="add"),
    ]
    with pytest.raises(ValueError, match="layer 9 is out of range") as caught:
        compile_edits(edits, SIZES)
    lines = str(caught.value).splitlines()
    assert [line.split(" (")[0] for line in lines] == ["edit 0", "edit 2", "edit 3"]
    assert "op='add', head=7" in lines[2]


def test_an_error_comes_before_anything_is_compiled(tiny_model, tiny_tokens, compilations):
    for options in (
        {"edits": Edit("block_out", layer=5)},
        {"edits": Edit("block_out", layer=1, position=9)},
        {"capture": mj.Capture("block_out", layers=5)},
    ):
        with pytest.raises(ValueError, match="out of range"):
            tiny_model(tiny_tokens, **options)
    assert compilations() == 0


@pytest.mark.parametrize(
    "others",
    [
        [Edit("mid", layer=1)],
        [Edit("block_out", layer=1, position=0)],
        [Edit("block_out", layer=1)] * 5,
        [Edit("block_out", layer=1), Edit("mid", layer=1)],
    ],
)
def test_stacking_what_does_not_match_is_refused(others):
    first = compile_edits(Edit("block_out", layer=1), SIZES)
    with pytest.raises(ValueError, match="cannot stack 2 edit collections"):
        stack_edits([first, compile_edits(others, SIZES)])


def test_stacking_nothing_is_refused():
    with pytest.raises(ValueError, match="cannot stack 0"):
        stack_edits([])


def test_the_operations_are_the_documented_ones():
    assert OPS == ("set", "scale", "add", "noise", "shuffle", "quantize", "move")


def test_quantize():
    """To a grid of 2^bits - 1 points between minus and plus the largest magnitude of each sequence's part."""
    x = tensor()
    for index, part in (({}, np.s_[:]), ({"position": 2}, np.s_[2])):
        got = apply(x, [Edit("query", layer=2, op="quantize", value=4, **index)])
        expected = x.copy()
        for b in range(B):
            step = np.abs(x[b][part]).max() / 7
            expected[b][part] = np.round(x[b][part] / step) * step
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(apply(x, [Edit("query", layer=2, op="quantize", value=2)])[0])) == 3
    np.testing.assert_array_equal(apply(0 * x, [Edit("query", layer=2, op="quantize", value=8)]), 0 * x)


@pytest.mark.parametrize("bits", [1, 17, 2.5, None, [8.0] * (N - 1) + [0.0]])
def test_quantize_takes_whole_bits(bits):
    with pytest.raises(ValueError, match="value"):
        compile_edits(Edit("query", layer=2, op="quantize", value=bits), SIZES)


def test_all_layers():
    x, edit = tensor(), Edit("query", layer="all", position=1, value=3.0)
    for layer in range(1, L + 1):
        np.testing.assert_array_equal(
            apply(x, [edit], layer=layer), apply(x, [Edit("query", layer=layer, position=1, value=3.0)], layer=layer)
        )
    with pytest.raises(ValueError, match="leave layer out"):
        compile_edits(Edit("embed", layer="all"), SIZES)


@pytest.mark.parametrize(
    ("dtype", "site", "op", "fits"),
    [
        ("float16", "block_out", "set", False),
        ("float16", "block_out", "scale", True),  # of what, decides
        ("float16", "attn_logits", "set", True),  # float32 in any model
        ("bfloat16", "block_out", "set", True),
    ],
)
def test_a_value_that_is_set_fits_the_models_dtype(dtype, site, op, fits):
    edit = Edit(site, layer=1, op=op, value=7e4)
    if fits:
        compile_edits(edit, SIZES, dtype=jax.numpy.dtype(dtype))
    else:
        with pytest.raises(ValueError, match="value is 70000.0, which float16 does not hold"):
            compile_edits(edit, SIZES, dtype=jax.numpy.dtype(dtype))
    compile_edits(Edit(site, layer=1, op=op, value=-np.inf), SIZES, dtype=jax.numpy.dtype(dtype))  # as asked


def test_a_message_is_one_line_whatever_the_value():
    with pytest.raises(ValueError, match="layer 9") as caught:
        compile_edits(Edit("block_out", layer=9, value=np.zeros(5000)), SIZES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("given", [None, 3, "ab", [1, 2], [Edit("embed")], Edit("embed")])
def test_only_compiled_edits_are_stacked(given):
    with pytest.raises(ValueError, match="give a list of edits compiled by"):
        stack_edits(given)
